// The central square of a picture as the browser draws it, for graphs that resize it themselves.

import { centralSquare } from "../shared/square.js";
import { InferenceError } from "./errors.js";

const MOST_SIDE = 1024; // of pixels that a graph resizes itself

/** @typedef {HTMLVideoElement | HTMLCanvasElement | HTMLImageElement | ImageBitmap | VideoFrame} Drawable */

/** @type {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D | null} */
let context = null;

/**
 * Return the central square of a picture as RGBA (side, side, 4), of at most 1024 pixels a side.
 * @param {Drawable} picture
 */
export function drawSquare(picture) {
  const { x, y, side } = centralSquare(...sizeOf(picture));
  if (side === 0) throw new InferenceError("bad_image", "There is no picture yet.");
  const target = Math.min(side, MOST_SIDE);
  const into = canvasOf(target);
  into.imageSmoothingEnabled = true;
  into.imageSmoothingQuality = "high";
  into.drawImage(picture, x, y, side, side, 0, 0, target, target);
  return into.getImageData(0, 0, target, target).data;
}

/**
 * Return width and height of a picture in pixels.
 * @param {Drawable} picture
 * @returns {[number, number]}
 */
export function sizeOf(picture) {
  if ("videoWidth" in picture) return [picture.videoWidth, picture.videoHeight];
  if ("displayWidth" in picture) return [picture.displayWidth, picture.displayHeight];
  if ("naturalWidth" in picture) return [picture.naturalWidth, picture.naturalHeight];
  return [picture.width, picture.height];
}

/**
 * Return the context of a square canvas, which is used again.
 * @param {number} side
 */
function canvasOf(side) {
  if (context === null) {
    const canvas =
      "OffscreenCanvas" in globalThis
        ? new OffscreenCanvas(side, side)
        : document.createElement("canvas");
    context = /** @type {CanvasRenderingContext2D} */ (
      canvas.getContext("2d", { willReadFrequently: true, alpha: false })
    );
  }
  if (context.canvas.width !== side || context.canvas.height !== side) {
    context.canvas.width = side;
    context.canvas.height = side;
  }
  return context;
}
