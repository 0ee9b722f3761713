// A photograph: chosen, taken by the device's own camera, dropped or pasted.

import { SourceError, problemOf } from "../problems.js";

/** One still picture. */
export class PhotoSource {
  kind = /** @type {const} */ ("photo");
  mirrors = false;

  /**
   * @param {Blob} file
   * @param {string} url
   */
  constructor(file, url) {
    this.element = document.createElement("img");
    this.element.alt = "The photograph that is classified";
    this.element.src = url;
    this.file = file;
    this.url = url;
  }

  /**
   * Show a photograph.
   * @param {Blob} file
   * @throws {SourceError} the browser cannot open it
   */
  static async open(file) {
    const source = new PhotoSource(file, URL.createObjectURL(file));
    try {
      await source.element.decode();
    } catch {
      source.stop();
      throw new SourceError(problemOf("not_image"));
    }
    return source;
  }

  async suspend() {}

  async resume() {}

  stop() {
    URL.revokeObjectURL(this.url);
  }
}

/**
 * Return the first image or video among what was dropped or pasted.
 * @param {DataTransfer | null} data
 * @returns {File | null}
 */
export function fileIn(data) {
  const files = [...(data?.files ?? [])];
  return files.find((one) => /^(image|video)\//.test(one.type)) ?? files[0] ?? null;
}
