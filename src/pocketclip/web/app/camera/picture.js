// The picture: its source, and whether it moves, is frozen, paused, hidden or gone.

import { isAbort } from "../shared/api.js";
import { FrameLoop } from "./frame_loop.js";
import { SourceError, startProblem } from "./problems.js";

/** @typedef {import("./sources/moving.js").Source} Source */
/** @typedef {import("./problems.js").Problem} Problem */

/**
 * `empty`: no source yet. `still`: a photograph. `frozen`: a frame of a moving source is kept.
 * `ended`: a video at its end.
 * @typedef {"empty" | "starting" | "live" | "still" | "frozen" | "paused" | "ended" | "problem"} State
 */

/**
 * What encodes: see inference/image_encoder.js.
 * @typedef {object} Encoder
 * @property {(source: any, options?: {exact?: boolean}) => Promise<import("./frame_loop.js").Encoded>} encode
 */

/**
 * @typedef {object} Handlers
 * @property {() => void} onState
 * @property {(embedding: Float32Array, final: boolean) => void} onEmbedding final: no other follows
 * @property {(error: unknown) => void} onError of the encoder
 */

export class Picture {
  /** @type {State} */ state = "empty";
  /** @type {Source | null} */ source = null;
  /** Why there is no picture, in the state `problem`. */
  problem = /** @type {Problem | null} */ (null);
  /** @type {Encoder | null} */ #encoder = null;
  /** @type {Promise<unknown>} */ #inFlight = Promise.resolve();
  /** @type {(() => Promise<Source>) | null} */ #opener = null;
  /** @type {ImageBitmap | null} */ #kept = null;
  #generation = 0;

  /**
   * @param {HTMLCanvasElement} canvas for a frame that is kept
   * @param {import("./figures.js").Figures} figures
   * @param {Handlers} handlers
   */
  constructor(canvas, figures, handlers) {
    this.canvas = canvas;
    this.figures = figures;
    this.handlers = handlers;
    this.loop = new FrameLoop(figures, {
      encode: (source) => this.#encode(source),
      onResult: ({ embedding }) => handlers.onEmbedding(embedding, false),
      onError: (error) => handlers.onError(error),
    });
    document.addEventListener("visibilitychange", () => void this.#whenVisibilityChanges());
    // A page that is left, or kept in memory for going back, must not keep the camera.
    addEventListener("pagehide", () => void this.#suspend());
    addEventListener("pageshow", (event) => {
      if (event.persisted) void this.#resume();
    });
  }

  /** @returns {HTMLVideoElement | null} null: nothing that moves */
  get video() {
    const element = this.source?.element;
    return element instanceof HTMLVideoElement ? element : null;
  }

  /**
   * Use another encoder, or none for now.
   * @param {Encoder | null} encoder
   */
  setEncoder(encoder) {
    this.loop.stop(); // A frame that is in flight has the other encoder's embedding.
    this.#encoder = encoder;
    this.figures.reset();
    this.#set(this.state, this.problem);
    if (encoder !== null) this.#classifyKept();
  }

  /**
   * Use another source instead of the one that is there.
   * @param {() => Promise<Source>} opener fails with SourceError
   * @param {{keep?: boolean}} [options] keep: what is there stays until the other one can be shown
   */
  async open(opener, { keep = false } = {}) {
    const generation = ++this.#generation;
    if (!keep) {
      this.#drop();
      this.#opener = opener;
      this.#set("starting");
    }
    let source;
    try {
      source = await opener();
    } catch (error) {
      // A camera that was about to start is given up for a file that cannot be opened.
      const starting = this.state === "starting" && generation === this.#generation;
      if (starting) this.#fail(error);
      if (keep) throw error;
      return;
    }
    if (generation !== this.#generation) {
      source.stop(); // Another one was chosen meanwhile.
      return;
    }
    if (keep) this.#drop();
    this.#opener = opener;
    this.source = source;
    if (source.kind === "video") this.#watchVideo(/** @type {HTMLVideoElement} */ (source.element));
    this.figures.reset();
    this.#set(source.kind === "photo" ? "still" : "live");
    if (source.kind === "photo") this.#classifyKept();
    if (document.hidden) await this.#suspend();
  }

  /**
   * Follow a file, which ends, and in which people move about.
   * @param {HTMLVideoElement} video
   */
  #watchVideo(video) {
    const isShown = () => this.source?.element === video;
    video.addEventListener("ended", () => {
      if (isShown() && this.state === "live") this.#set("ended");
    });
    video.addEventListener("seeked", () => {
      const still = this.state === "ended" || this.state === "paused";
      if (isShown() && still) void this.#classifyStill(video);
    });
  }

  /** Try the source again that did not start, or was lost. */
  async retry() {
    if (this.#opener !== null) await this.open(this.#opener);
  }

  /**
   * Say that the source has ended by itself.
   * @param {Problem} problem
   */
  lost(problem) {
    this.#drop();
    this.#set("problem", problem);
  }

  /** Keep the frame that is shown now, and its result; or go on. */
  async toggleFreeze() {
    if (this.state === "frozen") {
      this.#release();
      this.#set("live");
      await this.source?.resume();
      return;
    }
    const { video } = this;
    if (this.state !== "live" || video === null) return;
    const generation = this.#generation;
    const kept = await createImageBitmap(video);
    if (generation !== this.#generation || this.state !== "live") return kept.close();
    this.#kept = kept;
    this.canvas.width = kept.width;
    this.canvas.height = kept.height;
    this.canvas.getContext("2d")?.drawImage(kept, 0, 0);
    this.#set("frozen");
    if (this.source?.kind === "video") await this.source.suspend();
    this.#classifyKept();
  }

  /** Let go of the camera, or take it up again; a video stops and goes on. */
  async togglePause() {
    if (this.state === "paused" || this.state === "ended") {
      await this.#restart();
    } else if (this.video !== null && (this.state === "live" || this.state === "frozen")) {
      this.#release();
      this.#set("paused");
      await this.source?.suspend();
    }
  }

  async #restart() {
    const generation = ++this.#generation;
    this.#set("starting");
    try {
      await this.source?.resume();
    } catch (error) {
      if (generation === this.#generation) this.#fail(error);
      return;
    }
    if (generation !== this.#generation) return;
    this.#set("live");
    if (document.hidden) await this.#suspend(); // People left before it ran.
  }

  async #whenVisibilityChanges() {
    if (document.hidden) await this.#suspend();
    else await this.#resume();
  }

  async #suspend() {
    this.loop.stop();
    if (this.state === "live" || this.state === "frozen") await this.source?.suspend();
  }

  async #resume() {
    if (this.state === "live") await this.#restart();
    else if (this.state === "frozen" && this.source?.kind === "camera") {
      try {
        await this.source.resume();
      } catch (error) {
        this.#fail(error);
      }
    }
  }

  /**
   * @param {State} state
   * @param {Problem | null} [problem]
   */
  #set(state, problem = null) {
    this.state = state;
    this.problem = problem;
    const { video } = this;
    const runs = state === "live" && this.#encoder !== null && !document.hidden;
    if (runs && video !== null) this.loop.start(video);
    else this.loop.stop();
    this.handlers.onState();
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#drop();
    this.#set("problem", error instanceof SourceError ? error.problem : startProblem(error));
  }

