// A worker with the session of one variant on one runtime, and the check that it computes rightly.

import { config, siteUrl } from "../shared/config.js";
import { InferenceError } from "./errors.js";
import { bytesToDownload, openFiles } from "./files.js";
import { runtimeOf } from "./models.js";
import { VENDOR_MISSING } from "./paths.js";
import { cosine, percentile } from "./stats.js";
import { WorkerCalls } from "./worker_calls.js";

/** @import { Model, Runtime } from "./models.js" */
/** @import { Path } from "./paths.js" */
/** @import { OnProgress } from "./files.js" */
/** @import { Picture } from "./image_worker.js" */

const START_SECONDS = 180; // phones compile slowly
const FRAME_SECONDS = 30;
/** The least cosine to the embedding that the same file gave when it was exported. */
export const LEAST_COSINE = 0.999;

/** One worker, from its start until it is ended. */
export class ImageSession {
  /**
   * @param {WorkerCalls} calls
   * @param {Path} path
   * @param {Uint8Array<ArrayBuffer> | null} checkPixels
   * @param {number} side S
   */
  constructor(calls, path, checkPixels, side) {
    this.calls = calls;
    this.path = path;
    this.side = side;
    this.checkPixels = checkPixels;
    this.frames = 0;
  }

  /**
   * Start a worker.
   * @param {Model} model
   * @param {Path} path
   * @param {{onProgress?: OnProgress | undefined, signal?: AbortSignal | undefined}} options
   * @returns {Promise<ImageSession>}
   * @throws {InferenceError} the files cannot be had
   * @throws {Error} the session cannot be started
   */
  static async start(model, path, { onProgress, signal }) {
    const { image, check } = path.variant;
    const runtime = runtimeOfSite(path.runtime);
    const opened = await openFiles(filesOfPath(path), { onProgress, signal });
    const [wasm, graph] = opened;
    const weights = image.files
      .slice(1)
      .map(({ name }, i) => ({ path: name, data: opened[i + 2] }));
    const checkPixels = check ? opened[opened.length - 1] : null;
    const calls = new WorkerCalls(new URL("./image_worker.js", import.meta.url));
    const giveUp = () => calls.fail("the page gave it up");
    signal?.addEventListener("abort", giveUp);
    try {
      /** @type {import("./image_worker.js").TowerFiles} */
      const about = {
        runtime: path.runtime,
        threads: path.threads,
        script: siteUrl(runtime.script.url),
        loader: siteUrl(runtime.loader.url),
        wasm,
        graph,
        weights,
        input: image.input,
        output: image.output,
        photo: image.image_input === "photo",
        preprocess: model.preprocess,
      };
      await calls.call("open", { ...about }, { seconds: START_SECONDS });
    } catch (error) {
      calls.fail("it could not be started");
      throw error;
    } finally {
      signal?.removeEventListener("abort", giveUp);
    }
    return new ImageSession(calls, path, checkPixels, model.image_size);
  }

  /**
   * Return the embedding of a picture.
   * @param {Picture} picture
   * @param {Transferable[]} [transfer]
   * @returns {Promise<{embedding: Float32Array, encodeMs: number, exact: boolean}>}
   */
  async encode(picture, transfer = []) {
    const seconds = this.frames === 0 ? START_SECONDS : FRAME_SECONDS;
    const result = await this.calls.call("encode", { ...picture }, { transfer, seconds });
    this.frames++;
    return result;
  }

  /**
   * Encode the stored picture.
   * @returns {Promise<{cosine: number, encodeMs: number} | null>} null: there is none
   */
  async encodeStored() {
    const { check } = this.path.variant;
    if (!check || this.checkPixels === null) return null;
    const { embedding, encodeMs } = await this.encode({ pixels: this.checkPixels });
    return { cosine: cosine(embedding, check.embedding), encodeMs };
  }

  /**
   * Return the median of milliseconds that a picture takes, after a first one.
   * @param {number} count
   */
  async timed(count) {
    const side = this.side;
    const times = [];
    for (let i = 0; i <= count; i++) {
      const pixels = this.checkPixels ?? new Uint8Array(3 * side * side);
      const { encodeMs } = await this.encode({ pixels });
      if (i > 0) times.push(encodeMs);
    }
    return percentile(times, 50);
  }

  /**
   * Return whether a path needs no download.
   * @param {Path} path
   */
  static async isOnDevice(path) {
    return (await bytesToDownload(filesOfPath(path))) === 0;
  }

  /** End the worker: only that gives its memory back. */
  close() {
    this.calls.fail("it was closed");
  }
}

/** @param {Path} path */
function filesOfPath({ runtime, variant: { image, check } }) {
  return [runtimeOfSite(runtime).wasm, ...image.files, ...(check ? [check.pixels] : [])];
}

/** @param {Runtime} runtime */
function runtimeOfSite(runtime) {
  const found = config.vendor && runtimeOf(config.vendor, runtime);
  if (!found) throw new InferenceError("no_vendor", VENDOR_MISSING);
  return found;
}
