// Pictures to embeddings, in this browser.
//
//     const encoder = await ImageEncoder.open(model, { runtime: "auto", onProgress, signal });
//     const { embedding, encodeMs } = await encoder.encode(video);
//     encoder.close();
//
// The session runs in a worker. A stored picture is encoded first: a runtime that gives another
// embedding than the one exported is not used. A worker that fails is ended and started again.

import { load, save } from "../shared/storage.js";
import { aborted, InferenceError, reasonOf } from "./errors.js";
import { storeNote } from "./files.js";
import { grab } from "./grab.js";
import { ImageSession, LEAST_COSINE } from "./image_session.js";
import { nameOf, pathsOf } from "./paths.js";

/** @import { Model } from "./models.js" */
/** @import { OnProgress } from "./files.js" */
/** @import { Path } from "./paths.js" */
/** @import { Source } from "./grab.js" */

/**
 * @typedef {object} Encoded
 * @property {Float32Array} embedding (D,), of unit length
 * @property {number} encodeMs of the session alone
 * @property {boolean} exact whether the pixels were resized as `pocketclip` does, so that the
 *   embedding may meet those of an index
 * @property {number} frame how many pictures this encoder has encoded, with this one
 */

/**
 * @typedef {object} EncoderOptions
 * @property {"auto" | "wasm" | "webgpu"} [runtime] "auto" is wasm; WebGPU only where it is asked for
 * @property {OnProgress} [onProgress] of the downloads
 * @property {AbortSignal} [signal] gives up the start
 */

const MOST_FAILURES = 4; // in a row
const FAILURES_OF_A_PATH = 2; // in a row, then the next one is taken
const FRAMES_ON_WEBGPU = 400; // Safari ends the page at about 500
const TIMED_FRAMES = 3;

/** A picture that waits because another one is being encoded. */
/** @typedef {{run: () => void, drop: (error: Error) => void}} Waiting */

/** An image tower, ready. */
export class ImageEncoder {
  /** @type {Path[]} */
  #paths = [];
  /** @type {Path | null} */
  #used = null;
  /** @type {ImageSession | null} */
  #session = null;
  #failures = 0;
  #frames = 0;
  #busy = false;
  #closed = false;
  /** @type {Waiting | null} */
  #waiting = null;

  /**
   * Use `open`.
   * @param {Model} model
   */
  constructor(model) {
    this.model = model;
    /**
     * How the stored picture fared: its cosine to the exported embedding; null: there is none.
     * @type {{cosine: number, passed: boolean} | null}
     */
    this.check = null;
    /**
     * What people should know, each a sentence.
     * @type {string[]}
     */
    this.notes = [];
    /** How often the worker was started again after an error. */
    this.restarts = 0;
  }

  /**
   * Download what is missing, and start.
   * @param {Model} model
   * @param {EncoderOptions} [options]
   * @returns {Promise<ImageEncoder>}
   * @throws {InferenceError} `no_vendor`, `no_variant`, `check_failed`, `failed`, or of `openFile`
   * @throws {DOMException} an AbortError
   */
  static async open(model, { runtime = "auto", onProgress, signal } = {}) {
    const encoder = new ImageEncoder(model);
    encoder.#paths = await pathsOf(model, runtime, encoder.notes);
    await encoder.#start({ onProgress, signal });
    if (encoder.runtime === "webgpu") await encoder.#compare();
    if (storeNote() !== "") encoder.note(storeNote());
    return encoder;
  }

  /** "wasm" or "webgpu". */
  get runtime() {
    return this.#path.runtime;
  }

  /** The threads that the wasm runtime uses. */
  get threads() {
    return this.#path.threads;
  }

  /** What of the model runs, see `Variant`. */
  get variant() {
    return this.#path.variant;
  }

  /** The path of the newest session, which may have ended. */
  get #path() {
    if (this.#used === null) throw closed();
    return this.#used;
  }

