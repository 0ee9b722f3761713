// SHA-256 (FIPS 180-4). The browser's own exists on secure origins only; this one everywhere.

/** The fractional parts of the cube roots of the first 64 primes. */
const K = new Int32Array(64);
/** Those of the square roots of the first 8. */
const START = new Int32Array(8);
for (let candidate = 2, found = 0; found < 64; candidate++) {
  let prime = true;
  for (let d = 2; d * d <= candidate; d++) if (candidate % d === 0) prime = false;
  if (!prime) continue;
  if (found < 8) START[found] = (candidate ** (1 / 2) % 1) * 2 ** 32;
  K[found++] = (candidate ** (1 / 3) % 1) * 2 ** 32;
}
const SLICE = 1 << 23; // bytes between two chances for the page to draw: about 50 ms

/** A hash of bytes that come in pieces. */
export class Sha256 {
  constructor() {
    this.state = START.slice();
    this.words = new Int32Array(64);
    this.block = new Uint8Array(64);
    this.filled = 0; // bytes in the block
    this.length = 0; // bytes in all
  }

  /**
   * Take more bytes.
   * @param {Uint8Array} bytes
   */
  update(bytes) {
    this.length += bytes.length;
    let at = 0;
    if (this.filled > 0) {
      at = Math.min(64 - this.filled, bytes.length);
      this.block.set(bytes.subarray(0, at), this.filled);
      this.filled += at;
      if (this.filled < 64) return this;
      compress(this.state, this.words, this.block, 0, 64);
    }
    const whole = at + ((bytes.length - at) & ~63);
    compress(this.state, this.words, bytes, at, whole);
    this.block.set(bytes.subarray(whole));
    this.filled = bytes.length - whole;
    return this;
  }

  /** Return the hash in hex. Nothing can be added after that. */
  hex() {
    const end = new Uint8Array(this.filled < 56 ? 64 : 128);
    end.set(this.block.subarray(0, this.filled));
    end[this.filled] = 0x80;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, Math.floor(this.length / 2 ** 29));
    view.setUint32(end.length - 4, (this.length << 3) >>> 0);
    compress(this.state, this.words, end, 0, end.length);
    return Array.from(this.state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }
}

/**
 * Return the SHA-256 of bytes in hex: by the browser where it has one, else by ours.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {{subtle?: SubtleCrypto | null}} [options] `null`: ours in any case
 */
export async function sha256(bytes, { subtle = globalThis.crypto?.subtle ?? null } = {}) {
  if (subtle !== null) {
    const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
    return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  const hash = new Sha256();
  for (let at = 0; at < bytes.length; at += SLICE) {
    hash.update(bytes.subarray(at, at + SLICE));
    if (at + SLICE < bytes.length) await new Promise((resolve) => setTimeout(resolve));
  }
  return hash.hex();
}

/**
 * Add whole blocks to a state.
 * @param {Int32Array} state
 * @param {Int32Array} words scratch of 64 words
 * @param {Uint8Array} bytes
 * @param {number} from
 * @param {number} to the end; a multiple of 64 after `from`
 */
function compress(state, words, bytes, from, to) {
  for (let at = from; at < to; at += 64) compressBlock(state, words, bytes, at, K);
}

/**
 * Add one block. A function of its own, which browsers optimise better than one long loop.
 * @param {Int32Array} state
 * @param {Int32Array} w
 * @param {Uint8Array} bytes
 * @param {number} at
 * @param {Int32Array} k
 */
function compressBlock(state, w, bytes, at, k) {
  for (let i = 0, p = at; i < 16; i++, p += 4) {
    w[i] = (bytes[p] << 24) | (bytes[p + 1] << 16) | (bytes[p + 2] << 8) | bytes[p + 3];
  }
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15];
    const y = w[i - 2];
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[i] = (((w[i - 16] + s0) | 0) + ((w[i - 7] + s1) | 0)) | 0;
  }
  let a = state[0];
  let b = state[1];
  let c = state[2];
  let d = state[3];
  let e = state[4];
  let f = state[5];
  let g = state[6];
  let h = state[7];
  for (let i = 0; i < 64; i++) {
    // Every sum is cut to 32 bits at once: longer ones would be computed in floating point.
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (((((h + s1) | 0) + (g ^ (e & (f ^ g)))) | 0) + ((k[i] + w[i]) | 0)) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) | (c & (a | b)))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}
