// The page: takes pictures, reads and classifies them one after the other, and shows the results.

import { canCompute, fetchDescription, loadModel } from "./model.js";
import { PictureError, canvasIsHonest, readPicture } from "./picture.js";

const find = (id) => document.getElementById(id);
const MEGABYTE = 1e6;
const TOO_OLD =
  "This browser is too old: it has no WebAssembly with SIMD. " +
  "Use a newer one, such as a current Chrome, Edge, Firefox or Safari.";
const NOISY =
  "This browser changes the pixels that a page reads, as a protection against tracking, so answers would be wrong. " +
  "Allow this page to read canvas data, or use another browser.";

let description; // model.json
let waiting = Promise.resolve(); // the queue of chosen pictures, in their order
const model = start();

async function start() {
  say("Loading the model…");
  if (!canCompute()) return fail(TOO_OLD);
  if (!canvasIsHonest()) return fail(NOISY);
  try {
    description = await fetchDescription();
    const classify = await loadModel(description, showProgress);
    find("loading").hidden = true;
    say("The model is ready.");
    keepOffline();
    return classify;
  } catch (error) {
    const reason = error.message ?? "a file of this page is missing"; // for a missing script there is no message
    return fail(`The model did not load: ${reason}. Check the connection, then load this page again.`);
  }
}

function fail(message) {
  find("loading").hidden = true;
  say("");
  complain(message);
  return null;
}

function showProgress(bytes) {
  const total = description.model_bytes;
  find("loading").hidden = false;
  Object.assign(find("progress"), { max: total, value: bytes });
  find("amount").textContent = `${Math.round(bytes / MEGABYTE)} of ${Math.round(total / MEGABYTE)} MB`;
}

function say(text) {
  find("status").textContent = text;
}

function complain(text) {
  const line = document.createElement("p");
  line.textContent = text;
  find("errors").append(line);
}

// ----- pictures come in -----

function take(files) {
  if (!files.length) return;
  find("errors").replaceChildren();
  let last = null; // the newest pictures are at the top; those chosen together keep their order
  for (const file of files) waiting = waiting.then(async () => (last = (await answer(file, last)) ?? last));
}

for (const input of [find("files"), find("camera")]) {
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
}

