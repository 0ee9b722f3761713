// What is known of the images, for people and for tables. No page is needed.

import { NONE } from "../models/scored.js";

/** @typedef {import("../models/scored.js").Scored} Scored */

/**
 * What is kept of it: the first few labels only, since there may be thousands of images.
 * @typedef {object} Result
 * @property {{label: string, probability: number, cosine: number | null}[]} top
 * @property {boolean} none
 * @property {number | null} noneProbability
 */

/**
 * An image of the table.
 * @typedef {object} Item
 * @property {number} id in the order in which they were added
 * @property {File} file
 * @property {string} path of a file in a folder, else its name
 * @property {"waiting" | "encoding" | "done" | "failed"} state
 * @property {string} why it failed
 * @property {Float32Array | null} embedding
 * @property {Result | null} result null: there are no labels yet
 */

/** @typedef {"added" | "name" | "label" | "probability" | "cosine"} Order */

/**
 * A group of images: of a label, of none of the labels, without result, or not read.
 * @typedef {{key: string, name: string, count: number}} Group
 */

export const SHOWN = 3; // labels of an image
const KEYS = { none: "none", waiting: "waiting", failed: "failed" };

/**
 * Return what is kept of a classifier's answer.
 * @param {Scored} scored
 * @returns {Result}
 */
export function resultOf({ ranked, none, noneProbability = null }) {
  return { top: ranked.slice(0, SHOWN), none, noneProbability };
}

/**
 * Return the key of the group that an image is in.
 * @param {Item} item
 */
export function groupOf({ state, result }) {
  if (state === "failed") return KEYS.failed;
  const best = result?.top[0];
  if (result === null || best === undefined) return KEYS.waiting;
  return result.none ? KEYS.none : `label ${best.label}`;
}

/**
 * Return the groups of images: labels by their counts, then what has no label.
 * @param {readonly Item[]} items
 * @returns {Group[]}
 */
export function groupsOf(items) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const item of items) {
    const key = groupOf(item);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const labels = [...counts]
    .filter(([key]) => key.startsWith("label "))
    .map(([key, count]) => ({ key, name: key.slice("label ".length), count }))
    .sort((a, b) => b.count - a.count || compare(a.name, b.name));
  const others = [
    { key: KEYS.none, name: NONE },
    { key: KEYS.failed, name: "Not read" },
    { key: KEYS.waiting, name: "No result yet" },
  ];
  return [
    ...labels,
    ...others
      .map((one) => ({ ...one, count: counts.get(one.key) ?? 0 }))
      .filter((one) => one.count > 0),
  ];
}

/**
 * Return the images of a group in an order; images without result come last.
 * @param {readonly Item[]} items
 * @param {Order} order
 * @param {string | null} group null: all
 * @returns {Item[]}
 */
export function arranged(items, order, group) {
  const chosen = items.filter((item) => group === null || groupOf(item) === group);
  if (order === "added") return chosen;
  if (order === "name") return chosen.sort((a, b) => compare(a.path, b.path) || a.id - b.id);
  const ranked = chosen.map((item) => ({ item, best: item.result?.top[0] ?? null }));
  ranked.sort((a, b) => {
    if (a.best === null || b.best === null) {
      return Number(a.best === null) - Number(b.best === null) || a.item.id - b.item.id;
    }
    if (order === "label") {
      const none = Number(a.item.result?.none) - Number(b.item.result?.none);
      const name = none || compare(a.best.label, b.best.label);
      if (name !== 0) return name;
    }
    const by = order === "cosine" ? "cosine" : "probability";
    return (b.best[by] ?? 0) - (a.best[by] ?? 0) || a.item.id - b.item.id;
  });
  return ranked.map((one) => one.item);
}

const ORDER = new Intl.Collator(undefined, { numeric: true });

/**
 * @param {string} a
 * @param {string} b
 */
function compare(a, b) {
  return ORDER.compare(a, b);
}

/**
 * Return the table of all images for a file: what was found, then every label's probability.
 *
 * A name that a spreadsheet would take for a formula is written as the path that it also is:
 * `./=1.jpg`.
 * @param {readonly Item[]} items
 * @param {string[]} labels
 * @param {(embedding: Float32Array) => Scored | null} score
 * @returns {(string | number)[][]}
 */
export function tableOf(items, labels, score) {
  const head = ["file", "label", "probability", "cosine", "none", "none probability", "error"];
  const rows = items.map((item) => {
    const file = /^[=+\-@\t\r]/.test(item.path) ? `./${item.path}` : item.path;
    const scored = item.embedding === null ? null : score(item.embedding);
    const best = scored?.ranked[0];
    if (!scored || !best) {
      const why = item.state === "failed" ? item.why : "no result";
      return [file, "", "", "", "", "", why, ...labels.map(() => "")];
    }
    const shares = new Map(scored.ranked.map((one) => [one.label, one.probability]));
    return [
      file,
      best.label,
      figure(best.probability),
      figure(best.cosine),
      scored.none ? "yes" : "no",
      figure(scored.noneProbability ?? null),
      "",
      ...labels.map((label) => figure(shares.get(label) ?? null)),
    ];
  });
  return [[...head, ...labels.map((label) => `probability of ${label}`)], ...rows];
}

/**
 * Return whether a spreadsheet would take a cell of a table for a formula.
 * @param {readonly (string | number)[][]} rows
 */
export function hasFormula(rows) {
  return rows.some((row) =>
    row.some((cell) => /^[=+\-@\t\r]/.test(String(cell)) && !Number.isFinite(Number(cell))),
  );
}

/** @param {number | null} value */
function figure(value) {
  return value === null ? "" : value.toFixed(6);
}
