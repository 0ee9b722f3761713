// CLIP's tokenizer in a browser: texts to rows of ids, cut and padded as Python does.
//
// The library `@huggingface/tokenizers` reads a bundle's tokenizer.json; it neither cuts nor pads.
// No page is needed: Node runs it too.

import { MAX_TEXT, cleanText } from "./clean_text.js";

/** @typedef {{encode(text: string): {ids: ArrayLike<number | bigint>}}} LibraryTokenizer */
/** @typedef {{Tokenizer: new (json: object, config: object) => LibraryTokenizer}} Library */

/**
 * B texts, T the context length.
 * @typedef {object} Rows
 * @property {BigInt64Array<ArrayBuffer>} ids (B, T): start, text, end, then zeros
 * @property {boolean[]} cut (B): whether the text was too long, and was cut
 */

export class Tokens {
  #tokenizer;
  #start;
  #end;

  /**
   * @param {Library} library the module `@huggingface/tokenizers`
   * @param {object} json the content of tokenizer.json
   * @param {number} contextLength T
   */
  constructor(library, json, contextLength) {
    this.#tokenizer = new library.Tokenizer(json, {});
    this.contextLength = contextLength;
    const ends = this.#tokenizer.encode("").ids;
    if (ends.length !== 2 || contextLength < 3) {
      throw new Error("The model's tokenizer.json is not one of pocketclip: export it again.");
    }
    this.#start = BigInt(ends[0]);
    this.#end = BigInt(ends[1]);
  }

  /**
   * Return the ids of texts.
   * @param {readonly string[]} texts
   * @returns {Rows}
   */
  rows(texts) {
    const length = this.contextLength;
    const ids = new BigInt64Array(texts.length * length);
    const cut = texts.map((text, row) => {
      const found = this.#tokenizer.encode(cleanText(text)).ids;
      const words = Math.min(found.length - 2, length - 2);
      const at = row * length;
      ids[at] = this.#start;
      for (let i = 1; i <= words; i++) ids[at + i] = BigInt(found[i]);
      ids[at + words + 1] = this.#end;
      return found.length > length || text.length > MAX_TEXT;
    });
    return { ids, cut };
  }
}
