// Sentences of the editor.

import { countOf } from "../shared/dom.js";
import { messageOf } from "../shared/errors.js";
import { LabelError, quoted } from "./label_list.js";

const MOST_LABELS = 20;
const MOST_PROMPTS = 2;

/**
 * Return what a label set has.
 * @param {import("./label_set.js").LabelSet} set
 */
export function describeSet({ labels, model, none }) {
  const some = labels.slice(0, MOST_LABELS).join(", ");
  const more = labels.length > MOST_LABELS ? ", …" : ".";
  const rule = none === null ? "" : " It can tell that an image is none of them.";
  return `${countOf(labels.length, "label")}, fitted to ${model}: ${some}${more}${rule}`;
}

/**
 * Return which prompts the model did not read to their end.
 * @param {string[]} prompts
 */
export function describeCut(prompts) {
  if (prompts.length === 0) return "";
  const which = prompts.slice(0, MOST_PROMPTS).map(quoted).join(", ");
  const more = prompts.length > MOST_PROMPTS ? ", …" : "";
  const verb = prompts.length === 1 ? "is" : "are";
  return (
    `${countOf(prompts.length, "prompt")} ${verb} too long for the model, which read the ` +
    `beginning only: ${which}${more}`
  );
}

/**
 * Return the message of an error; of one that nobody expected too, which the console gets.
 * @param {unknown} error
 */
export function explained(error) {
  if (error instanceof LabelError) return error.message;
  console.error(error);
  return messageOf(error);
}
