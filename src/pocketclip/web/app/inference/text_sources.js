// Embeddings of texts that somebody has computed already: the site's presets, or its server now.

import { ApiError, call } from "../shared/api.js";
import { bytesOfBase64, floatsOf } from "../shared/base64.js";
import { aborted, InferenceError } from "./errors.js";
import { openFile } from "./files.js";

/** @import { SiteFile } from "../shared/config.js" */

const MOST_WAITS = 5;
const LONGEST_WAIT = 30; // seconds
const CHARACTERS = 20_000; // of a request, so that other requests get their turn

/**
 * Return the embeddings in a file of presets, by their texts.
 * @param {SiteFile} file
 * @param {string} space the embedding space
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Map<string, Float32Array>>}
 * @throws {InferenceError} of `openFile`; `other_space`: the file is of another model
 */
export async function readPresets(file, space, signal) {
  const raw = JSON.parse(new TextDecoder().decode(await openFile(file, { signal })));
  if (raw.version !== 1 || raw.space_id !== space) {
    throw new InferenceError("other_space", "The presets of this site are of another model.");
  }
  const rows = floatsOf(bytesOfBase64(raw.embeddings));
  /** @type {string[]} */
  const prompts = raw.prompts;
  const width = rows.length / prompts.length;
  if (!Number.isInteger(width)) {
    throw new InferenceError("damaged", "The presets of this site are damaged: export them again.");
  }
  return new Map(prompts.map((text, i) => [text, rows.slice(width * i, width * (i + 1))]));
}

/**
 * Return the server's embeddings of texts, in their order.
 * @param {readonly string[]} texts
 * @param {string} space the embedding space that they must be of
 * @param {{texts: number}} limits of a request, as `/info` has them
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Float32Array[]>} of unit length
 * @throws {ApiError}
 * @throws {InferenceError} `other_space`: the server's model is another one now
 */
export async function askServer(texts, space, limits, signal) {
  const rows = [];
  for (let from = 0; from < texts.length;) {
    let to = from + 1;
    let characters = texts[from].length;
    while (to < texts.length && to - from < limits.texts && characters < CHARACTERS) {
      characters += texts[to++].length;
    }
    const answer = await patiently({ input: texts.slice(from, to) }, signal);
    if (answer.space_id !== space) {
      throw new InferenceError("other_space", "The server has another model now: reload the page.");
    }
    for (const { embedding } of answer.data) rows.push(floatsOf(bytesOfBase64(embedding)));
    from = to;
  }
  return rows;
}

/**
 * Ask for embeddings, again where the server asks to wait.
 * @param {{input: string[]}} body
 * @param {AbortSignal | undefined} signal
 */
async function patiently(body, signal) {
  for (let waits = 0; ; waits++) {
    try {
      const request = { ...body, encoding_format: "base64" };
      return await call("POST", "v1/embeddings", request, signal ? { signal } : {});
    } catch (error) {
      const busy = error instanceof ApiError && (error.status === 429 || error.status === 503);
      if (!busy || error.retryAfter === null || waits >= MOST_WAITS) throw error;
      await pause(Math.min(error.retryAfter, LONGEST_WAIT), signal);
    }
  }
}

/**
 * @param {number} seconds
 * @param {AbortSignal | undefined} signal
 */
function pause(seconds, signal) {
  return /** @type {Promise<void>} */ (
    new Promise((resolve, reject) => {
      if (signal?.aborted) throw aborted();
      const timer = setTimeout(resolve, 1000 * seconds);
      signal?.addEventListener(
        "abort",
        () => {
          clearTimeout(timer);
          reject(aborted());
        },
        { once: true },
      );
    })
  );
}
