// Resizes as kmed does in training: Pillow's resampling, to the bit.
//
// Pixels are convolved along x and along y with a filter whose support grows with the factor of shrinking, so that
// every pixel counts. Weights are fixed-point numbers of 22 bits. The result of the first pass is rounded to 8 bits,
// so the order of the passes matters. Filters: box, triangle, Catmull-Rom (a = -0.5), Lanczos with three lobes.

const BITS = 22;
const HALF = 1 << (BITS - 1);

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const FILTERS = {
  box: { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, at: (x) => Math.max(1 - Math.abs(x), 0) },
  bicubic: { support: 2, at: catmullRom },
  lanczos: { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function catmullRom(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

/** Returns x rounded as by Python's round(): halves go to the even number. */
export function roundHalfEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/**
 * Returns where a picture of width x height lands in the model's input.
 *
 * box: [left, top, right, bottom], the part of the picture that is used, in its pixels (or fractions of them);
 * width, height: the size it is resized to; left, top: its position in the input, which is black around it.
 */
export function place(width, height, { image_size: [inputHeight, inputWidth], fit }) {
  const whole = { box: [0, 0, width, height], width: inputWidth, height: inputHeight, left: 0, top: 0 };
  const across = inputWidth / width;
  const down = inputHeight / height;
  if (fit === "crop") {
    const seenWidth = inputWidth / Math.max(across, down);
    const seenHeight = inputHeight / Math.max(across, down);
    const left = Math.max((width - seenWidth) / 2, 0);
    const top = Math.max((height - seenHeight) / 2, 0);
    const box = [left, top, Math.min(left + seenWidth, width), Math.min(top + seenHeight, height)];
    return { ...whole, box: box.map(Math.fround) }; // Pillow holds it in single precision
  }
  if (fit === "pad") {
    const scale = Math.min(across, down);
    const innerWidth = Math.min(Math.max(roundHalfEven(width * scale), 1), inputWidth);
    const innerHeight = Math.min(Math.max(roundHalfEven(height * scale), 1), inputHeight);
    const left = Math.floor((inputWidth - innerWidth) / 2);
    const top = Math.floor((inputHeight - innerHeight) / 2);
    return { ...whole, width: innerWidth, height: innerHeight, left, top };
  }
  return whole; // "stretch"
}

/** Returns 1, 2, 4 or 8: how many times smaller than it is kmed decodes a JPEG picture of width x height. */
export function reduction(width, height, { image_size: [inputHeight, inputWidth], fit, decode }) {
  if (decode !== "reduced") return 1;
  const across = inputWidth / width;
  const down = inputHeight / height;
  const scale = fit === "pad" ? Math.min(across, down) : Math.max(across, down);
  return [8, 4, 2].find((factor) => factor * scale <= 1) ?? 1;
}

/**
 * Returns readRows(top, num) of a picture that is `factor` times smaller: the mean of each square of pixels.
 *
 * That is what a JPEG decoder computes for a smaller picture, except that it does so from each block's frequencies,
 * before it changes the colours, so its values differ a little.
 */
export function shrinkRows(readRows, width, height, factor) {
  if (factor === 1) return readRows;
  const columns = Math.ceil(width / factor);
  return (top, num) => {
    const rows = Math.min(num * factor, height - top * factor);
    const pixels = readRows(top * factor, rows);
    const means = new Uint8ClampedArray(columns * num * 4);
    for (let i = 0; i < means.length; i++) {
      const column = (i >> 2) % columns;
      const above = Math.floor((i >> 2) / columns) * factor;
      const below = Math.min(above + factor, rows);
      const right = Math.min((column + 1) * factor, width);
      let sum = 0;
      for (let y = above; y < below; y++) {
        for (let x = column * factor; x < right; x++) sum += pixels[(y * width + x) * 4 + (i & 3)];
      }
      means[i] = Math.round(sum / ((below - above) * (right - column * factor)));
    }
    return means;
  };
}

/**
 * Returns, for each of `out` new pixels along one axis, the first old pixel that it is made of, their number, and
 * their weights.
 *
 * size: old pixels along the axis; start, end: the part of them that is used.
 */
export function makeWeights(size, start, end, out, interpolation) {
  const scale = Math.fround(end - start) / out;
  if (interpolation === "nearest") return makeNearest(start, scale, out);
  const { support, at } = FILTERS[interpolation];
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  const most = 2 * Math.ceil(reach) + 1;
  const first = new Int32Array(out);
  const count = new Int32Array(out);
  const weights = new Int32Array(out * most);
  for (let i = 0; i < out; i++) {
    const center = start + (i + 0.5) * scale;
    first[i] = Math.max(Math.trunc(center - reach + 0.5), 0);
    count[i] = Math.min(Math.trunc(center + reach + 0.5), size) - first[i];
    const raw = Array.from({ length: count[i] }, (_, k) => at((first[i] + k - center + 0.5) / stretch));
    const sum = raw.reduce((total, weight) => total + weight, 0);
    raw.forEach((weight, k) => {
      const fixed = (weight / sum) * (1 << BITS);
      weights[i * most + k] = Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    });
  }
  return { first, count, weights, most };
}

function makeNearest(start, scale, out) {
  const first = new Int32Array(out);
  let center = start + scale * 0.5;
  for (let i = 0; i < out; i++) {
    first[i] = Math.floor(center);
    center += scale; // added up, not multiplied: if a centre lies between two pixels, the last bit decides
  }
  return { first, count: new Int32Array(out).fill(1), weights: new Int32Array(out).fill(1 << BITS), most: 1 };
}

/** Returns whether Pillow resizes along y first: version 13 and later do if the height shrinks by far more. */
function verticalFirst(width, height, target, { interpolation, pillow_version: version }) {
  if (interpolation === "nearest" || Number.parseInt(version, 10) < 13) return false;
  const shorter = height - target.height;
  return shorter > 0 && shorter > 2 * (width - target.width);
}

const toByte = (sum) => Math.min(Math.max(sum >> BITS, 0), 255);

/**
 * Returns Uint8Array (H * W * 3), RGB: a picture as the model sees it.
 *
 * readRows(top, num) returns the RGBA bytes of `num` rows of the picture from row `top` on. It is called for a few rows
 * at a time, from top to bottom and only for those that are used, so a large photograph is never in memory twice. The
 * width and the height need not be whole: then the picture fills only a part of its last column or row.
 */
export function resize(width, height, readRows, description, rowsAtOnce = 256) {
  const [inputHeight, inputWidth] = description.image_size;
  const target = place(width, height, description);
  const [left, top, right, bottom] = target.box;
  const [columns, rows] = [Math.ceil(width), Math.ceil(height)];
  const across = makeWeights(columns, left, right, target.width, description.interpolation);
  const down = makeWeights(rows, top, bottom, target.height, description.interpolation);
  const tall = verticalFirst(columns, rows, target, description);

  const stride = (tall ? columns : target.width) * 3;
  const sums = new Int32Array(target.height * stride).fill(HALF); // of the pass along y
  const row = new Uint8Array(stride);
  const end = down.first[target.height - 1] + down.count[target.height - 1];
  let oldest = 0; // the first new row that still needs old ones
  for (let y = down.first[0]; y < end; y += rowsAtOnce) {
    const num = Math.min(rowsAtOnce, end - y);
    const strip = readRows(y, num);
    for (let k = 0; k < num; k++) {
      if (tall) dropAlpha(strip, k * columns * 4, row);
      else resizeRow(strip, k * columns * 4, 4, row, 0, across);
      while (down.first[oldest] + down.count[oldest] <= y + k) oldest++;
      for (let i = oldest; i < target.height && down.first[i] <= y + k; i++) {
        addRow(row, down.weights[i * down.most + y + k - down.first[i]], sums, i * stride);
      }
    }
  }

  const pixels = new Uint8Array(inputHeight * inputWidth * 3); // black
  for (let i = 0; i < target.height; i++) {
    const to = ((target.top + i) * inputWidth + target.left) * 3;
    for (let x = 0; x < stride; x++) row[x] = toByte(sums[i * stride + x]);
    if (tall) resizeRow(row, 0, 3, pixels, to, across);
    else pixels.set(row, to);
  }
  return pixels;
}

function dropAlpha(rgba, from, rgb) {
  for (let i = 0, k = from; i < rgb.length; i += 3, k += 4) {
    rgb[i] = rgba[k];
    rgb[i + 1] = rgba[k + 1];
    rgb[i + 2] = rgba[k + 2];
  }
}

function addRow(row, weight, sums, to) {
  for (let x = 0; x < row.length; x++) sums[to + x] += row[x] * weight;
}

/** Resizes one row of pixels, `step` bytes each, along x. */
function resizeRow(pixels, from, step, rgb, to, { first, count, weights, most }) {
  for (let x = 0; x < first.length; x++) {
    let red = HALF;
    let green = HALF;
    let blue = HALF;
    for (let k = 0, i = from + first[x] * step; k < count[x]; k++, i += step) {
      const weight = weights[x * most + k];
      red += pixels[i] * weight;
      green += pixels[i + 1] * weight;
      blue += pixels[i + 2] * weight;
    }
    rgb[to + x * 3] = toByte(red);
    rgb[to + x * 3 + 1] = toByte(green);
    rgb[to + x * 3 + 2] = toByte(blue);
  }
}
