// A picture in the form that the worker takes. What is handed in stays the caller's.

import { decodeSquare, drawnSquare } from "./decode.js";
import { drawSquare, sizeOf } from "./draw.js";
import { workersCanDraw } from "./device.js";
import { InferenceError, notAPicture } from "./errors.js";

/** @import { Picture } from "./image_worker.js" */
/** @import { Preprocess } from "./models.js" */
/** @typedef {VideoFrame | ImageBitmap | HTMLVideoElement | HTMLCanvasElement | HTMLImageElement | Blob} Source */

/**
 * Return the message with a picture, and what of it is handed over.
 * @param {Source} source
 * @param {object} about
 * @param {Preprocess} about.preprocess
 * @param {boolean} about.photo whether the graph resizes
 * @param {boolean} about.exact whether a file is resized by our transform
 * @returns {Promise<{picture: Picture, transfer: Transferable[]}>}
 * @throws {InferenceError} `bad_image`: there is no picture in it
 */
export async function grab(source, { preprocess, photo, exact }) {
  if (source instanceof HTMLVideoElement && source.readyState < 2) {
    throw new InferenceError("bad_image", "There is no picture yet.");
  }
  if (exact && source instanceof Blob) {
    if (workersCanDraw()) return { picture: { file: source }, transfer: [] };
    const square = await decodeSquare(source, preprocess);
    return {
      picture: { pixels: square.pixels, exact: square.exact },
      transfer: [square.pixels.buffer],
    };
  }
  const frame = await frameOf(source);
  if (workersCanDraw() && !(frame instanceof HTMLElement)) {
    return { picture: { frame }, transfer: [frame] };
  }
  try {
    const pixels = photo ? drawSquare(frame) : drawnSquare(frame, preprocess);
    return { picture: { pixels }, transfer: [pixels.buffer] };
  } finally {
    if (!(frame instanceof HTMLElement)) frame.close();
  }
}

/**
 * Return a frame of our own, or the element itself where browsers give none.
 * @param {Source} source
 */
async function frameOf(source) {
  try {
    if ("VideoFrame" in globalThis) {
      if (source instanceof VideoFrame) return source.clone();
      if (source instanceof HTMLVideoElement) return new VideoFrame(source);
    }
  } catch {
    // Some videos have no frames to hand over: a bitmap has a copy.
  }
  if (source instanceof HTMLElement && !workersCanDraw()) return source;
  if (!(source instanceof Blob) && Math.min(...sizeOf(source)) === 0) {
    throw new InferenceError("bad_image", "There is no picture yet.");
  }
  try {
    if (!(source instanceof Blob)) return await createImageBitmap(source);
    return await createImageBitmap(source, { imageOrientation: "from-image" });
  } catch (error) {
    throw notAPicture(error);
  }
}
