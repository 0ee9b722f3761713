// The worker that runs an image tower: one session for its life. Ending it gives the memory back.

import { decodeSquare, drawnSquare } from "./decode.js";
import { drawSquare } from "./draw.js";
import { startSession } from "./ort_session.js";
import { toTensor } from "./pixels.js";
import { answerCalls } from "./worker_calls.js";
import { toUnit } from "./zero_shot.js";

/** @import { InferenceSession, Tensor } from "onnxruntime-web" */
/** @import { Preprocess } from "./models.js" */
/** @import { SessionFiles } from "./ort_session.js" */

/**
 * @typedef {object} ImageInput
 * @property {boolean} photo whether the input is uint8 pixels (1, H, W, 3) of any size
 * @property {Preprocess} preprocess
 */

/** @typedef {SessionFiles & ImageInput} TowerFiles */

/**
 * A picture: one of these.
 * @typedef {object} Picture
 * @property {VideoFrame | ImageBitmap} [frame] of which the central square counts
 * @property {Blob} [file] which is resized by our transform
 * @property {Uint8ClampedArray<ArrayBuffer> | Uint8Array<ArrayBuffer>} [pixels] of the square alone:
 *   (side, side, 3) or (side, side, 4)
 * @property {boolean} [exact] whether `pixels` are those of Python
 */

/** @type {{Tensor: typeof Tensor, session: InferenceSession, about: TowerFiles} | undefined} */
let tower;
/** @type {Float32Array<ArrayBuffer> | undefined} */
let tensor;

/**
 * Start the session.
 * @param {TowerFiles} about
 */
async function open(about) {
  const { ort, Tensor, session } = await startSession(about);
  tower = { Tensor, session, about };
  if (about.runtime === "webgpu") {
    const device = await ort.env.webgpu.device;
    device.lost.then((/** @type {{message: string}} */ { message }) =>
      self.postMessage({ lost: `the graphics processor was lost: ${message}` }),
    );
  }
  return { value: null };
}

/**
 * Return the unit embedding of a picture, the milliseconds of the session alone, and whether the
 * pixels were those of Python.
 * @param {Picture} picture
 */
async function encode(picture) {
  if (tower === undefined) throw new Error("the session was not started");
  const { Tensor, session, about } = tower;
  const { photo, preprocess } = about;
  const { pixels, exact } = await square(picture, photo, preprocess);
  /** @type {Tensor} */
  let fed;
  if (photo) {
    const rgb = withoutAlpha(pixels);
    const side = Math.sqrt(rgb.length / 3);
    fed = new Tensor("uint8", rgb, [1, side, side, 3]);
  } else {
    tensor = toTensor(pixels, preprocess, tensor);
    fed = new Tensor("float32", tensor, [1, 3, preprocess.size, preprocess.size]);
  }
  const before = performance.now();
  const results = await session.run({ [about.input]: fed });
  const encodeMs = performance.now() - before;
  const embedding = toUnit(
    /** @type {Float32Array} */ (results[about.output].data),
    "this picture",
  );
  return { value: { embedding, encodeMs, exact }, transfer: [embedding.buffer] };
}

/**
 * Return the pixels of a picture: (side, side, 3) or (side, side, 4). Its frame is closed.
 * @param {Picture} picture
 * @param {boolean} photo whether the graph resizes
 * @param {Preprocess} preprocess
 */
async function square({ frame, file, pixels, exact = false }, photo, preprocess) {
  if (pixels !== undefined) return { pixels, exact };
  if (file !== undefined) return decodeSquare(file, preprocess);
  if (frame === undefined) throw new Error("there is no picture");
  try {
    return { pixels: photo ? drawSquare(frame) : drawnSquare(frame, preprocess), exact };
  } finally {
    frame.close();
  }
}

/**
 * Return pixels (side, side, 3).
 * @param {Uint8ClampedArray<ArrayBuffer> | Uint8Array<ArrayBuffer>} pixels with three or four channels
 */
function withoutAlpha(pixels) {
  if (Number.isInteger(Math.sqrt(pixels.length / 3))) return new Uint8Array(pixels.buffer);
  const rgb = new Uint8Array((3 * pixels.length) / 4);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = pixels[from];
    rgb[to++] = pixels[from + 1];
    rgb[to++] = pixels[from + 2];
  }
  return rgb;
}

answerCalls({ open, encode });