  #drop() {
    this.loop.stop();
    this.#release();
    this.source?.stop();
    this.source = null;
  }

  #release() {
    this.#kept?.close();
    this.#kept = null;
  }

  #classifyKept() {
    if (this.state === "frozen" && this.#kept !== null) void this.#classifyStill(this.#kept);
    if (this.state === "still" && this.source?.kind === "photo") {
      const { file } = /** @type {import("./sources/photo_file.js").PhotoSource} */ (this.source);
      void this.#classifyStill(file, { exact: true });
    }
  }

  /**
   * @param {any} picture
   * @param {{exact?: boolean}} [options]
   */
  async #classifyStill(picture, options) {
    const encoder = this.#encoder;
    if (encoder === null) return;
    const generation = this.#generation;
    const { state } = this;
    const isCurrent = () =>
      generation === this.#generation && state === this.state && encoder === this.#encoder;
    try {
      const { embedding, encodeMs } = await this.#encode(picture, options);
      if (!isCurrent()) return;
      this.figures.addResult(encodeMs, performance.now());
      this.handlers.onEmbedding(embedding, true);
    } catch (error) {
      if (isCurrent() && !isAbort(error)) this.handlers.onError(error);
    }
  }

  /**
   * Encode one picture at a time, the last one that was asked for at its end.
   * @param {any} picture
   * @param {{exact?: boolean}} [options]
   * @returns {Promise<import("./frame_loop.js").Encoded>}
   */
  #encode(picture, options) {
    const encoder = this.#encoder;
    if (encoder === null) return Promise.reject(new DOMException("no encoder", "AbortError"));
    const earlier = this.#inFlight.catch(() => undefined);
    const result = earlier.then(() => encoder.encode(picture, options));
    this.#inFlight = result;
    return result;
  }
}
