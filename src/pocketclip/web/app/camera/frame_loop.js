// Takes the newest frame of a video whenever the encoder is free: one is in flight, none waits.

import { isAbort } from "../shared/api.js";
import { InferenceError } from "../inference/errors.js";

const RETRY = 1000; // ms after an error
const TRIES = 3; // errors in a row

/**
 * @typedef {object} Encoded
 * @property {Float32Array} embedding of unit length
 * @property {number} encodeMs what the encoder took
 */

/**
 * @typedef {object} Handlers
 * @property {(video: HTMLVideoElement) => Promise<Encoded>} encode the frame that is shown now
 * @property {(result: Encoded) => void} onResult
 * @property {(error: unknown) => void} onError the loop has stopped
 */

export class FrameLoop {
  /** @type {(() => void) | null} */ #unwatch = null;
  #generation = 0;
  #busy = false;
  /** @type {HTMLVideoElement | null} */ #fresh = null;
  #errors = 0;

  /**
   * @param {import("./figures.js").Figures} figures
   * @param {Handlers} handlers
   */
  constructor(figures, handlers) {
    this.figures = figures;
    this.handlers = handlers;
  }

  /** Whether frames are taken. */
  get running() {
    return this.#unwatch !== null;
  }

  /**
   * Take frames from now on.
   * @param {HTMLVideoElement} video
   */
  start(video) {
    if (this.running) return;
    this.#errors = 0;
    this.figures.interrupt();
    this.#unwatch = watchFrames(video, (count, now) => {
      this.figures.addFrame(count, now);
      this.#fresh = video;
      void this.#next();
    });
  }

  /** Take none; the result of one that is in flight is dropped. */
  stop() {
    this.#unwatch?.();
    this.#unwatch = null;
    this.#generation += 1;
    this.#fresh = null;
    this.figures.interrupt();
  }

  async #next() {
    const video = this.#fresh;
    if (this.#busy || video === null || !this.running) return;
    this.#busy = true;
    this.#fresh = null;
    const generation = this.#generation;
    try {
      const result = await this.handlers.encode(video);
      this.#errors = 0;
      if (generation === this.#generation) {
        this.figures.addResult(result.encodeMs, performance.now());
        this.handlers.onResult(result);
      }
    } catch (error) {
      if (generation === this.#generation && !isHarmless(error)) await this.#failed(error);
    } finally {
      this.#busy = false;
    }
    if (this.#fresh !== null) void this.#next();
  }

  /** @param {unknown} error */
  async #failed(error) {
    this.#errors += 1;
    if (this.#errors >= TRIES) {
      this.stop();
      this.handlers.onError(error);
      return;
    }
    const after = Number(/** @type {any} */ (error)?.retryAfter) * 1000 || RETRY;
    await new Promise((resolve) => setTimeout(resolve, after));
  }
}

/**
 * Return whether an error says only that there is no result this time: the next frame has one.
 * @param {unknown} error of the encoder
 */
export function isHarmless(error) {
  if (isAbort(error)) return true;
  return error instanceof InferenceError && /^(superseded|closed|bad_image)$/.test(error.code);
}

/**
 * Call a function for every new frame that a video shows.
 * @param {HTMLVideoElement} video
 * @param {(count: number, now: number) => void} onFrame frames shown so far, and the time in ms
 * @returns {() => void} stops it
 */
function watchFrames(video, onFrame) {
  let stopped = false;
  let handle = 0;
  if (typeof video.requestVideoFrameCallback === "function") {
    /** @type {VideoFrameRequestCallback} */
    const shown = (now, { presentedFrames }) => {
      if (stopped) return;
      handle = video.requestVideoFrameCallback(shown);
      onFrame(presentedFrames, now);
    };
    handle = video.requestVideoFrameCallback(shown);
    return () => {
      stopped = true;
      video.cancelVideoFrameCallback(handle);
    };
  }
  let count = 0;
  let last = -1;
  /** @param {number} now */
  const look = (now) => {
    if (stopped) return;
    handle = requestAnimationFrame(look);
    if (video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA || video.currentTime === last) return;
    last = video.currentTime;
    count += 1;
    onFrame(count, now);
  };
  handle = requestAnimationFrame(look);
  return () => {
    stopped = true;
    cancelAnimationFrame(handle);
  };
}
