// A picture to the square that the image tower reads, as Python makes it.
//
//     const { pixels, exact } = await decodeSquare(file, model.preprocess);
//     const pixels = drawnSquare(videoFrame, model.preprocess);
//
// The browser decodes, upright by EXIF and without colour management, as `open_image` of Python
// does; `pixels.js` resizes. For a page or a worker.

import { sizeOf } from "./draw.js";
import { InferenceError, notAPicture } from "./errors.js";
import { Square } from "./pixels.js";

/** @import { Drawable } from "./draw.js" */
/** @import { Preprocess } from "./pixels.js" */

/**
 * @typedef {object} DecodedSquare
 * @property {Uint8ClampedArray<ArrayBuffer>} pixels (S, S, 3)
 * @property {number} width of the whole picture, upright
 * @property {number} height
 * @property {boolean} exact whether the colours of translucent pixels are those of the file
 */

const STRIP = 1 << 22; // pixels that are read at a time: phones limit canvases and memory

/**
 * Decode, resize and crop a picture.
 *
 * Transparency is dropped and not blended: Python reads the colours of transparent pixels too. A
 * canvas has lost them, so those pictures go through WebGL.
 * @param {Blob} blob
 * @param {Preprocess} preprocess
 * @returns {Promise<DecodedSquare>}
 * @throws {InferenceError} `bad_image`: the browser cannot read it
 */
export async function decodeSquare(blob, preprocess) {
  const bitmap = await decode(blob);
  const { width, height } = bitmap;
  try {
    const drawn = resize(bitmap, preprocess, canvasReader(bitmap));
    if (drawn.opaque) return { pixels: drawn.pixels, width, height, exact: true };
    const pixels = resizeByWebgl(bitmap, preprocess);
    return { pixels: pixels ?? drawn.pixels, width, height, exact: pixels !== null };
  } finally {
    bitmap.close();
  }
}

/**
 * Resize and crop what the browser can draw, such as a frame of the camera.
 *
 * Scaling by a canvas would be 8 to 15 ms faster at 1280 x 720, and gives other embeddings.
 * @param {Drawable} picture
 * @param {Preprocess} preprocess
 * @returns {Uint8ClampedArray<ArrayBuffer>} (S, S, 3)
 * @throws {InferenceError} `bad_image`: it has no pixels yet
 */
export function drawnSquare(picture, preprocess) {
  if (Math.min(...sizeOf(picture)) === 0) {
    throw new InferenceError("bad_image", "There is no picture yet.");
  }
  return resize(picture, preprocess, canvasReader(picture)).pixels;
}

/** @param {Blob} blob */
async function decode(blob) {
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch (error) {
    throw notAPicture(error);
  }
}

/**
 * Reads pixels of a picture, RGBA.
 * @callback Reader
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 * @returns {Uint8ClampedArray | Uint8Array}
 */

/**
 * @param {Drawable} picture
 * @param {Preprocess} preprocess
 * @param {Reader} read
 */
function resize(picture, preprocess, read) {
  const square = new Square(...sizeOf(picture), preprocess);
  const { firstColumn, endColumn, firstRow, endRow } = square;
  const wide = endColumn - firstColumn;
  const most = Math.max(1, Math.floor(STRIP / wide));
  let opaque = true;
  for (let top = firstRow; top < endRow; top += most) {
    const strip = read(firstColumn, top, wide, Math.min(most, endRow - top));
    opaque &&= isOpaque(strip);
    square.add(strip, top, firstColumn, wide);
  }
  return { pixels: square.finish(), opaque };
}

/** @param {Uint8ClampedArray | Uint8Array} rgba */
function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

function newCanvas() {
  return "OffscreenCanvas" in globalThis
    ? new OffscreenCanvas(1, 1)
    : document.createElement("canvas");
}

/** @type {OffscreenCanvasRenderingContext2D | null} */
let context = null;

/**
 * @param {Drawable} picture
 * @returns {Reader}
 */
function canvasReader(picture) {
  context ??= /** @type {OffscreenCanvasRenderingContext2D} */ (
    newCanvas().getContext("2d", { willReadFrequently: true })
  );
  const into = context;
  return (left, top, width, height) => {
    if (into.canvas.width !== width) into.canvas.width = width;
    if (into.canvas.height !== height) into.canvas.height = height;
    into.globalCompositeOperation = "copy"; // nothing of an earlier picture stays
    into.drawImage(picture, left, top, width, height, 0, 0, width, height);
    return into.getImageData(0, 0, width, height).data;
  };
}

/**
 * Return the square of colours that are not multiplied by their alpha; null: not possible here.
 * @param {ImageBitmap} bitmap
 * @param {Preprocess} preprocess
 */
function resizeByWebgl(bitmap, preprocess) {
  const gl = /** @type {WebGLRenderingContext | null} */ (newCanvas().getContext("webgl"));
  if (gl === null) return null;
  try {
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const complete = gl.checkFramebufferStatus(gl.FRAMEBUFFER) === gl.FRAMEBUFFER_COMPLETE;
    if (!complete || gl.getError() !== gl.NO_ERROR) return null; // larger than its textures
    const { pixels } = resize(bitmap, preprocess, (left, top, width, height) => {
      const rgba = new Uint8Array(4 * width * height);
      gl.readPixels(left, top, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
      return rgba;
    });
    return gl.getError() === gl.NO_ERROR ? pixels : null;
  } finally {
    gl.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow few at a time
  }
}
