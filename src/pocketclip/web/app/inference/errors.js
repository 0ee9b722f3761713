// Errors of models in the page. Pages show the message, and decide by the code.

import { messageOf } from "../shared/errors.js";

/**
 * @typedef {"no_vendor" | "no_models" | "no_variant" | "no_inflate" | "not_found" | "unreachable"
 *   | "damaged" | "refused" | "failed" | "check_failed" | "superseded" | "recycled" | "closed"
 *   | "bad_image" | "other_space" | "no_server"} InferenceErrorCode
 */

/** Something that a model cannot do here. */
export class InferenceError extends Error {
  /**
   * @param {InferenceErrorCode} code
   * @param {string} message a sentence for people that says what to do next
   * @param {{cause?: unknown}} [options]
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = "InferenceError";
    this.code = code;
  }
}

/**
 * Return the error of a file in which there is no picture for this browser.
 * @param {unknown} cause
 */
export function notAPicture(cause) {
  const message = "The browser cannot open this picture: choose a JPEG, PNG or WebP file.";
  return new InferenceError("bad_image", message, { cause });
}

/** Return the error that a page gets when it gave up the work itself. */
export function aborted() {
  return new DOMException("The work was given up.", "AbortError");
}

/**
 * Return the one line that an error says.
 * @param {unknown} error
 */
export function reasonOf(error) {
  return messageOf(error).split("\n", 1)[0].slice(0, 300);
}
