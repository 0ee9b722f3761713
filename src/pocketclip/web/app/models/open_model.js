// Opens the image tower that people have chosen.

import { config } from "../shared/config.js";
import { InferenceError } from "../inference/errors.js";
import { ImageEncoder } from "../inference/image_encoder.js";
import { VENDOR_MISSING } from "../inference/paths.js";
import { ServerEncoder } from "./server_encoder.js";

/** @import { Choice } from "./choice.js" */

/**
 * Return what encodes pictures. Nothing is sent to the server unless that was chosen.
 * @param {Choice} choice
 * @param {{info: any, onProgress?: (loaded: number, total: number) => void,
 *   signal?: AbortSignal}} options info: what the server's `/info` says; null without one
 * @returns {Promise<ImageEncoder | ServerEncoder>}
 * @throws {InferenceError} its message says what to do
 * @throws {DOMException} an AbortError
 */
export async function openImageEncoder(choice, { info, onProgress, signal }) {
  if (choice.kind === "server") {
    if (info !== null) return new ServerEncoder(info);
    throw new InferenceError("no_server", "The server does not answer: try again later.");
  }
  if (config.vendor === null) throw new InferenceError("no_vendor", VENDOR_MISSING);
  return await ImageEncoder.open(choice.model, {
    runtime: choice.runtime,
    ...(onProgress && { onProgress }),
    ...(signal && { signal }),
  });
}