const drop = find("drop");
const dragged = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!dragged(event)) return;
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
addEventListener("drop", (event) => {
  if (!dragged(event)) return;
  event.preventDefault();
  drop.classList.remove("over");
  take([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => take([...event.clipboardData.files]));

find("clear").addEventListener("click", () => {
  find("results").replaceChildren();
  find("clear").hidden = true;
  find("nothing").hidden = false;
  find("files").focus();
  say("All pictures were removed.");
});

// ----- answers go out -----

/** Reads, classifies and shows one picture, below the element `last`; returns the new element, or null. */
async function answer(file, last) {
  const classify = await model;
  if (!classify) return null;
  const name = file.name || "The pasted picture";
  say(`Reading ${name}…`);
  await new Promise((done) => setTimeout(done)); // lets the page show this message
  try {
    const started = performance.now();
    const picture = await readPicture(file, description);
    const read = performance.now();
    const probs = await classify(picture.pixels);
    const times = { reading: read - started, computing: performance.now() - read };
    return show(name, picture, probs, times, last);
  } catch (error) {
    say("");
    const reason = error instanceof PictureError ? error.message : `was not classified: ${error.message}.`;
    complain(`${name} ${reason}`);
    return null;
  }
}

/** Returns [{name, prob, threshold, reported}], the reported ones first, each part by falling probability. */
function decide(probs) {
  const { class_names: names, thresholds, constant, exclusion } = description;
  const best = probs.indexOf(Math.max(...probs));
  const rows = names.map((name, k) => {
    const threshold = thresholds?.[name];
    return { name, prob: probs[k], threshold, reported: thresholds ? probs[k] >= threshold : k === best };
  });
  if (constant) for (const row of rows) row.reported = constant.includes(row.name);
  else if (exclusion) resolve(rows, exclusion);
  return rows.sort((a, b) => b.reported - a.reported || b.prob - a.prob);
}

/** Removes contradictions from the rows, as `kmed.metrics.thresholds.Exclusion.resolve` does. */
function resolve(rows, { negative, findings, complete }) {
  const none = rows.find((row) => row.name === negative);
  const excluded = rows.filter((row) => findings.includes(row.name));
  if (none.reported) for (const row of excluded) row.reported = false;
  if (complete) none.reported = !excluded.some((row) => row.reported);
}

function describe(rows) {
  if (description.task === "multiclass") return `${rows[0].name}, ${share(rows[0].prob)}`;
  const reported = rows.filter((row) => row.reported).map((row) => row.name);
  return reported.length ? `Reported: ${reported.join(", ")}` : "Nothing reported: each finding is below its threshold";
}

/** Returns a probability as text; one that is nearly certain is never shown as certain. */
function share(prob) {
  if (prob < 0.0005) return "< 0.1\u00a0%";
  if (prob > 0.9995) return "> 99.9\u00a0%";
  return `${(100 * prob).toFixed(1)}\u00a0%`;
}

function legend() {
  const { thresholds, constant, exclusion } = description;
  if (!thresholds) return "Probability of each class.";
  if (constant) {
    const names = constant.join(", ") || "nothing";
    return `Probability of each finding. On validation, no decision was better than always reporting ${names}.`;
  }
  const line = "Probability of each finding. A finding is reported if its bar reaches its threshold, the line on the bar";
  return exclusion ? `${line}, and ${exclusion.negative} does not.` : `${line}.`;
}

function show(name, picture, probs, times, last) {
  const rows = decide(probs);
  const decision = describe(rows);
  const result = find("result").content.cloneNode(true).firstElementChild;
  const part = (selector) => result.querySelector(selector);
  const [height, width] = description.image_size;
  paint(part("canvas"), picture.pixels, width, height);
  part("canvas").setAttribute("aria-label", `${name} as the model sees it`);
  const own = `${picture.width} × ${picture.height}`;
  part("figcaption").textContent = `As the model sees it: ${width} × ${height} of ${own} pixels`;
  part("h3").textContent = name;
  part(".decision").textContent = decision;
  part(".legend").textContent = legend();
  part(".rows").classList.toggle("thresholds", Boolean(description.thresholds));
  part(".rows").append(...rows.map(makeRow));
  const [computing, reading] = [times.computing, times.reading].map(Math.round);
  part(".time").textContent = `${computing} ms to compute, ${reading} ms to read and resize.`;
  result.dataset.probs = JSON.stringify([...probs]);
  if (last?.isConnected) last.after(result);
  else find("results").prepend(result);
  find("nothing").hidden = true;
  find("clear").hidden = false;
  if (!last && result.getBoundingClientRect().top > innerHeight / 2) find("results-title").scrollIntoView();
  say(`${name}: ${decision}.`);
  return result;
}

function paint(canvas, rgb, width, height) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0, k = 0; i < rgb.length; i += 3, k += 4) image.data.set([rgb[i], rgb[i + 1], rgb[i + 2], 255], k);
  context.putImageData(image, 0, 0);
}

function makeRow({ name, prob, threshold, reported }) {
  const row = document.createElement("li");
  row.classList.toggle("reported", reported);
  const head = add(row, "span", "name");
  head.textContent = name;
  const number = add(row, "span", "number");
  add(number, "span", "value").textContent = share(prob);
  const bar = add(row, "span", "bar");
  bar.setAttribute("aria-hidden", "true"); // the number gives the same value
  add(bar, "span", "fill").style.width = `${100 * prob}%`;
  if (threshold !== undefined) {
    if (reported) add(head, "span", "tag").textContent = "reported";
    add(number, "span", "threshold").textContent = `threshold ${share(threshold)}`;
    add(bar, "span", "mark").style.left = `${100 * threshold}%`;
  }
  return row;
}

function add(parent, tag, className) {
  const child = Object.assign(document.createElement(tag), { className });
  parent.append(child);
  return child;
}

// ----- without a network -----

async function keepOffline() {
  if (!navigator.serviceWorker) return; // the address is not https
  try {
    const hadOlder = Boolean(navigator.serviceWorker.controller);
    const registration = await navigator.serviceWorker.register("service-worker.js");
    if (registration.waiting) offerNewer(registration.waiting);
    registration.addEventListener("updatefound", () => {
      const worker = registration.installing;
      worker.addEventListener("statechange", () => {
        if (worker.state === "installed" && hadOlder) offerNewer(worker);
      });
    });
    await navigator.serviceWorker.ready;
    find("offline").textContent = "Saved on this device: this page also works without a network.";
  } catch (error) {
    find("offline").textContent = `This page could not be saved for use without a network: ${error.message}.`;
  }
}

/** Offers a button to load a newer version, so that it is never mixed with the one that is running. */
function offerNewer(worker) {
  if (find("newer")) return;
  const button = document.createElement("button");
  Object.assign(button, { id: "newer", type: "button", textContent: "Load the newer version of this page" });
  button.addEventListener("click", () => {
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
    worker.postMessage("use the newer version");
  });
  find("offline").after(button);
}
