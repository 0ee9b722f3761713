// The bytes of a download, inflated where they are compressed, and never more than was promised.

import { InferenceError } from "./errors.js";

/** Content that is not what the list of models promises. */
export class DamagedError extends Error {}

/**
 * Return the bytes of a stream.
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @param {object} promised
 * @param {number} promised.bytes how many there are, inflated
 * @param {boolean} promised.gzip whether they may be compressed; a host that declares the
 *   compression itself has browsers inflate it, so that the content tells which it is
 * @param {(loaded: number, compressed: boolean) => void} [onProgress] with bytes of the stream
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {DamagedError} if there are more or fewer bytes, or the compressed data are damaged
 */
export async function readWhole(body, { bytes, gzip }, onProgress = () => {}) {
  const reader = body.getReader();
  let loaded = 0;
  /** @type {unknown} */
  let broken; // why the connection failed, which is not the content's fault
  const read = () =>
    reader.read().catch((error) => {
      broken = error;
      throw error;
    });
  /** @type {Uint8Array<ArrayBuffer>} */
  let head = new Uint8Array(0);
  for (let ended = false; head.length < 2 && !ended;) {
    const { value, done } = await read();
    ended = done;
    if (value !== undefined) head = joined(head, value);
  }
  const compressed = gzip && head[0] === 0x1f && head[1] === 0x8b;
  if (compressed && !("DecompressionStream" in globalThis)) {
    reader.cancel().catch(() => {});
    throw new InferenceError(
      "no_inflate",
      "This browser is too old to unpack the model's files: update it, or use another one.",
    );
  }
  /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */
  const counted = new ReadableStream({
    start(controller) {
      if (head.length > 0) controller.enqueue(head);
      onProgress((loaded += head.length), compressed);
    },
    async pull(controller) {
      const { value, done } = await read();
      if (done) return controller.close();
      onProgress((loaded += value.length), compressed);
      controller.enqueue(value);
    },
    cancel: (reason) => reader.cancel(reason),
  });
  if (!compressed) return collect(counted, bytes);
  try {
    return await collect(counted.pipeThrough(new DecompressionStream("gzip")), bytes);
  } catch (error) {
    if (broken !== undefined) throw broken;
    if (error instanceof DamagedError || error instanceof RangeError) throw error;
    throw new DamagedError("its compressed data are damaged");
  }
}

/**
 * Return what a stream holds, which must be as long as promised.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {number} length
 */
async function collect(stream, length) {
  const out = new Uint8Array(length);
  const reader = stream.getReader();
  let filled = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    if (filled + value.length > length) {
      reader.cancel().catch(() => {});
      throw new DamagedError("it is longer than listed");
    }
    out.set(value, filled);
    filled += value.length;
  }
  if (filled < length) throw new DamagedError(`it has ${filled} of ${length} bytes`);
  return out;
}

/**
 * @param {Uint8Array<ArrayBuffer>} a
 * @param {Uint8Array<ArrayBuffer>} b
 */
function joined(a, b) {
  if (a.length === 0) return b;
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
