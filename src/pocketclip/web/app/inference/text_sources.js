// Embeddings of texts that somebody has computed already: the site's presets, or its server now.

import { call } from "../shared/api.js";
import { bytesOfBase64, floatsOf } from "../shared/base64.js";
import { patiently } from "../shared/patience.js";
import { InferenceError } from "./errors.js";
import { openFile } from "./files.js";

/** @import { SiteFile } from "../shared/config.js" */

const PATIENCE = { tries: 6, most: 30, statuses: [429, 503] };
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
 * @throws {import("../shared/api.js").ApiError}
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
    const request = { input: texts.slice(from, to), encoding_format: "base64" };
    const answer = await patiently(
      () => call("POST", "v1/embeddings", request, signal ? { signal } : {}),
      { ...PATIENCE, signal },
    );
    if (answer.space_id !== space) {
      throw new InferenceError("other_space", "The server has another model now: reload the page.");
    }
    for (const { embedding } of answer.data) rows.push(floatsOf(bytesOfBase64(embedding)));
    from = to;
  }
  return rows;
}
