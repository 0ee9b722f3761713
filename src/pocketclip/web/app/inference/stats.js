// Figures over the newest values.

/** The newest values, and their median and 95th percentile. */
export class Recent {
  /** @param {number} [size] how many values count */
  constructor(size = 60) {
    this.size = size;
    /** @type {number[]} */
    this.values = [];
  }

  /**
   * Add a value.
   * @param {number} value
   */
  add(value) {
    if (this.values.push(value) > this.size) this.values.shift();
  }

  /** Forget all values. */
  clear() {
    this.values.length = 0;
  }

  /** The median; NaN without values. */
  get median() {
    return percentile(this.values, 50);
  }

  /** What 95 % of the values do not exceed; NaN without values. */
  get p95() {
    return percentile(this.values, 95);
  }
}

/**
 * Return a percentile of values, interpolated between neighbours as numpy does; NaN without values.
 * @param {readonly number[]} values
 * @param {number} percent
 */
export function percentile(values, percent) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (percent / 100) * (sorted.length - 1);
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

/**
 * Return the cosine of two vectors of any length but zero.
 * @param {ArrayLike<number>} a
 * @param {ArrayLike<number>} b of the same size
 */
export function cosine(a, b) {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return a.length === b.length ? dot / Math.sqrt(aa * bb) : NaN;
}
