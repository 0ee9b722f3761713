// A model's text tower on this device: what it downloads, and the worker that runs it.

import { config, siteUrl } from "../shared/config.js";
import { threadCount } from "./device.js";
import { aborted, InferenceError, reasonOf } from "./errors.js";
import { bytesToDownload, openFile, openFiles } from "./files.js";
import { VENDOR_MISSING } from "./paths.js";
import { runtimeOf, variantFor } from "./models.js";
import { Tokens } from "./tokens.js";
import { importScript } from "./vendor_script.js";
import { WorkerCalls } from "./worker_calls.js";

/** @import { Model } from "./models.js" */
/** @import { OpenOptions } from "./files.js" */

const START_SECONDS = 180;
const TEXT_SECONDS = 60;

/**
 * Return what is needed to run a model's text tower here.
 * @param {Model} model
 * @throws {InferenceError} `no_vendor` or `no_variant`
 */
function neededBy(model) {
  const runtime = config.vendor && runtimeOf(config.vendor, "wasm");
  const library = config.vendor?.files["tokenizers.min.mjs"];
  if (!runtime || !library) throw new InferenceError("no_vendor", VENDOR_MISSING);
  const variant = variantFor(model, "wasm");
  if (variant === null) {
    throw new InferenceError("no_variant", `${model.name} has no form that this browser can run.`);
  }
  return { runtime, library, variant };
}

/**
 * Return how many bytes the text tower would download now.
 * @param {Model} model
 * @throws {InferenceError} it cannot run here
 */
export async function textTowerBytes(model) {
  const { runtime, variant } = neededBy(model);
  return bytesToDownload([runtime.wasm, variant.tokenizer, ...variant.text.files]);
}

/**
 * Return the model's tokenizer, for a page that wants to know which texts are cut.
 * @param {Model} model
 * @param {OpenOptions} options
 */
export async function openTokens(model, options) {
  const { library, variant } = neededBy(model);
  const bytes = await openFile(variant.tokenizer, options);
  const json = JSON.parse(new TextDecoder().decode(bytes));
  return new Tokens(await importScript(siteUrl(library.url)), json, model.context_length);
}

/** A text tower in a worker, from its start until it is ended. */
export class TextTower {
  /** @param {WorkerCalls} calls */
  constructor(calls) {
    this.calls = calls;
  }

  /**
   * Download what is missing, and start. If several threads fail, one is used.
   * @param {Model} model
   * @param {OpenOptions} options
   * @returns {Promise<TextTower>}
   * @throws {InferenceError} of `openFile`; `failed`: it cannot be started
   */
  static async start(model, { onProgress, signal } = {}) {
    const { runtime, library, variant } = neededBy(model);
    const { input, output, files } = variant.text;
    const opened = await openFiles([runtime.wasm, variant.tokenizer, ...files], {
      onProgress,
      signal,
    });
    const [wasm, tokenizer, graph, ...data] = opened;
    /** @type {Omit<import("./text_worker.js").TextTowerFiles, "threads">} */
    const about = {
      runtime: "wasm",
      script: siteUrl(runtime.script.url),
      loader: siteUrl(runtime.loader.url),
      wasm,
      graph,
      weights: data.map((one, i) => ({ path: files[i + 1].name, data: one })),
      input,
      output,
      library: siteUrl(library.url),
      tokenizer,
      contextLength: model.context_length,
    };
    const most = threadCount();
    try {
      return await TextTower.#open({ ...about, threads: most }, signal);
    } catch (error) {
      if (signal?.aborted) throw aborted();
      if (most === 1 || error instanceof InferenceError) throw notStarted(error);
    }
    return TextTower.#open({ ...about, threads: 1 }, signal).catch((error) => {
      throw signal?.aborted ? aborted() : notStarted(error);
    });
  }

  /**
   * @param {import("./text_worker.js").TextTowerFiles} about
   * @param {AbortSignal | undefined} signal
   */
  static async #open(about, signal) {
    const calls = new WorkerCalls(new URL("./text_worker.js", import.meta.url));
    const giveUp = () => calls.fail("the page gave it up");
    signal?.addEventListener("abort", giveUp);
    try {
      if (signal?.aborted) throw aborted();
      await calls.call("open", { ...about }, { seconds: START_SECONDS });
      return new TextTower(calls);
    } catch (error) {
      calls.fail("it could not be started");
      throw error;
    } finally {
      signal?.removeEventListener("abort", giveUp);
    }
  }

  /**
   * Return the unit embedding of a text.
   * @param {string} text
   * @returns {Promise<Float32Array>}
   */
  encode(text) {
    return this.calls.call("encode", { text }, { seconds: TEXT_SECONDS });
  }

  /** End the worker: only that gives its memory back. */
  close() {
    this.calls.fail("it was closed");
  }
}

/** @param {unknown} error */
function notStarted(error) {
  if (error instanceof InferenceError) return error; // its message says what to do
  return new InferenceError(
    "failed",
    `The model's text tower cannot be used in this browser: ${reasonOf(error)}. Use labels whose ` +
      "embeddings the site has, or a pocketclip server.",
    { cause: error },
  );
}
