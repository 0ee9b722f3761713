// The rows of the list of results: what is shown, in which order, and what is bold.

import { emphasis } from "../inference/zero_shot.js";
import { NONE } from "../models/scored.js";

/** @typedef {import("../models/scored.js").Scored} Scored */

/**
 * @typedef {object} Row
 * @property {string} key of its own in a list, also where a label is "None of these"
 * @property {string} label
 * @property {number | null} probability null: a rule without one
 * @property {number | null} cosine
 * @property {boolean} bold it fits
 * @property {number} level how strong the text is, 0 to 1
 * @property {boolean} none
 */

/**
 * Return the rows of a result, the best first.
 *
 * "None of these" has its place by its probability; where it wins, it is the first, and alone bold.
 * Without cosines the best label is bold.
 * @param {Scored} scored
 * @returns {Row[]}
 */
export function rowsOf({ ranked, none, noneProbability = null }) {
  const top = ranked[0]?.cosine ?? null;
  const highest = ranked.reduce((most, one) => Math.max(most, one.cosine ?? -1), -1);
  /** @type {Row[]} */
  const rows = ranked.map(({ label, probability, cosine }, at) => {
    const { bold, level } =
      cosine === null || top === null
        ? { bold: at === 0 && !none, level: at === 0 ? 1 : 0 }
        : emphasis(cosine, highest, none);
    return { key: `label ${label}`, label, probability, cosine, bold, level, none: false };
  });
  if (!none && noneProbability === null) return rows;
  const probability = noneProbability;
  const level = none ? 1 : 0;
  const row = {
    key: "none",
    label: NONE,
    probability,
    cosine: null,
    bold: none,
    level,
    none: true,
  };
  if (none) return [row, ...rows];
  const at = rows.findIndex((one) => (one.probability ?? 0) < (probability ?? 0));
  rows.splice(at < 0 ? rows.length : Math.max(at, 1), 0, row);
  return rows;
}

/**
 * Return what a screen reader says of a result.
 * @param {readonly Row[]} rows
 */
export function spoken(rows) {
  const [first] = rows;
  if (first === undefined) return "";
  return first.bold ? first.label : `Perhaps ${first.label}`;
}

/**
 * Return the results as the rows of a table.
 * @param {readonly Row[]} rows
 * @returns {(string | number)[][]}
 */
export function tableOf(rows) {
  const values = rows.map((one) => [
    one.label,
    one.probability === null ? "" : one.probability.toFixed(6),
    one.cosine === null ? "" : one.cosine.toFixed(6),
  ]);
  return [["label", "probability", "cosine"], ...values];
}
