// The label sets of `pocketclip fit` that a page offers: the server's, and a model's in a static
// site.

import { ApiError, call, send } from "../shared/api.js";
import { config } from "../shared/config.js";
import { LabelError } from "./label_list.js";
import { parseLabelSet } from "./label_set.js";

/** @typedef {import("./label_set.js").LabelSet} LabelSet */

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
