// The evaluation transform: RGBA pixels of any size to the pixels that an image tower expects.
//
// Equal to `pocketclip.preprocess.Preprocess` on the same decoded pixels: the shorter side becomes S,
// the centre is cropped, values are scaled. Resizing is separable, widths first, with weights of 22
// bits after the point and 8 bits between the passes, as Pillow documents it. Only pixels that the
// crop needs are computed. No page and no worker is needed: Node runs it too.

import { BITS, weightsOf } from "./resize_weights.js";

/**
 * The fields `preprocess` of a model's configuration.
 * @typedef {object} Preprocess
 * @property {number} size S, the side of the result
 * @property {"bilinear" | "bicubic"} interpolation
 * @property {readonly number[]} mean of three channels
 * @property {readonly number[]} std of three channels
 */

/** @import { Weights } from "./resize_weights.js" */

const HALF = 1 << (BITS - 1);
/** Pixels of the largest image that Python resizes whole; of a longer one, only the crop. */
const MAX_RESIZED = 1 << 24;

/**
 * What is cut out of an image, and how large it would be if it were resized whole.
 * @typedef {object} Geometry
 * @property {number} width of the whole image when its shorter side is S
 * @property {number} height
 * @property {number} left of the crop in it
 * @property {number} top
 */

/**
 * Return where the crop of an image is.
 * @param {number} width of the image
 * @param {number} height
 * @param {number} side S
 * @returns {Geometry}
 */
export function cropOf(width, height, side) {
  const long = Math.trunc((side * Math.max(width, height)) / Math.min(width, height));
  const [w, h] = width <= height ? [side, long] : [long, side];
  return { width: w, height: h, left: halfEven(w - side), top: halfEven(h - side) };
}

/**
 * Return half of a whole number; halves go to the even neighbour.
 * @param {number} value
 */
function halfEven(value) {
  const down = Math.floor(value / 2);
  return value % 2 === 1 && down % 2 === 1 ? down + 1 : down;
}

/**
 * Resizes and crops one image, which is handed over whole or in strips of rows.
 *
 *     const square = new Square(width, height, model.preprocess);
 *     square.add(rgba, 0);
 *     const pixels = square.finish(); // (S, S, 3)
 */
export class Square {
  /**
   * @param {number} width of the image
   * @param {number} height
   * @param {Preprocess} preprocess
   */
  constructor(width, height, preprocess) {
    if (!(width >= 1 && height >= 1)) throw new RangeError("the image has no pixels");
    const side = preprocess.size;
    let crop = cropOf(width, height, side);
    /** @type {[number, number]} */
    let across = [0, width];
    /** @type {[number, number]} */
    let down = [0, height];
    if (crop.width * crop.height > MAX_RESIZED) {
      const x = width / crop.width;
      const y = height / crop.height;
      across = [crop.left * x, (crop.left + side) * x];
      down = [crop.top * y, (crop.top + side) * y];
      crop = { width: side, height: side, left: 0, top: 0 };
    }
    const bicubic = preprocess.interpolation === "bicubic";
    this.side = side;
    this.width = width;
    this.columns = weightsOf(width, across, crop.width, crop.left, side, bicubic);
    this.rows = weightsOf(height, down, crop.height, crop.top, side, bicubic);
    // Since version 13, Pillow begins with the heights of an image that loses most of its pixels
    // there. Values are rounded and cut off to 8 bits between the passes, so the order matters.
    this.heightFirst = height > crop.height && height - crop.height > 2 * (width - crop.width);
    const last = side - 1;
    /** The first row of the image that is needed. */
    this.firstRow = this.rows.first[0];
    /** The row behind the last one that is needed. */
    this.endRow = this.rows.first[last] + this.rows.count[last];
    /** The first column that is needed. */
    this.firstColumn = this.columns.first[0];
    /** The column behind the last one that is needed. */
    this.endColumn = this.columns.first[last] + this.columns.count[last];
    const { firstRow, endRow, firstColumn, endColumn, heightFirst } = this;
    this.narrow = new Uint8ClampedArray(heightFirst ? 0 : (endRow - firstRow) * side * 3);
    this.sums = new Int32Array(heightFirst ? side * (endColumn - firstColumn) * 3 : 0).fill(HALF);
  }

  /**
   * Take rows of the image. Rows that are not needed are skipped.
   * @param {Uint8ClampedArray | Uint8Array} rgba rows of pixels
   * @param {number} top the first of the rows in the image
   * @param {number} [left] the column of the image that the rows begin with
   * @param {number} [width] pixels in a row; the image's without it
   */
  add(rgba, top, left = 0, width = this.width) {
    const end = top + rgba.length / (4 * width);
    if (this.heightFirst) this.#addHeights(rgba, top, end, left, width);
    else this.#addWidths(rgba, top, end, left, width);
  }

