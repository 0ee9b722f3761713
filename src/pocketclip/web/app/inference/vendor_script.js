// The scripts of others: onnxruntime-web and the tokenizers.

import { InferenceError } from "./errors.js";

/**
 * Import a script of the site.
 * @param {string} url
 * @returns {Promise<any>} the module
 * @throws {InferenceError} `damaged`: it is missing or damaged, or the connection was lost
 */
export async function importScript(url) {
  try {
    return await import(url);
  } catch (cause) {
    const name = new URL(url).pathname.split("/").pop();
    throw new InferenceError(
      "damaged",
      `${name} could not be loaded: check the connection, and reload the page; if that does not ` +
        "help, update the browser, or install or export the site's files again.",
      { cause },
    );
  }
}
