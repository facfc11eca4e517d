// From a picture file to the pixels that the model sees, read as kmed reads them: upright, without the colour profile,
// with transparency on black.

import { reduction, resize, shrinkRows } from "./resize.js";

const STRIP = 2 ** 21; // pixels that are drawn at once: phones refuse canvases of more than 16 million

/** A file that is not a picture, or one that this browser cannot read; the message is shown to the user. */
export class PictureError extends Error {}

/**
 * Returns {width, height, pixels}: the picture's own size, and Uint8Array (H * W * 3) of the size in `description`.
 *
 * Throws PictureError if the file cannot be read.
 */
export async function readPicture(file, description) {
  if (description.range) await refuseDeep(file);
  const bitmap = await decode(file);
  try {
    const { width, height } = bitmap;
    const factor = (await isJpeg(file)) ? reduction(width, height, description) : 1;
    const rowsAtOnce = Math.max(Math.floor(STRIP / width / factor), 1); // of the smaller picture
    const readRows = shrinkRows(rowReader(bitmap, rowsAtOnce * factor), width, height, factor);
    return { width, height, pixels: resize(width / factor, height / factor, readRows, description, rowsAtOnce) };
  } finally {
    bitmap.close();
  }
}

async function isJpeg(file) {
  const start = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  return start[0] === 0xff && start[1] === 0xd8 && start[2] === 0xff;
}

/** Throws PictureError for a PNG file of 16 bits: browsers shorten them to 8, so the model's range cannot be applied. */
async function refuseDeep(file) {
  const header = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  if (header[0] === 0x89 && header[1] === 0x50 && header[24] === 16) {
    throw new PictureError("has 16 bits per value, which browsers shorten to 8. Classify it with kmed predict.");
  }
}

async function decode(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  try {
    return await createImageBitmap(file, options).catch((error) => {
      // A browser that does not know these options behaves as they ask, except for the colour profile.
      if (error instanceof TypeError) return createImageBitmap(file);
      throw error;
    });
  } catch (error) {
    const reason = "is not a picture that this browser can read. Choose a JPEG, PNG, WebP, GIF or BMP file.";
    throw new PictureError(reason, { cause: error });
  }
}

/** Returns readRows(top, num) -> RGBA bytes. It draws few rows at a time: a phone cannot draw a whole photograph. */
function rowReader(bitmap, rowsAtOnce) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = Math.min(rowsAtOnce, bitmap.height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingEnabled = false;
  return (top, num) => {
    try {
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, top, bitmap.width, num, 0, 0, bitmap.width, num);
      return context.getImageData(0, 0, bitmap.width, num).data;
    } catch (error) {
      const size = `${bitmap.width} × ${bitmap.height} pixels`;
      throw new PictureError(`is too large for this browser: ${size}. Choose a smaller one.`, { cause: error });
    }
  };
}

/** Returns whether a canvas returns its pixels unchanged; some browsers alter them to prevent tracking. */
export function canvasIsHonest() {
  const side = 16;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  const drawn = context.createImageData(side, side);
  drawn.data.forEach((_, i) => (drawn.data[i] = i % 4 === 3 ? 255 : (i * 73) % 256));
  context.putImageData(drawn, 0, 0);
  const read = context.getImageData(0, 0, side, side).data;
  return drawn.data.every((value, i) => value === read[i]);
}