  /**
   * Return the embedding of a picture, which stays the caller's.
   *
   * One is encoded at a time. While it is, one more may wait: of several, the newest. A worker that
   * fails is started again, and the picture is tried again.
   * @param {Source} source
   * @param {{exact?: boolean}} [options] exact: a file is resized as `pocketclip` does
   * @returns {Promise<Encoded>}
   * @throws {InferenceError} `superseded`: a newer picture came; `bad_image`; `closed`; `failed` or
   *   `check_failed`: this encoder is of no more use
   */
  async encode(source, { exact = false } = {}) {
    if (this.#closed) throw closed();
    if (this.#busy) await this.#turn();
    this.#busy = true;
    try {
      return await this.#encode(source, exact);
    } finally {
      const next = this.#waiting;
      this.#waiting = null;
      this.#busy = next !== null;
      next?.run();
    }
  }

  /** End the worker, which gives back its memory. */
  close() {
    this.#closed = true;
    this.#session?.close();
    this.#session = null;
    this.#waiting?.drop(closed());
    this.#waiting = null;
  }

  /** Wait until it is this picture's turn; of those that wait, the newest stays. */
  #turn() {
    return /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        const newer = "A newer picture is encoded instead.";
        this.#waiting?.drop(new InferenceError("superseded", newer));
        this.#waiting = { run: resolve, drop: reject };
      })
    );
  }

  /**
   * @param {Source} source
   * @param {boolean} exact
   * @returns {Promise<Encoded>}
   */
  async #encode(source, exact) {
    for (;;) {
      const session = await this.#ready();
      const { image } = session.path.variant;
      const photo = image.image_input === "photo";
      const { picture, transfer } = await grab(source, {
        preprocess: this.model.preprocess,
        photo,
        exact,
      });
      try {
        const result = await session.encode(picture, transfer);
        this.#failures = 0;
        return { ...result, frame: ++this.#frames };
      } catch (error) {
        if (this.#closed) throw closed();
        if (error instanceof InferenceError) throw error;
        await this.#restart(reasonOf(error));
      }
    }
  }

  /** Return the session; a fresh one, where browsers do not bear long ones. */
  async #ready() {
    if (this.#session === null) throw closed();
    if (this.runtime === "webgpu" && this.#session.frames >= FRAMES_ON_WEBGPU) {
      this.#session.close();
      await this.#start({});
    }
    return this.#session;
  }

  /**
   * Start again after an error.
   * @param {string} reason
   */
  async #restart(reason) {
    this.#session?.close();
    this.#failures++;
    this.restarts++;
    const [path, next] = this.#paths;
    if (this.#failures >= MOST_FAILURES) {
      this.close();
      throw new InferenceError(
        "failed",
        `The model stopped ${this.#failures} times in a row (${reason}). Reload the page; if that ` +
          "does not help, choose another model.",
      );
    }
    this.note(`The model was started again after an error: ${reason}.`);
    if (this.#failures % FAILURES_OF_A_PATH === 0 && next !== undefined) {
      this.note(`${nameOf(path)} is left, ${nameOf(next)} is used.`);
      this.#paths.shift();
    }
    await this.#start({});
  }

  /**
   * Start a worker on the first path that gives the right embedding.
   * @param {{onProgress?: OnProgress | undefined, signal?: AbortSignal | undefined}} options
   */
  async #start(options) {
    for (;;) {
      const path = this.#paths[0];
      /** @type {ImageSession | null} */
      let session = null;
      try {
        session = await ImageSession.start(this.model, path, options);
        await this.#verify(session);
        if (this.#closed) throw closed();
        if (options.signal?.aborted) throw aborted();
        this.#session = session;
        this.#used = path;
        return;
      } catch (error) {
        session?.close();
        if (options.signal?.aborted) throw aborted();
        if (error instanceof InferenceError && error.code !== "check_failed") throw error;
        this.#leave(path, error);
      }
    }
  }

  /**
   * Compare the embedding of the stored picture with the one that was exported.
   * @param {ImageSession} session
   */
  async #verify(session) {
    const stored = await session.encodeStored();
    if (stored === null) {
      this.check = null;
      this.note("This model has no stored picture: that it computes rightly could not be checked.");
      return;
    }
    const passed = stored.cosine >= LEAST_COSINE; // NaN fails
    this.check = { cosine: stored.cosine, passed };
    if (passed) return;
    const figure = stored.cosine.toFixed(4);
    throw new InferenceError(
      "check_failed",
      `its embedding of the stored picture is wrong (cosine ${figure}, not ${LEAST_COSINE})`,
    );
  }

  /**
   * Go on to the next path.
   * @param {Path} path
   * @param {unknown} error
   */
  #leave(path, error) {
    this.#paths.shift();
    const next = this.#paths[0];
    const reason = reasonOf(error);
    if (next === undefined) {
      const isWrong = error instanceof InferenceError;
      const code = isWrong ? "check_failed" : "failed";
      const also = isWrong ? "; if all are wrong, the model has to be exported again" : "";
      this.close();
      throw new InferenceError(
        code,
        `The model cannot be used in this browser: ${nameOf(path)} failed, ${reason}. Update the ` +
          `browser, or use another one${also}.`,
        { cause: error },
      );
    }
    this.note(`${nameOf(path)} is not used, ${nameOf(next)} is: ${reason}.`);
  }

  /** Say which runtime is faster here, if the processor's files are on the device. */
  async #compare() {
    const path = this.#path;
    const other = this.#paths.find(({ runtime }) => runtime === "wasm");
    if (other === undefined) return;
    const key = `times.${path.variant.variant}.${other.variant.variant}`;
    /** @type {{webgpu: number, wasm: number} | null} */
    let times = load(key, null);
    if (times === null) {
      times = await this.#time(other);
      if (times === null) return;
      save(key, times);
    }
    const slower = times.wasm < times.webgpu ? " The processor is faster: turn WebGPU off." : "";
    this.note(
      `WebGPU takes ${Math.round(times.webgpu)} ms a picture here, the processor ` +
        `${Math.round(times.wasm)} ms.${slower}`,
    );
  }

  /**
   * Return the milliseconds of a picture on WebGPU and on another path; null: that one does not
   * start, or would have to be downloaded.
   * @param {Path} other
   */
  async #time(other) {
    if (this.#session === null || !(await ImageSession.isOnDevice(other))) return null;
    const webgpu = await this.#session.timed(TIMED_FRAMES);
    /** @type {ImageSession | null} */
    let session = null;
    try {
      session = await ImageSession.start(this.model, other, {});
      return { webgpu, wasm: await session.timed(TIMED_FRAMES) };
    } catch {
      return null;
    } finally {
      session?.close();
    }
  }

  /**
   * Tell people something, once.
   * @param {string} text
   */
  note(text) {
    if (!this.notes.includes(text)) this.notes.push(text);
  }
}

function closed() {
  return new InferenceError("closed", "The model was closed.");
}
