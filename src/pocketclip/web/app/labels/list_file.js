// Files with lists of labels: ours (JSON), plain text with one label a line, and CSV.

import { readCsv } from "../shared/csv.js";
import { countOf } from "../shared/dom.js";
import { LabelError, addLabels, checked, cleanText, makeList, quoted } from "./label_list.js";

/** @typedef {import("./label_list.js").LabelList} LabelList */

/**
 * What a file holds.
 * @typedef {object} Imported
 * @property {LabelList[]} lists
 * @property {string[]} notes sentences about what was left out or changed
 */

const FORMAT = "pocketclip label lists";
const VERSION = 1;
/** Limit on a file of lists, in bytes. */
export const MAX_FILE = 4 << 20;
const MAX_LISTS = 200;
const FIELDS = ["name", "prefix", "suffix", "templates", "labels"];
const HEADINGS = new Set(["label", "labels", "class", "classes", "classname", "name"]);

/**
 * Return the JSON of a file with lists.
 * @param {LabelList[]} lists
 */
export function writeLists(lists) {
  return `${JSON.stringify({ format: FORMAT, version: VERSION, lists }, null, 1)}\n`;
}

/**
 * Return the text of a file: UTF-8, or UTF-16 with its mark.
 * @param {Uint8Array} bytes
 * @param {string} fileName for messages
 * @throws {LabelError} it is neither
 */
export function decodeText(bytes, fileName) {
  const mark = ((bytes[0] ?? 0) << 8) | (bytes[1] ?? 0);
  const encoding = mark === 0xfffe ? "utf-16le" : mark === 0xfeff ? "utf-16be" : "utf-8";
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw new LabelError(
      `${quoted(fileName)} is no text in UTF-8: save it as UTF-8, and try again.`,
    );
  }
}

/**
 * Return the lists in a file's text; its name says what it is.
 * @param {string} text
 * @param {string} fileName
 * @returns {Imported}
 * @throws {LabelError} it cannot be used
 */
export function readLists(text, fileName) {
  if (/^\s*[{[]/.test(text)) return readJson(text, fileName);
  const isTable = /\.[ct]sv$/i.test(fileName);
  const labels = isTable ? firstColumn(text, fileName) : text.split(/\r\n|[\n\r\u2028\u2029]/);
  const name = cleanText(fileName.replace(/\.[a-z]{1,4}$/i, "")).slice(0, 40) || "Imported";
  const { list, refused } = addLabels(makeList({ name }), labels);
  const wrong = refused.filter((one) => cleanText(one.text) !== "");
  if (list.labels.length === 0) throw new LabelError(`${quoted(fileName)} has no labels.`);
  return { lists: [list], notes: refusedNotes(wrong) };
}

/**
 * Return sentences about texts that were not added; of many, the first three.
 * @param {import("./label_list.js").Refused[]} refused
 */
export function refusedNotes(refused) {
  const notes = refused.slice(0, 3).map((one) => one.why);
  const more = refused.length - notes.length;
  if (more > 0) notes.push(`${countOf(more, "more label")} could not be added.`);
  return notes;
}

/**
 * @param {string} text
 * @param {string} fileName
 */
function firstColumn(text, fileName) {
  let rows;
  try {
    rows = readCsv(text);
  } catch {
    throw new LabelError(`${quoted(fileName)} has a quoted cell that does not end.`);
  }
  const labels = rows.map((row) => row[0] ?? "");
  return HEADINGS.has(cleanText(labels[0] ?? "").toLowerCase()) ? labels.slice(1) : labels;
}

/**
 * @param {string} text
 * @param {string} fileName
 * @returns {Imported}
 */
function readJson(text, fileName) {
  const what = quoted(fileName);
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new LabelError(`${what} is damaged: it begins as JSON, and is none.`);
  }
  if (raw?.format !== FORMAT) throw new LabelError(`${what} is not a file with lists of labels.`);
  if (raw.version !== VERSION) {
    throw new LabelError(
      `${what} has version ${cleanText(String(raw.version)).slice(0, 20)} of the format, and these pages read version ${VERSION}.`,
    );
  }
  if (!Array.isArray(raw.lists) || raw.lists.length === 0 || raw.lists.length > MAX_LISTS) {
    throw new LabelError(`${what} must have 1 to ${MAX_LISTS} lists.`);
  }
  /** @type {LabelList[]} */
  const lists = [];
  let changed = false;
  for (const [position, one] of raw.lists.entries()) {
    try {
      const read = checked(listOf(one));
      lists.push(read.list);
      changed ||= read.changed;
    } catch (error) {
      if (!(error instanceof LabelError)) throw error;
      throw new LabelError(`${what}, list ${position + 1}: ${error.message}`);
    }
  }
  return { lists, notes: changed ? ["Invisible characters and extra blanks were removed."] : [] };
}

/**
 * Return a list from JSON, with its types checked; its texts are not.
 * @param {unknown} raw
 * @returns {LabelList}
 * @throws {LabelError}
 */
export function listOf(raw) {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) {
    throw new LabelError("This is no list of labels.");
  }
  const values = /** @type {Record<string, unknown>} */ (raw);
  for (const key of Object.keys(values)) {
    if (!FIELDS.includes(key)) throw new LabelError(`The field ${quoted(key)} is not known.`);
  }
  const text = (/** @type {string} */ key) => {
    const value = values[key] ?? "";
    if (typeof value !== "string") throw new LabelError(`The field “${key}” is no text.`);
    return value;
  };
  const texts = (/** @type {string} */ key) => {
    const value = values[key] ?? [];
    if (!Array.isArray(value) || !value.every((one) => typeof one === "string")) {
      throw new LabelError(`The field “${key}” is no list of texts.`);
    }
    return /** @type {string[]} */ (value);
  };
  return {
    name: text("name"),
    prefix: text("prefix"),
    suffix: text("suffix"),
    templates: texts("templates"),
    labels: texts("labels"),
  };
}
