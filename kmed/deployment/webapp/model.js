// The model: fetched, compiled and run by LiteRT.js, all in this browser.

import { Tensor, loadAndCompile, loadLiteRt } from "./litert/litert.js";

const RUNTIME = "litert/litert_wasm_compat_internal.js"; // the one build that is shipped

// (func (result v128) (i8x16.splat (i32.const 0))): valid only where WebAssembly has SIMD.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];

/** Returns whether this browser has what the runtime needs. */
export function canCompute() {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD));
}

/** Returns the content of model.json: the model's input, output and scores. */
export async function fetchDescription() {
  return (await fetchFile("model.json")).json();
}

/**
 * Returns a function from pixels, Uint8Array (H * W * 3), to probabilities, Float32Array (K).
 *
 * onProgress(bytes) is called with how much of the model has arrived.
 */
export async function loadModel(description, onProgress) {
  quieten();
  const fetching = fetchBytes("model.tflite", description.model_bytes, onProgress);
  const [bytes] = await Promise.all([fetching, loadLiteRt(RUNTIME)]);
  const model = await loadAndCompile(bytes, { accelerator: "wasm" });
  const [height, width] = description.image_size;
  return async (pixels) => {
    const input = new Tensor(new Float32Array(pixels), [1, height, width, 3]);
    const [output] = await model.run([input]);
    const probs = new Float32Array(await output.data());
    input.delete();
    output.delete();
    return probs;
  };
}

/** Keeps the runtime's messages out of the console's errors; a failure is also thrown. */
function quieten() {
  globalThis.Module = { print: console.debug, printErr: console.debug };
}

async function fetchBytes(path, size, onProgress) {
  const reader = (await fetchFile(path)).body.getReader();
  const bytes = new Uint8Array(size);
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length <= size) bytes.set(value, received);
    received += value.length;
    onProgress(received);
  }
  if (received !== size) throw new Error(`${path} has ${received} bytes instead of ${size}`);
  return bytes;
}

async function fetchFile(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
}
