// The central square of a picture: what models see of it, and what stands for it in a list.

/**
 * Return the central square of a picture.
 * @param {number} width
 * @param {number} height
 */
export function centralSquare(width, height) {
  const side = Math.min(width, height);
  return { x: (width - side) / 2, y: (height - side) / 2, side };
}

/**
 * Return the central square of a picture as a JPEG.
 * @param {ImageBitmapSource} picture
 * @param {number} size of a side in pixels
 * @param {{quality?: number, background?: string}} [options] background: the colour behind
 *   transparent pixels
 * @returns {Promise<Blob>}
 * @throws {DOMException} the browser cannot read the picture
 */
export async function squareJpeg(picture, size, { quality = 0.8, background = "#fff" } = {}) {
  const bitmap = await createImageBitmap(picture);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.fillStyle = background;
  context.fillRect(0, 0, size, size);
  const { x, y, side } = centralSquare(bitmap.width, bitmap.height);
  context.drawImage(bitmap, x, y, side, side, 0, 0, size, size);
  bitmap.close();
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));
  if (blob === null) throw new DOMException("The browser made no JPEG.", "EncodingError");
  return blob;
}
