// Small pictures for the table, made when their row comes into view, and one at a time: a decoded
// photograph takes 50 MB.

import { squareJpeg } from "../shared/square.js";

const SIDE = 128; // pixels

export class Thumbnails {
  /** @type {Map<Element, Blob>} */ #wanted = new Map();
  /** @type {Set<Element>} */ #inView = new Set();
  #running = false;

  constructor() {
    this.observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (isIntersecting) this.#inView.add(target);
          else this.#inView.delete(target);
        }
        void this.#run();
      },
      { rootMargin: "300px" },
    );
  }

  /**
   * Show a picture's thumbnail in an image element once it comes into view.
   * @param {HTMLImageElement} image
   * @param {Blob} blob
   */
  show(image, blob) {
    this.#wanted.set(image, blob);
    this.observer.observe(image);
  }

  /**
   * Give back what an image element holds.
   * @param {HTMLImageElement} image
   */
  forget(image) {
    this.observer.unobserve(image);
    this.#wanted.delete(image);
    this.#inView.delete(image);
    if (image.src !== "") URL.revokeObjectURL(image.src);
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    for (;;) {
      const image = [...this.#inView].find((one) => this.#wanted.has(one));
      const blob = image && this.#wanted.get(image);
      if (!(image instanceof HTMLImageElement) || blob === undefined) break;
      // Where the browser cannot read the picture, the table says why.
      const small = await squareJpeg(blob, SIDE).catch(() => null);
      // It may have been forgotten meanwhile.
      if (this.#wanted.delete(image) && small !== null) image.src = URL.createObjectURL(small);
      this.observer.unobserve(image);
      this.#inView.delete(image);
    }
    this.#running = false;
  }
}
