// Errors of one picture: others can be encoded all the same.

import { InferenceError } from "../inference/errors.js";
import { ApiError } from "../shared/api.js";
import { messageOf } from "../shared/errors.js";

/**
 * Return whether an error is of the picture alone, so that the others go on.
 * @param {unknown} error of an encoder, the server's too
 */
export function isOfPicture(error) {
  if (error instanceof InferenceError) return error.code === "bad_image";
  if (error instanceof ApiError) return [400, 413, 415, 422].includes(error.status);
  return error instanceof DOMException; // the file is gone, or may not be read
}

/**
 * Return what an error says to people.
 * @param {unknown} error
 */
export function pictureMessage(error) {
  if (error instanceof DOMException) return "The file cannot be read any more: add it again.";
  return messageOf(error);
}
