// A video file, as it plays.

import { clear, newVideo, playing } from "./moving.js";

/** Pictures of a video file. */
export class VideoFileSource {
  kind = /** @type {const} */ ("video");
  mirrors = false;
  #wasPlaying = true;

  /** @param {string} url */
  constructor(url) {
    this.element = newVideo();
    this.element.src = this.url = url;
  }

  /**
   * Play a file.
   * @param {Blob} file
   * @throws {import("../problems.js").SourceError}
   */
  static async open(file) {
    const source = new VideoFileSource(URL.createObjectURL(file));
    try {
      await playing(source.element, "not_video");
    } catch (error) {
      source.stop();
      throw error;
    }
    return source;
  }

  async suspend() {
    this.#wasPlaying = !this.element.paused;
    this.element.pause();
  }

  async resume() {
    if (this.#wasPlaying) await this.element.play().catch(() => undefined);
  }

  stop() {
    clear(this.element);
    URL.revokeObjectURL(this.url);
  }
}
