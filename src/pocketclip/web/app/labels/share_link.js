// A list of labels in the fragment of an address, which never leaves the browser:
// `#labels=VERSION BASE64URL`. Version 1 is JSON, version 2 is deflated JSON.
// A link may come from anybody: it is text only, within limits, and the page shows it before it
// is used.

import { bytesOfBase64 } from "../shared/base64.js";
import { inflate } from "../shared/inflate.js";
import { LabelError, checked, cleanText } from "./label_list.js";

/** @typedef {import("./label_list.js").LabelList} LabelList */

/** The name of the value in the fragment. */
export const LINK_NAME = "labels";
/** Limit on the value, in characters. */
export const MAX_LINK = 8192;
const MAX_JSON = 1 << 16; // bytes, inflated: a bomb is stopped there
const TEXTS = Object.freeze({ n: "name", p: "prefix", s: "suffix" });
const LISTS = Object.freeze({ t: "templates", l: "labels" });

/**
 * Return the value of the fragment for a list.
 * @param {LabelList} list
 * @returns {Promise<string>}
 * @throws {LabelError} the list is too long for a link
 */
export async function encodeLink(list) {
  /** @type {Record<string, unknown>} */
  const short = {};
  for (const [key, name] of Object.entries({ ...TEXTS, ...LISTS })) {
    const value = list[/** @type {keyof LabelList} */ (name)];
    if (value.length > 0) short[key] = value;
  }
  const bytes = new TextEncoder().encode(JSON.stringify(short));
  const deflated = await deflate(bytes);
  const value =
    deflated !== null && deflated.length < bytes.length
      ? `2${toBase64Url(deflated)}`
      : `1${toBase64Url(bytes)}`;
  if (value.length > MAX_LINK || bytes.length > MAX_JSON) {
    throw new LabelError("This list is too long for a link: export it as a file.");
  }
  return value;
}

/**
 * Return the list in a value of the fragment.
 * @param {string} value
 * @returns {{list: LabelList, changed: boolean}} `changed`: invisible characters were removed
 * @throws {LabelError} with one sentence
 */
export function decodeLink(value) {
  if (value.length > MAX_LINK) {
    throw new LabelError("The link's list of labels is longer than a link may be.");
  }
  const body = value.slice(1);
  if (!/^[12][A-Za-z0-9_-]*$/.test(value)) throw damaged();
  const bytes = value[0] === "2" ? inflated(fromBase64Url(body)) : fromBase64Url(body);
  let raw;
  try {
    raw = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw damaged();
  }
  return checked(fromRaw(raw));
}

/**
 * Return a list from JSON, whose types and fields are checked.
 * @param {unknown} raw
 * @returns {LabelList}
 */
function fromRaw(raw) {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) throw damaged();
  const list = { name: "", prefix: "", suffix: "", templates: [], labels: [] };
  for (const [key, value] of Object.entries(raw)) {
    if (Object.hasOwn(TEXTS, key) && typeof value === "string") {
      Object.assign(list, { [TEXTS[/** @type {keyof TEXTS} */ (key)]]: value });
    } else if (Object.hasOwn(LISTS, key) && isTexts(value)) {
      Object.assign(list, { [LISTS[/** @type {keyof LISTS} */ (key)]]: value });
    } else {
      throw damaged();
    }
  }
  if (list.labels.length === 0) throw new LabelError("The link has a list without labels.");
  if (cleanText(list.name) === "") list.name = "Labels from a link";
  return list;
}

/**
 * @param {unknown} value
 * @returns {value is string[]}
 */
function isTexts(value) {
  return Array.isArray(value) && value.every((one) => typeof one === "string");
}

/**
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
function inflated(bytes) {
  try {
    return inflate(bytes, MAX_JSON);
  } catch (error) {
    if (error instanceof RangeError) throw damaged();
    throw error;
  }
}

function damaged() {
  return new LabelError("The link's list of labels is damaged: ask for the link again.");
}

/**
 * Return deflated bytes; null: this browser cannot.
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
async function deflate(bytes) {
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (error) {
    if (error instanceof TypeError || error instanceof ReferenceError) return null;
    throw error;
  }
}

/** @param {Uint8Array} bytes */
function toBase64Url(bytes) {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** @param {string} text */
function fromBase64Url(text) {
  try {
    return bytesOfBase64(text.replaceAll("-", "+").replaceAll("_", "/"));
  } catch {
    throw damaged();
  }
}
