// Texts to embeddings, from wherever they can be had first.
//
//     const encoder = await TextEncoder.open(model, { server: config.server });
//     const { embeddings, cut } = await encoder.encode(prompts, { onConsent });
//     const background = await encoder.background(labels);
//
// In this order: what was embedded before, on this device; the site's presets; the server, if its
// embedding space is the model's; and the model's text tower on this device, after people have
// agreed to its size. It runs in a worker, which is ended when it has nothing to do.

import { ApiError, call, isAbort } from "../shared/api.js";
import { aborted, InferenceError, reasonOf } from "./errors.js";
import { recall, remember } from "./text_cache.js";
import { askServer, readPresets } from "./text_sources.js";
import { openTokens, TextTower, textTowerBytes } from "./text_tower.js";
import { WorkerFailure } from "./worker_calls.js";
import { backgroundFor } from "./zero_shot.js";

/** @import { Model } from "./models.js" */
/** @import { OnProgress } from "./files.js" */

/**
 * @typedef {object} EncodeOptions
 * @property {(bytes: number) => Promise<boolean>} [onConsent] asks people whether the text tower may
 *   be downloaded; without it, it is not
 * @property {OnProgress} [onProgress] of that download
 * @property {(done: number, total: number) => void} [onEncoded] texts that the text tower has encoded
 * @property {AbortSignal} [signal]
 */

const IDLE_MS = 10_000; // people add one label after the other

/** The answer to the question whether the text tower may be downloaded was no. */
export class ConsentRefused extends Error {
  /** @param {number} missing how many texts have no embedding */
  constructor(missing) {
    const texts = missing === 1 ? "One text" : `${missing} texts`;
    super(
      `${texts} cannot be compared with pictures, as the model's text tower was not downloaded.`,
    );
    this.name = "ConsentRefused";
    this.missing = missing;
  }
}

/** Embeds texts for one model. */
export class TextEncoder {
  /** @type {TextTower | null} */
  #tower = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #idle;
  /** @type {Promise<Map<string, Float32Array>> | undefined} */
  #presets;
  /** @type {Promise<import("./tokens.js").Tokens> | undefined} */
  #tokens;
  #turn = Promise.resolve();
  #closed = false;

  /**
   * Use `open`.
   * @param {Model} model
   * @param {{texts: number} | null} limits of the server's requests; null: there is no such server
   */
  constructor(model, limits) {
    this.model = model;
    this.limits = limits;
  }

  /**
   * Find out who can embed texts of a model.
   * @param {Model} model
   * @param {{server: boolean, info?: any}} options server: whether there is one; info: what its
   *   `/info` says, if that is known already
   * @returns {Promise<TextEncoder>}
   */
  static async open(model, { server, info = null }) {
    const about = server ? (info ?? (await call("GET", "info").catch(() => null))) : null;
    return new TextEncoder(model, about?.space_id === model.space_id ? about.limits : null);
  }

  /**
   * Return the embeddings of texts. One call works at a time; others wait.
   * @param {readonly string[]} texts
   * @param {EncodeOptions} [options]
   * @returns {Promise<{embeddings: Float32Array[], cut: string[]}>} embeddings: of unit length, one
   *   per text; cut: texts of which the model reads the beginning only
   * @throws {ConsentRefused}
   * @throws {ApiError} of the server, if this device cannot do it either
   * @throws {InferenceError} of the text tower
   * @throws {DOMException} an AbortError
   */
  async encode(texts, options = {}) {
    const wanted = [...new Set(texts)];
    const rows = await this.#inTurn(() => this.#find(wanted, options));
    const cut = await this.#cutOf(wanted, options.signal);
    return {
      embeddings: texts.map((text) => /** @type {Float32Array} */ (rows.get(text))),
      cut,
    };
  }

  /**
   * Return what "none of these" is compared with: embeddings of texts about something else.
   *
   * Nothing is downloaded but the presets, and the text tower is not used.
   * @param {readonly string[]} labels
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Float32Array[] | null>} null: they cannot be had
   */
  async background(labels, { signal } = {}) {
    const texts = await backgroundTexts();
    if (texts === null) return null;
    /** @type {Map<string, Float32Array>} */
    let rows;
    try {
      rows = await this.#inTurn(() => this.#known(texts, signal));
    } catch (error) {
      if (error instanceof ApiError || error instanceof InferenceError) return null;
      throw error;
    }
    if (texts.some((text) => !rows.has(text))) return null;
    const all = texts.map((text) => /** @type {Float32Array} */ (rows.get(text)));
    return backgroundFor(labels, texts, all);
  }

  /** End. Embeddings are kept. */
  close() {
    this.#closed = true;
    this.#endTower();
  }

  /** End the worker, if there is one. */
  #endTower() {
    clearTimeout(this.#idle);
    this.#tower?.close();
    this.#tower = null;
  }

