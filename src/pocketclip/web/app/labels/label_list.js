// A list of labels with its prompts: plain data that is never changed in place, so that an earlier
// list undoes a change.

import { countOf } from "../shared/dom.js";

/**
 * @typedef {object} LabelList
 * @property {string} name
 * @property {string} prefix what stands before a label; empty: nothing
 * @property {string} suffix what stands after it
 * @property {string[]} templates texts with `{}` or `{c}` for the label, whose embeddings are
 *   averaged; where there are any, prefix and suffix are not used
 * @property {string[]} labels
 */

/**
 * @typedef {object} Refused
 * @property {string} text
 * @property {string} why a sentence
 */

/** What a list may hold; lengths are in characters, `prompts` counts labels x templates. */
export const LIMITS = Object.freeze({
  labels: 1000,
  label: 200,
  name: 60,
  affix: 200,
  templates: 100,
  template: 300,
  prompts: 10_000,
});

/** A list or file that cannot be used; the message is one sentence for people. */
export class LabelError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "LabelError";
  }
}

// Characters that cannot be seen: controls, zero widths, and those that turn the direction of text.
// Joiners stay: Persian and emoji need them.
const INVISIBLE =
  /[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/**
 * Return a text without invisible characters, with single blanks, and without any at its ends.
 * @param {string} text
 */
export function cleanText(text) {
  return text
    .replace(/\p{Surrogate}/gu, "\ufffd")
    .replace(INVISIBLE, "")
    .replace(/[\s\u0085]+/g, " ")
    .trim();
}

/**
 * Return what two equal labels or names have in common: without case, in one Unicode form.
 * @param {string} text
 */
export function keyOf(text) {
  return cleanText(text.normalize("NFKC")).toLowerCase().normalize("NFC");
}

/**
 * Return a text for a message, cut where it is long.
 * @param {string} text
 */
export function quoted(text) {
  const clean = cleanText(text);
  const characters = [...clean];
  return `“${characters.length > 40 ? `${characters.slice(0, 39).join("")}…` : clean}”`;
}

/**
 * Return a list of these values; no labels and no prompt by default.
 * @param {Partial<LabelList>} [values]
 * @returns {LabelList}
 */
export function makeList(values = {}) {
  return { name: "Labels", prefix: "", suffix: "", templates: [], labels: [], ...values };
}

/**
 * Return whether two lists are the same, their names aside.
 * @param {LabelList} one
 * @param {LabelList} other
 */
export function sameContent(one, other) {
  return contentOf(one) === contentOf(other);
}

/** @param {LabelList} list */
function contentOf({ prefix, suffix, templates, labels }) {
  return JSON.stringify([prefix, suffix, templates, labels]);
}

// ---- Prompts

/**
 * Return a template's parts, which the label joins, as Python's `prompts.split_template`.
 * @param {string} template
 * @returns {string[]} one part only: it has no place for the label
 */
export function splitTemplate(template) {
  return template.replaceAll("{c}", "{}").split("{}");
}

/**
 * Return the prompts of a label: one, or one per template.
 * @param {LabelList} list
 * @param {string} label
 * @returns {string[]}
 */
export function promptsOf({ prefix, suffix, templates }, label) {
  if (templates.length > 0) return templates.map((one) => splitTemplate(one).join(label));
  return [cleanText(`${prefix} ${label} ${suffix}`)];
}

/**
 * Return the prompts of all labels, grouped by label.
 * @param {LabelList} list
 * @returns {{label: string, texts: string[]}[]}
 */
export function promptsOfList(list) {
  return list.labels.map((label) => ({ label, texts: promptsOf(list, label) }));
}

// ---- Changes

/**
 * Return the list with more labels at its end. A label that cannot be added is refused by itself.
 * @param {LabelList} list
 * @param {string[]} texts
 * @returns {{list: LabelList, added: string[], refused: Refused[]}}
 */
export function addLabels(list, texts) {
  const labels = [...list.labels];
  const keys = new Map(labels.map((label) => [keyOf(label), label]));
  const added = [];
  const refused = [];
  for (const text of texts) {
    const label = cleanText(text);
    const why = whyNot(label, keys, { ...list, labels });
    if (why !== null) {
      refused.push({ text, why });
      continue;
    }
    labels.push(label);
    keys.set(keyOf(label), label);
    added.push(label);
  }
  return { list: { ...list, labels }, added, refused };
}

/**
 * Return why a label cannot be added; null: it can.
 * @param {string} label clean
 * @param {Map<string, string>} keys the labels by their keys
 * @param {LabelList} list
 */
function whyNot(label, keys, list) {
  const same = keys.get(keyOf(label));
  if (label === "") return "A label needs at least one character.";
  if (label.length > LIMITS.label) {
    return `${quoted(label)} has ${label.length} characters; a label has at most ${LIMITS.label}.`;
  }
  if (same === label) return `${quoted(label)} is in the list already.`;
  if (same !== undefined) return `${quoted(label)} is in the list already, as ${quoted(same)}.`;
  return whyTooMany(list.labels.length + 1, list.templates.length);
}

/**
 * Return why so many labels and templates are too many; null: they are not.
 * @param {number} labels
 * @param {number} templates
 */
function whyTooMany(labels, templates) {
  if (labels > LIMITS.labels) {
    return `A list has at most ${LIMITS.labels.toLocaleString("en")} labels.`;
  }
  if (templates > LIMITS.templates) return `A list has at most ${LIMITS.templates} templates.`;
  if (labels * templates > LIMITS.prompts) {
    return (
      `${countOf(labels, "label")} with ${countOf(templates, "template")} make more than ` +
      `${LIMITS.prompts.toLocaleString("en")} prompts: use fewer of either.`
    );
  }
  return null;
}

/**
 * Return the list without a label.
 * @param {LabelList} list
 * @param {string} label
 */
export function removeLabel(list, label) {
  return { ...list, labels: list.labels.filter((one) => one !== label) };
}

/**
 * Return the list with another text for a label.
 * @param {LabelList} list
 * @param {string} label
 * @param {string} text
 * @returns {{list: LabelList, label: string}} the label as it is now
 * @throws {LabelError} the text is refused
 */
export function renameLabel(list, label, text) {
  const renamed = cleanText(text);
  const others = removeLabel(list, label);
  const keys = new Map(others.labels.map((one) => [keyOf(one), one]));
  const why = whyNot(renamed, keys, others);
  if (why !== null) throw new LabelError(why);
  const labels = list.labels.map((one) => (one === label ? renamed : one));
  return { list: { ...list, labels }, label: renamed };
}

/**
 * Return the list with its labels sorted without case, numbers by their values.
 * @param {LabelList} list
 * @param {string} [locale] of the sorting; by default the browser's
 */
export function sortLabels(list, locale) {
  const order = new Intl.Collator(locale, { sensitivity: "accent", numeric: true });
  return { ...list, labels: [...list.labels].sort(order.compare) };
}

/**
 * Return the list with another prompt.
 * @param {LabelList} list
 * @param {{prefix?: string, suffix?: string, templates?: string[]}} changes
 * @throws {LabelError} a text is refused
 */
export function withPrompt(list, changes) {
  return checked({ ...list, ...changes }).list;
}

/**
 * Return a list whose texts are clean, and whether they were changed for that.
 * @param {LabelList} list
 * @returns {{list: LabelList, changed: boolean}}
 * @throws {LabelError} the first text that cannot be used
 */
export function checked(list) {
  const affixes = [cleanText(list.prefix), cleanText(list.suffix)];
  for (const text of affixes) {
    if (text.length > LIMITS.affix) {
      throw new LabelError(`The prompt has more than ${LIMITS.affix} characters beside the label.`);
    }
  }
  const templates = list.templates.map(cleanText);
  for (const [position, template] of templates.entries()) checkTemplate(template, position);
  const tooMany = whyTooMany(list.labels.length, templates.length);
  if (tooMany !== null) throw new LabelError(tooMany);
  const bare = {
    name: checkedName(list.name),
    prefix: affixes[0] ?? "",
    suffix: affixes[1] ?? "",
    templates,
    labels: [],
  };
  const { list: whole, refused } = addLabels(bare, list.labels);
  if (refused[0] !== undefined) throw new LabelError(refused[0].why);
  const changed = list.name !== whole.name || !sameContent(list, whole);
  return { list: whole, changed };
}

/**
 * @param {string} template
 * @param {number} position
 */
function checkTemplate(template, position) {
  if (splitTemplate(template).length < 2) {
    throw new LabelError(
      `Template ${position + 1}, ${quoted(template)}, has no {} for the label: write it where the label belongs.`,
    );
  }
  if (template.length > LIMITS.template) {
    throw new LabelError(`Template ${position + 1} has more than ${LIMITS.template} characters.`);
  }
}

/**
 * Return a list's name, clean.
 * @param {string} text
 * @throws {LabelError} it is empty or too long
 */
export function checkedName(text) {
  const name = cleanText(text);
  if (name === "") throw new LabelError("A list needs a name.");
  if (name.length > LIMITS.name) {
    throw new LabelError(`A list's name has at most ${LIMITS.name} characters.`);
  }
  return name;
}
