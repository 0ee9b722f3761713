// Weights of antialiased resizing in fixed point, as Pillow documents it.

/** Bits of a weight behind the point. */
export const BITS = 22;

/**
 * The weights of one axis: each output is a weighted sum of neighbouring inputs.
 * @typedef {object} Weights
 * @property {Int32Array} first the first input of each output
 * @property {Int32Array} count how many inputs each output has
 * @property {Int32Array} values the weights, `stride` per output, times 2^22
 * @property {number} stride
 */

/**
 * Return the weights of one axis.
 * @param {number} input pixels of the axis
 * @param {[number, number]} box begin and end of what is resized
 * @param {number} output pixels that the box becomes
 * @param {number} skip outputs that are left out at the beginning
 * @param {number} side outputs that are computed
 * @param {boolean} bicubic
 * @returns {Weights}
 */
export function weightsOf(input, box, output, skip, side, bicubic) {
  // Pillow takes the box as float32.
  const [begin, end] = [Math.fround(box[0]), Math.fround(box[1])];
  const scale = Math.fround(end - begin) / output;
  const spread = Math.max(scale, 1); // antialias: the filter covers all inputs of an output
  const support = (bicubic ? 2 : 1) * spread;
  const curve = bicubic ? cubic : triangle;
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(side);
  const count = new Int32Array(side);
  const values = new Int32Array(side * stride);
  if (begin === 0 && end === input && output === input) {
    for (let i = 0; i < side; i++) {
      first[i] = skip + i;
      count[i] = 1;
      values[i * stride] = 1 << BITS;
    }
    return { first, count, values, stride };
  }
  const weights = new Float64Array(stride);
  for (let i = 0; i < side; i++) {
    const centre = begin + (skip + i + 0.5) * scale;
    const low = Math.max(0, Math.trunc(centre - support + 0.5));
    const high = Math.min(input, Math.trunc(centre + support + 0.5));
    let sum = 0;
    for (let x = low; x < high; x++) {
      const weight = curve((x - centre + 0.5) * (1 / spread));
      weights[x - low] = weight;
      sum += weight;
    }
    for (let j = 0; j < high - low; j++) {
      const weight = (sum === 0 ? weights[j] : weights[j] / sum) * (1 << BITS);
      values[i * stride + j] = Math.trunc(weight + (weight < 0 ? -0.5 : 0.5));
    }
    first[i] = low;
    count[i] = high - low;
  }
  return { first, count, values, stride };
}

/** @param {number} x */
function triangle(x) {
  const far = Math.abs(x);
  return far < 1 ? 1 - far : 0;
}

/** @param {number} x */
function cubic(x) {
  const a = -0.5;
  const far = Math.abs(x);
  if (far < 1) return ((a + 2) * far - (a + 3)) * far * far + 1;
  return far < 2 ? (((far - 5) * far + 8) * far - 4) * a : 0;
}