  /**
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  #inTurn(work) {
    const result = this.#turn.then(work);
    this.#turn = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  /**
   * @param {string[]} texts
   * @param {EncodeOptions} options
   */
  async #find(texts, options) {
    options.signal?.throwIfAborted();
    /** @type {unknown} */
    let refusal;
    const rows = await this.#known(texts, options.signal, (error) => (refusal = error));
    const missing = texts.filter((text) => !rows.has(text));
    if (missing.length > 0) await this.#encodeHere(missing, rows, options, refusal);
    return rows;
  }

  /**
   * Return the embeddings that need no text tower on this device.
   * @param {string[]} texts
   * @param {AbortSignal | undefined} signal
   * @param {(error: unknown) => void} [onRefusal] gets why the server gave none
   * @returns {Promise<Map<string, Float32Array>>}
   */
  async #known(texts, signal, onRefusal = () => {}) {
    const { space_id } = this.model;
    const rows = await recall(space_id, texts);
    const missing = () => texts.filter((text) => !rows.has(text));
    if (missing().length > 0) {
      const presets = await this.#readPresets(signal);
      for (const text of missing()) {
        const row = presets.get(text);
        if (row !== undefined) rows.set(text, row);
      }
    }
    const left = missing();
    if (left.length > 0 && this.limits !== null) {
      try {
        const found = await askServer(left, space_id, this.limits, signal);
        const fresh = new Map(left.map((text, i) => [text, found[i]]));
        for (const [text, row] of fresh) rows.set(text, row);
        await remember(space_id, fresh);
      } catch (error) {
        if (isAbort(error) || !(error instanceof ApiError)) throw error;
        onRefusal(error);
      }
    }
    return rows;
  }

  /** @param {AbortSignal | undefined} signal */
  async #readPresets(signal) {
    const { presets, space_id } = this.model;
    if (!presets) return new Map();
    try {
      return await (this.#presets ??= readPresets(presets, space_id, signal));
    } catch (error) {
      this.#presets = undefined;
      if (signal?.aborted) throw error;
      return new Map(); // The other ways lead to the same embeddings.
    }
  }

  /**
   * Encode texts by the text tower on this device.
   * @param {string[]} texts
   * @param {Map<string, Float32Array>} rows which gets the embeddings
   * @param {EncodeOptions} options
   * @param {unknown} refusal why the server gave none, if it was asked
   */
  async #encodeHere(texts, rows, options, refusal) {
    const { onConsent, onProgress, onEncoded = () => {}, signal } = options;
    if (this.#tower === null) {
      const bytes = await textTowerBytes(this.model).catch((error) => {
        throw refusal ?? error;
      });
      const agreed = bytes === 0 || (await answerOf(onConsent?.(bytes) ?? false, signal));
      if (!agreed) throw new ConsentRefused(texts.length);
    }
    clearTimeout(this.#idle);
    try {
      for (const [i, text] of texts.entries()) {
        signal?.throwIfAborted();
        const row = await this.#encodeOne(text, { onProgress, signal });
        rows.set(text, row);
        await remember(this.model.space_id, new Map([[text, row]]));
        onEncoded(i + 1, texts.length);
      }
    } finally {
      this.#idle = setTimeout(() => this.#endTower(), IDLE_MS);
    }
  }

  /**
   * Encode a text, once more in a fresh worker if the worker ends.
   * @param {string} text
   * @param {import("./files.js").OpenOptions} options
   */
  async #encodeOne(text, options) {
    for (let again = false; ; again = true) {
      if (this.#closed) throw new InferenceError("closed", "The model was closed.");
      this.#tower ??= await TextTower.start(this.model, options);
      try {
        return await this.#tower.encode(text);
      } catch (error) {
        if (error instanceof WorkerFailure && !again) this.#endTower();
        else if (!this.#closed) throw notEncoded(error);
      }
    }
  }

  /**
   * Return the texts of which the model reads the beginning only.
   * @param {string[]} texts
   * @param {AbortSignal | undefined} signal
   */
  async #cutOf(texts, signal) {
    const room = this.model.context_length - 2;
    // A token has one byte at least, so most labels need no tokenizer.
    const long = texts.filter((text) => new Blob([text]).size > room);
    if (long.length === 0) return [];
    try {
      this.#tokens ??= openTokens(this.model, { signal });
      const { cut } = (await this.#tokens).rows(long);
      return long.filter((_, i) => cut[i]);
    } catch (error) {
      this.#tokens = undefined;
      if (isAbort(error)) throw error;
      // Without a tokenizer here, words are counted: each has one token at least.
      return long.filter((text) => text.trim().split(/\s+/).length > room);
    }
  }
}

/**
 * Return the texts of "none of these"; null: the site does not give them now.
 * @returns {Promise<string[] | null>}
 */
async function backgroundTexts() {
  try {
    const answer = await fetch(new URL("../labels/presets.json", import.meta.url));
    return answer.ok ? (await answer.json()).background : null;
  } catch {
    return null; // no connection, or something else than JSON
  }
}

/**
 * Wait for people's answer, or until nobody needs it any more.
 * @param {Promise<boolean> | boolean} answer
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<boolean>}
 */
function answerOf(answer, signal) {
  return new Promise((resolve, reject) => {
    signal?.addEventListener("abort", () => reject(aborted()), { once: true });
    Promise.resolve(answer).then(resolve, reject);
  });
}

/** @param {unknown} error */
function notEncoded(error) {
  return new InferenceError(
    "failed",
    `The model's text tower failed: ${reasonOf(error)}. Try again, or reload the page.`,
    { cause: error },
  );
}
