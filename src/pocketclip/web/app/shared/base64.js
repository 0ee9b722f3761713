// Bytes and floats that travel as base64.

/**
 * Return the bytes of a text.
 * @param {string} text base64
 * @throws {DOMException} it is none
 */
export function bytesOfBase64(text) {
  return Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
}

/**
 * Return little-endian float32 values.
 * @param {Uint8Array} bytes four for each
 */
export function floatsOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = bytes.length >> 2;
  return Float32Array.from({ length: count }, (_, i) => view.getFloat32(4 * i, true));
}

/**
 * Return a file as a `data:` URI, with the media type that it has.
 * @param {Blob} blob
 * @returns {Promise<string>}
 * @throws {DOMException} it cannot be read any more
 */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
