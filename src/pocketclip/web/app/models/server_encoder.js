// The server's model in place of one in the page: pictures are sent to it.

import { isAbort, send } from "../shared/api.js";
import { bytesOfBase64, dataUri, floatsOf } from "../shared/base64.js";
import { squareJpeg } from "../shared/square.js";
import { InferenceError, notAPicture } from "../inference/errors.js";
import { serverModel } from "./model_facts.js";

const QUALITY = 0.92; // of a JPEG
const READ_BY_SERVER = /^image\/(jpeg|png|webp)$/;

/** Encodes as inference/image_encoder.js does. */
export class ServerEncoder {
  runtime = /** @type {const} */ ("server");
  /** @type {string[]} */ notes = [];
  #controller = new AbortController();

  /** @param {any} info what `/info` says */
  constructor(info) {
    this.model = serverModel(info);
    this.limit = Number(info.limits.image_bytes);
  }

  /**
   * Return the embedding of a picture, of its central square.
   *
   * A file is sent as it is, if the server reads its format; frames as a JPEG of the model's size.
   * @param {HTMLVideoElement | ImageBitmap | HTMLCanvasElement | Blob} source
   * @param {{exact?: boolean}} [options] exact: send a file as it is
   * @returns {Promise<{embedding: Float32Array, encodeMs: number}>} of unit length (D,), and the
   *   time until the server had answered
   * @throws {import("../shared/api.js").ApiError}
   * @throws {InferenceError} `other_space`: the server's model is another one now; `bad_image`
   */
  async encode(source, { exact = false } = {}) {
    const asIs =
      exact &&
      source instanceof Blob &&
      READ_BY_SERVER.test(source.type) &&
      source.size <= this.limit;
    const blob = asIs ? source : await this.#jpeg(source);
    const input = await dataUri(blob);
    const started = performance.now();
    const body = { input, modality: "image", encoding_format: "base64" };
    const answer = await send("POST", "v1/embeddings", body, { signal: this.#controller.signal });
    const { data, space_id } = await answer.json();
    if (space_id !== this.model.space_id) {
      throw new InferenceError("other_space", "The server has another model now: reload the page.");
    }
    const embedding = floatsOf(bytesOfBase64(data[0].embedding));
    return { embedding, encodeMs: performance.now() - started };
  }

  close() {
    this.#controller.abort();
  }

  /**
   * @param {HTMLVideoElement | ImageBitmap | HTMLCanvasElement | Blob} source
   * @returns {Promise<Blob>}
   */
  async #jpeg(source) {
    try {
      // Python reads transparent pixels as they are, which are black in most files.
      const options = { quality: QUALITY, background: "#000" };
      return await squareJpeg(source, this.model.image_size, options);
    } catch (error) {
      if (isAbort(error)) throw error;
      throw notAPicture(error);
    }
  }
}