  /**
   * @param {Uint8ClampedArray | Uint8Array} rgba
   * @param {number} top
   * @param {number} end
   * @param {number} left
   * @param {number} width
   */
  #addWidths(rgba, top, end, left, width) {
    const { columns, firstRow, narrow, side } = this;
    const last = Math.min(this.endRow, end);
    for (let row = Math.max(firstRow, top); row < last; row++) {
      const from = 4 * ((row - top) * width - left);
      resizeRow(rgba, from, 4, columns, narrow, 3 * side * (row - firstRow));
    }
  }

  /**
   * @param {Uint8ClampedArray | Uint8Array} rgba
   * @param {number} top
   * @param {number} end
   * @param {number} left
   * @param {number} width
   */
  #addHeights(rgba, top, end, left, width) {
    const { firstColumn, rows, side, sums } = this;
    const wide = this.endColumn - firstColumn;
    for (let y = 0; y < side; y++) {
      const first = rows.first[y];
      const last = Math.min(first + rows.count[y], end);
      for (let row = Math.max(first, top); row < last; row++) {
        const from = 4 * ((row - top) * width + firstColumn - left);
        addRow(rgba, from, 4, rows.values[rows.stride * y + row - first], sums, 3 * wide * y, wide);
      }
    }
  }

  /**
   * Return the pixels, when all rows from `firstRow` to `endRow` were added.
   * @returns {Uint8ClampedArray<ArrayBuffer>} (S, S, 3)
   */
  finish() {
    const { columns, narrow, rows, side } = this;
    const across = 3 * side;
    const pixels = new Uint8ClampedArray(side * across);
    if (this.heightFirst) {
      const wide = 3 * (this.endColumn - this.firstColumn);
      const row = new Uint8ClampedArray(wide);
      for (let y = 0; y < side; y++) {
        roundTo(row, 0, this.sums.subarray(wide * y, wide * (y + 1)));
        resizeRow(row, -3 * this.firstColumn, 3, columns, pixels, across * y);
      }
      return pixels;
    }
    const sums = new Int32Array(across);
    for (let y = 0; y < side; y++) {
      sums.fill(HALF);
      const from = across * (rows.first[y] - this.firstRow);
      for (let i = 0; i < rows.count[y]; i++) {
        addRow(narrow, from + across * i, 3, rows.values[rows.stride * y + i], sums, 0, side);
      }
      roundTo(pixels, across * y, sums);
    }
    return pixels;
  }
}

/**
 * Write one row (S, 3) that was made of a wider or narrower one.
 * @param {Uint8ClampedArray | Uint8Array} row
 * @param {number} from where its first pixel is in `row`, or would be
 * @param {3 | 4} step values per pixel in `row`
 * @param {Weights} weights
 * @param {Uint8ClampedArray} out
 * @param {number} to where the result begins in `out`
 */
function resizeRow(row, from, step, weights, out, to) {
  const { count, first, stride, values } = weights;
  for (let x = 0; x < first.length; x++) {
    let p = from + step * first[x];
    let k = stride * x;
    const end = k + count[x];
    let red = HALF;
    let green = HALF;
    let blue = HALF;
    for (; k < end; k++, p += step) {
      const weight = values[k];
      red = (red + Math.imul(weight, row[p])) | 0;
      green = (green + Math.imul(weight, row[p + 1])) | 0;
      blue = (blue + Math.imul(weight, row[p + 2])) | 0;
    }
    out[to++] = red >> BITS;
    out[to++] = green >> BITS;
    out[to++] = blue >> BITS;
  }
}

/**
 * Add a row times a weight to sums of three channels.
 * @param {Uint8ClampedArray | Uint8Array} row
 * @param {number} from where it begins in `row`
 * @param {3 | 4} step values per pixel in `row`
 * @param {number} weight
 * @param {Int32Array} sums
 * @param {number} to where the sums begin
 * @param {number} pixels
 */
function addRow(row, from, step, weight, sums, to, pixels) {
  const end = to + 3 * pixels;
  for (let p = from; to < end; p += step, to += 3) {
    sums[to] += Math.imul(weight, row[p]);
    sums[to + 1] += Math.imul(weight, row[p + 1]);
    sums[to + 2] += Math.imul(weight, row[p + 2]);
  }
}

/**
 * Write sums as 8 bits.
 * @param {Uint8ClampedArray} out
 * @param {number} to
 * @param {Int32Array} sums
 */
function roundTo(out, to, sums) {
  for (let i = 0; i < sums.length; i++) out[to + i] = sums[i] >> BITS;
}

/**
 * Return an image resized and cropped: `Preprocess.to_uint8` of Python.
 * @param {Uint8ClampedArray | Uint8Array} rgba (H, W, 4), of which alpha is dropped
 * @param {number} width
 * @param {number} height
 * @param {Preprocess} preprocess
 * @returns {Uint8ClampedArray<ArrayBuffer>} (S, S, 3)
 */
export function toSquare(rgba, width, height, preprocess) {
  if (rgba.length !== 4 * width * height) {
    throw new RangeError(`${rgba.length} bytes are no RGBA image of ${width} x ${height}`);
  }
  const square = new Square(width, height, preprocess);
  square.add(rgba, 0);
  return square.finish();
}

/**
 * Return the input of the image tower.
 * @param {Uint8ClampedArray | Uint8Array} pixels (S, S, 3), or (S, S, 4) of which alpha is dropped
 * @param {Preprocess} preprocess
 * @param {Float32Array<ArrayBuffer>} [out] to be filled, if it can be used again
 * @returns {Float32Array<ArrayBuffer>} (3, S, S)
 */
export function toTensor(pixels, preprocess, out) {
  const area = preprocess.size ** 2;
  const channels = pixels.length / area;
  if (channels !== 3 && channels !== 4) {
    throw new RangeError(`${pixels.length} bytes are no image of side ${preprocess.size}`);
  }
  const tensor = out ?? new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    const table = scaled(preprocess.mean[channel] ?? 0, preprocess.std[channel] ?? 1);
    const base = channel * area;
    for (let i = 0, p = channel; i < area; i++, p += channels) {
      tensor[base + i] = table[pixels[p]];
    }
  }
  return tensor;
}

/**
 * Return the scaled value of each level, rounded to float32 after each step as in Python.
 * @param {number} mean
 * @param {number} std
 */
function scaled(mean, std) {
  const table = new Float32Array(256);
  const [m, s] = [Math.fround(mean), Math.fround(std)];
  for (let level = 0; level < 256; level++) {
    table[level] = Math.fround(Math.fround(level / 255) - m) / s;
  }
  return table;
}
