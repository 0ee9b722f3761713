// What a classifier says of one picture, and how people read it.

/**
 * See inference/zero_shot.js and labels/label_set.js.
 * @typedef {object} Scored
 * @property {{label: string, probability: number, cosine: number | null}[]} ranked best first
 * @property {boolean} none whether the picture is none of the labels
 * @property {number | null} [noneProbability] null or absent: a rule without one
 */

export const NONE = "None of these";

/**
 * Return a probability for people: never 0 % or 100 % of what is neither.
 * @param {number} probability
 */
export function percent(probability) {
  if (probability > 0 && probability < 0.005) return "<1 %";
  if (probability < 1 && probability >= 0.995) return ">99 %";
  return `${Math.round(100 * probability)} %`;
}
