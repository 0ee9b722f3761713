// The label sets of `pocketclip fit` that a page offers: the server's, and a model's in a static
// site.

import { ApiError, call, send } from "../shared/api.js";
import { config } from "../shared/config.js";
import { openFile } from "../inference/files.js";
import { InferenceError } from "../inference/errors.js";
import { LabelError, quoted } from "./label_list.js";
import { MAX_SET_FILE, parseLabelSet } from "./label_set.js";

/** @typedef {import("./label_set.js").LabelSet} LabelSet */

/** @typedef {import("../shared/config.js").SiteFile} SiteFile */
/** @typedef {{name: string, file: SiteFile}} SiteSet */

/**
 * @typedef {object} OfferedSet
 * @property {string} name
 * @property {() => Promise<LabelSet>} read
 */

/**
 * Return the label sets of the server; none without one.
 * @returns {Promise<OfferedSet[]>}
 */
export async function serverSets() {
  if (!config.server) return [];
  try {
    const { label_sets: sets } = await call("GET", "label-sets");
    return sets.map((/** @type {{name: string}} */ { name }) => ({
      name,
      read: () => readFromServer(name),
    }));
  } catch (error) {
    if (error instanceof ApiError) return []; // the shell says that the server does not answer
    throw error;
  }
}

/** @param {string} name */
async function readFromServer(name) {
  try {
    const answer = await send("GET", `label-sets/${encodeURIComponent(name)}`);
    return parseLabelSet(await answer.text(), name);
  } catch (error) {
    if (error instanceof ApiError) throw new LabelError(error.message);
    throw error;
  }
}

/**
 * Return the label sets that a site has for a model.
 * @param {SiteSet[]} sets of the model in models.json
 * @returns {OfferedSet[]}
 */
export function siteSets(sets) {
  return sets.map(({ name, file }) => ({ name, read: () => readFromSite(name, file) }));
}

/**
 * @param {string} name
 * @param {SiteFile} file
 */
async function readFromSite(name, file) {
  if (file.bytes > MAX_SET_FILE)
    throw new LabelError(`${quoted(name)} is too large for a browser.`);
  try {
    return parseLabelSet(new TextDecoder().decode(await openFile(file)), name);
  } catch (error) {
    if (error instanceof InferenceError) throw new LabelError(error.message);
    throw error;
  }
}
