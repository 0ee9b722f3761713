// Inflates raw deflate (RFC 1951) in plain JavaScript, with a limit: for short texts of unknown
// origin, on every browser. Files go through `DecompressionStream`.

const LENGTH_BASE = [
  3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
  163, 195, 227, 258,
];
const LENGTH_BITS = [
  0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
const DISTANCE_BASE = [
  1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049,
  3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
const DISTANCE_BITS = [
  0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13,
];
const CODE_LENGTH_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
const LONGEST_CODE = 15;

/** A canonical Huffman code: how many codes have each length, and the symbols in their order. */
/** @typedef {{counts: Uint16Array, symbols: number[]}} Code */

/**
 * Return what raw deflate holds.
 * @param {Uint8Array} data
 * @param {number} limit on the bytes of the result
 * @returns {Uint8Array}
 * @throws {RangeError} the data are damaged, or hold more than `limit` bytes
 */
export function inflate(data, limit) {
  const reader = new BitReader(data);
  const output = new Output(limit);
  let last = false;
  while (!last) {
    last = reader.bits(1) === 1;
    const kind = reader.bits(2);
    if (kind === 0) copyStored(reader, output);
    else if (kind === 1) inflateBlock(reader, output, FIXED.literals, FIXED.distances);
    else if (kind === 2) {
      const codes = readCodes(reader);
      inflateBlock(reader, output, codes.literals, codes.distances);
    } else throw new RangeError("a block of an unknown kind");
  }
  if (!reader.atEnd) throw new RangeError("bytes after the end");
  return output.bytes();
}

class BitReader {
  /** @param {Uint8Array} data */
  constructor(data) {
    this.data = data;
    this.position = 0;
    this.held = 0;
    this.count = 0;
  }

  /** @param {number} wanted at most 16 */
  bits(wanted) {
    while (this.count < wanted) {
      this.held |= this.byte() << this.count;
      this.count += 8;
    }
    const value = this.held & ((1 << wanted) - 1);
    this.held >>>= wanted;
    this.count -= wanted;
    return value;
  }

  byte() {
    const value = this.data[this.position++];
    if (value === undefined) throw new RangeError("the data end early");
    return value;
  }

  alignToByte() {
    this.held = 0;
    this.count = 0;
  }

  get atEnd() {
    return this.position === this.data.length;
  }

  /** @param {Code} code */
  symbol({ counts, symbols }) {
    let value = 0;
    let first = 0;
    let index = 0;
    for (let length = 1; length <= LONGEST_CODE; length++) {
      value |= this.bits(1);
      const count = counts[length] ?? 0;
      if (value - count < first) return symbols[index + value - first] ?? 0;
      index += count;
      first = (first + count) << 1;
      value <<= 1;
    }
    throw new RangeError("a code that does not exist");
  }
}

class Output {
  /** @param {number} limit */
  constructor(limit) {
    this.limit = limit;
    this.buffer = new Uint8Array(Math.min(limit, 4096));
    this.length = 0;
  }

  /** @param {number} more bytes that follow */
  reserve(more) {
    const needed = this.length + more;
    if (needed > this.limit) throw new RangeError("more than the limit");
    if (needed <= this.buffer.length) return;
    const grown = new Uint8Array(Math.min(this.limit, Math.max(needed, 2 * this.buffer.length)));
    grown.set(this.buffer);
    this.buffer = grown;
  }

  /** @param {number} value */
  byte(value) {
    this.reserve(1);
    this.buffer[this.length++] = value;
  }

  /**
   * @param {number} distance
   * @param {number} length
   */
  repeat(distance, length) {
    if (distance > this.length) throw new RangeError("a distance before the beginning");
    this.reserve(length);
    this.buffer.copyWithin(this.length, this.length - distance, this.length);
    for (let done = Math.min(distance, length); done < length; done++) {
      this.buffer[this.length + done] = this.buffer[this.length + done - distance] ?? 0;
    }
    this.length += length;
  }

  bytes() {
    return this.buffer.slice(0, this.length);
  }
}

/**
 * @param {BitReader} reader
 * @param {Output} output
 */
function copyStored(reader, output) {
  reader.alignToByte();
  const length = reader.byte() | (reader.byte() << 8);
  const inverse = reader.byte() | (reader.byte() << 8);
  if (length !== (~inverse & 0xffff)) throw new RangeError("a length that does not fit its check");
  output.reserve(length);
  for (let left = length; left > 0; left--) output.byte(reader.byte());
}

/**
 * @param {BitReader} reader
 * @param {Output} output
 * @param {Code} literals
 * @param {Code} distances
 */
function inflateBlock(reader, output, literals, distances) {
  for (;;) {
    const symbol = reader.symbol(literals);
    if (symbol === 256) return;
    if (symbol < 256) {
      output.byte(symbol);
      continue;
    }
    const length = extended(reader, LENGTH_BASE, LENGTH_BITS, symbol - 257);
    const distance = extended(reader, DISTANCE_BASE, DISTANCE_BITS, reader.symbol(distances));
    output.repeat(distance, length);
  }
}

/**
 * @param {BitReader} reader
 * @param {number[]} base
 * @param {number[]} bits
 * @param {number} symbol
 */
function extended(reader, base, bits, symbol) {
  const start = base[symbol];
  if (start === undefined) throw new RangeError("a symbol that does not exist");
  return start + reader.bits(bits[symbol] ?? 0);
}

/** @param {BitReader} reader */
function readCodes(reader) {
  const literalCount = reader.bits(5) + 257;
  const distanceCount = reader.bits(5) + 1;
  const lengthCount = reader.bits(4) + 4;
  if (literalCount > 286 || distanceCount > 30) throw new RangeError("too many codes");
  const codeLengths = new Array(19).fill(0);
  for (const place of CODE_LENGTH_ORDER.slice(0, lengthCount)) codeLengths[place] = reader.bits(3);
  const lengthsCode = makeCode(codeLengths);
  /** @type {number[]} */
  const lengths = [];
  while (lengths.length < literalCount + distanceCount) {
    const symbol = reader.symbol(lengthsCode);
    if (symbol < 16) {
      lengths.push(symbol);
      continue;
    }
    const before = lengths.at(-1);
    if (symbol === 16 && before === undefined) throw new RangeError("nothing to repeat");
    const value = symbol === 16 ? (before ?? 0) : 0;
    const times =
      symbol === 16 ? 3 + reader.bits(2) : symbol === 17 ? 3 + reader.bits(3) : 11 + reader.bits(7);
    for (let n = 0; n < times; n++) lengths.push(value);
  }
  if (lengths.length !== literalCount + distanceCount) throw new RangeError("too many lengths");
  if (lengths[256] === 0) throw new RangeError("a block without an end");
  return {
    literals: makeCode(lengths.slice(0, literalCount)),
    distances: makeCode(lengths.slice(literalCount)),
  };
}

/**
 * Return the canonical code of these lengths, by symbol; 0: the symbol has none.
 * @param {number[]} lengths
 * @returns {Code}
 */
function makeCode(lengths) {
  const counts = new Uint16Array(LONGEST_CODE + 1);
  for (const length of lengths) counts[length] = (counts[length] ?? 0) + 1;
  counts[0] = 0;
  let left = 1;
  for (let length = 1; length <= LONGEST_CODE; length++) {
    left = 2 * left - (counts[length] ?? 0);
    if (left < 0) throw new RangeError("more codes than there can be");
  }
  const symbols = lengths
    .map((length, symbol) => ({ length, symbol }))
    .filter(({ length }) => length > 0)
    .sort((a, b) => a.length - b.length || a.symbol - b.symbol)
    .map(({ symbol }) => symbol);
  return { counts, symbols };
}

const FIXED = {
  literals: makeCode([
    ...new Array(144).fill(8),
    ...new Array(112).fill(9),
    ...new Array(24).fill(7),
    ...new Array(8).fill(8),
  ]),
  distances: makeCode(new Array(30).fill(5)),
};
