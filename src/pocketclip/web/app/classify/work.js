// Encodes the images of the table, one after another.

import { patiently } from "../shared/patience.js";
import { isOfPicture, pictureMessage } from "../models/picture_error.js";

/** @typedef {import("./results.js").Item} Item */

/**
 * @typedef {object} Encoder
 * @property {(source: Blob, options: {exact: boolean}) => Promise<{embedding: Float32Array}>} encode
 */

/**
 * @typedef {object} WorkHandlers
 * @property {(item: Item) => void} onItem it is in another state
 * @property {() => void} onIdle nothing is encoded now
 * @property {(error: unknown) => void} onError the encoder is of no use
 */

const PATIENCE = { tries: 21, most: 30 }; // with a server that has too much to do

export class Work {
  /** @type {Encoder | null} */ #encoder = null;
  #form = "";
  #running = false;
  /** Whether people have stopped it. */
  stopped = false;

  /**
   * @param {readonly Item[]} items the table's own list
   * @param {WorkHandlers} handlers
   */
  constructor(items, handlers) {
    this.items = items;
    this.handlers = handlers;
  }

  get running() {
    return this.#running;
  }

  /**
   * Go on with an encoder; what another model has encoded is encoded again.
   * @param {Encoder | null} encoder null: wait for one
   * @param {string} form of the model: embeddings of another form are not mixed with its own
   * @returns {boolean} whether earlier embeddings are of no more use
   */
  setEncoder(encoder, form) {
    this.#encoder = encoder;
    if (encoder === null) return false;
    const isOther = form !== this.#form;
    this.#form = form;
    if (isOther) {
      for (const item of this.items) {
        if (item.state === "waiting") continue;
        Object.assign(item, { state: "waiting", embedding: null, result: null, why: "" });
        this.handlers.onItem(item);
      }
    }
    void this.run();
    return isOther;
  }

  stop() {
    this.stopped = true;
  }

  goOn() {
    this.stopped = false;
    void this.run();
  }

  /** Encode what waits. */
  async run() {
    if (this.#running) return;
    this.#running = true;
    try {
      for (;;) {
        const item = this.items.find((one) => one.state === "waiting");
        const encoder = this.#encoder;
        if (item === undefined || encoder === null || this.stopped) break;
        await this.#encode(item, encoder);
      }
    } finally {
      this.#running = false;
      this.handlers.onIdle();
    }
  }

  /**
   * @param {Item} item
   * @param {Encoder} encoder
   */
  async #encode(item, encoder) {
    this.#set(item, "encoding");
    try {
      const { embedding } = await patiently(
        () => encoder.encode(item.file, { exact: true }),
        PATIENCE,
      );
      if (this.#encoder !== encoder) this.#set(item, "waiting");
      else this.#set(item, "done", { embedding });
    } catch (error) {
      if (this.#encoder !== encoder) {
        this.#set(item, "waiting");
      } else if (isOfPicture(error)) {
        this.#set(item, "failed", { why: pictureMessage(error) });
      } else {
        this.#encoder = null;
        this.#set(item, "waiting");
        this.handlers.onError(error);
      }
    }
  }

  /**
   * @param {Item} item
   * @param {Item["state"]} state
   * @param {Partial<Item>} [more]
   */
  #set(item, state, more = {}) {
    Object.assign(item, { state, ...more });
    this.handlers.onItem(item);
  }
}
