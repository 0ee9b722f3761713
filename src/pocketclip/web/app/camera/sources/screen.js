// A screen, a window or a tab that people share.

import { SourceError, problemOf } from "../problems.js";
import { clear, newVideo, playStream, stopTracks } from "./moving.js";

/** Whether this browser can share a screen: those of phones cannot. */
export function canShareScreen() {
  return typeof navigator.mediaDevices?.getDisplayMedia === "function";
}

/** Pictures of a screen. */
export class ScreenSource {
  kind = /** @type {const} */ ("screen");
  mirrors = false;

  /** @param {MediaStream} stream */
  constructor(stream) {
    this.element = newVideo();
    /** @type {MediaStream | null} */
    this.stream = stream;
  }

  /**
   * Let people choose what they share.
   * @param {import("./moving.js").WhenLost} whenLost
   * @throws {SourceError}
   */
  static async open(whenLost) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getDisplayMedia({ video: true, audio: false });
    } catch {
      throw new SourceError(problemOf("screen_denied"));
    }
    const source = new ScreenSource(stream);
    stream.getVideoTracks()[0]?.addEventListener("ended", () => {
      if (source.stream !== null) whenLost(problemOf("screen_ended"));
    });
    try {
      await playStream(source.element, stream);
    } catch (error) {
      source.stop();
      throw error;
    }
    return source;
  }

  // Sharing goes on: people would be asked again, and often they look at what they share.
  async suspend() {
    this.element.pause();
  }

  async resume() {
    await this.element.play().catch(() => undefined);
  }

  stop() {
    const stream = this.stream;
    this.stream = null;
    stopTracks(stream);
    clear(this.element);
  }
}
