// A label set of `pocketclip fit`: a linear classifier of image embeddings. It reads the same file
// as Python's `label_set.py`, and answers the same.

import { softmax } from "../inference/zero_shot.js";
import { bytesOfBase64, floatsOf } from "../shared/base64.js";
import { LabelError, quoted } from "./label_list.js";

/**
 * @typedef {object} NoneRule
 * @property {"probability" | "logit"} score of the best label, which is compared
 * @property {number} below a lower score means none of the labels
 * @property {number} error
 */

/**
 * L labels, D the width of the embeddings.
 * @typedef {object} LabelSet
 * @property {string[]} labels
 * @property {Float32Array} weights (L x D), row by row
 * @property {Float32Array} biases (L)
 * @property {number} embedDim D
 * @property {string} spaceId the embedding space that the weights are of
 * @property {string} model its name, for messages
 * @property {number} temperature
 * @property {NoneRule | null} none null: every image has one of the labels
 */

const FORMAT = "pocketclip label set";
const VERSION = 1;
const MAX_LABELS = 100_000;
const MAX_WIDTH = 65_536;
/** Limit on a file in a browser, in bytes. */
export const MAX_SET_FILE = 64 << 20;

/**
 * Return whether a JSON text says that it is a label set.
 * @param {string} text
 */
export function isLabelSet(text) {
  return /^\s*\{/.test(text) && text.slice(0, 4096).includes(`"${FORMAT}"`);
}

/**
 * Return the label set in a file.
 * @param {string} text of the file
 * @param {string} name of the file, for messages
 * @returns {LabelSet}
 * @throws {LabelError} it is damaged, or of another version
 */
export function parseLabelSet(text, name) {
  const what = quoted(name);
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new LabelError(`${what} is damaged: it is not JSON.`);
  }
  if (typeof raw !== "object" || raw?.format !== FORMAT) {
    throw new LabelError(`${what} is not a label set: \`pocketclip fit\` writes one.`);
  }
  if (raw.version !== VERSION) {
    throw new LabelError(
      `${what} has another version of the format than these pages read: run \`pocketclip fit\` again.`,
    );
  }
  try {
    return fromRaw(raw);
  } catch (error) {
    if (!(error instanceof LabelError)) throw error;
    throw new LabelError(`${what} is damaged: ${error.message}.`);
  }
}

/**
 * @param {Record<string, unknown>} raw
 * @returns {LabelSet}
 */
function fromRaw(raw) {
  const { labels, biases, weights, embed_dim: width, temperature } = raw;
  if (!isList(labels, "string") || labels.length === 0 || labels.length > MAX_LABELS) {
    throw new LabelError(`it must have 1 to ${MAX_LABELS.toLocaleString("en")} labels`);
  }
  if (labels.some((label) => label.trim() === "")) throw new LabelError("a label is empty");
  if (new Set(labels).size < labels.length) throw new LabelError("a label is there twice");
  if (!Number.isInteger(width) || Number(width) < 1 || Number(width) > MAX_WIDTH) {
    throw new LabelError(`“embed_dim” must be 1 to ${MAX_WIDTH.toLocaleString("en")}`);
  }
  if (!isList(biases, "number") || biases.length !== labels.length) {
    throw new LabelError("there must be one bias for each label");
  }
  if (typeof temperature !== "number" || !(temperature > 0) || !Number.isFinite(temperature)) {
    throw new LabelError("the temperature must be above 0");
  }
  const { model, space_id: spaceId } = raw;
  if (typeof model !== "string" || typeof spaceId !== "string") {
    throw new LabelError("“model” and “space_id” must be texts");
  }
  return {
    labels,
    weights: decodeWeights(weights, labels.length * Number(width)),
    biases: finite(Float32Array.from(biases), "biases"),
    embedDim: Number(width),
    spaceId,
    model,
    temperature,
    none: noneRule(raw.none ?? null),
  };
}

/**
 * @template {"string" | "number"} T
 * @param {unknown} value
 * @param {T} type
 * @returns {value is (T extends "string" ? string : number)[]}
 */
function isList(value, type) {
  return Array.isArray(value) && value.every((one) => typeof one === type);
}

/**
 * Return little-endian float32 values.
 * @param {unknown} text base64
 * @param {number} count
 */
function decodeWeights(text, count) {
  if (typeof text !== "string" || text.length !== 4 * Math.ceil((4 * count) / 3)) {
    throw new LabelError("“weights” has not the length that labels and “embed_dim” need");
  }
  let bytes;
  try {
    bytes = bytesOfBase64(text);
  } catch {
    throw new LabelError("“weights” is not base64");
  }
  // atob skips blanks, so that the number of bytes says whether there were any.
  if (bytes.length !== 4 * count) throw new LabelError("“weights” is not base64");
  return finite(floatsOf(bytes), "weights");
}

/**
 * @param {Float32Array} values
 * @param {string} name
 */
function finite(values, name) {
  if (!values.every(Number.isFinite)) throw new LabelError(`a value of “${name}” is not finite`);
  return values;
}

/**
 * @param {unknown} raw
 * @returns {NoneRule | null}
 */
function noneRule(raw) {
  if (raw === null) return null;
  const { score, below, error } = /** @type {Record<string, unknown>} */ (raw);
  if (
    (score !== "probability" && score !== "logit") ||
    typeof below !== "number" ||
    !Number.isFinite(below) ||
    typeof error !== "number" ||
    !(error >= 0 && error <= 1)
  ) {
    throw new LabelError("“none” is not a rule");
  }
  return { score, below, error };
}

/**
 * Refuse a model of another embedding space than the weights are of.
 * @param {LabelSet} set
 * @param {{space_id: string, embed_dim: number, name: string}} model
 * @param {string} name of the label set, for the message
 * @throws {LabelError}
 */
export function checkSpace(set, model, name) {
  if (set.spaceId !== model.space_id) {
    throw new LabelError(
      `${quoted(name)} was fitted to the model ${quoted(set.model)} (${set.spaceId}), and ` +
        `${quoted(model.name)} has another embedding space (${model.space_id}): choose that model, or run \`pocketclip fit\` with this one.`,
    );
  }
  if (set.embedDim !== model.embed_dim) {
    throw new LabelError(
      `${quoted(name)} has weights of width ${set.embedDim}, and the model's embeddings have ${model.embed_dim}: run \`pocketclip fit\` again.`,
    );
  }
}

/**
 * Return the labels of an image, the most probable first, and whether it is none of them.
 * @param {LabelSet} set
 * @param {ArrayLike<number>} embedding of unit length
 * @returns {{ranked: {label: string, probability: number, logit: number, cosine: null}[],
 *   none: boolean}}
 */
export function rankSet(set, embedding) {
  const { labels, weights, biases, embedDim, temperature, none } = set;
  if (embedding.length !== embedDim) {
    throw new LabelError(
      `The label set has width ${embedDim}, and the embedding has ${embedding.length}.`,
    );
  }
  const logits = labels.map((_, row) => {
    let sum = 0;
    for (let n = 0; n < embedDim; n++) {
      sum += Number(embedding[n]) * Number(weights[row * embedDim + n]);
    }
    return sum + Number(biases[row]);
  });
  const probabilities = softmax(logits.map((logit) => logit / temperature));
  const ranked = labels
    .map((label, row) => ({
      label,
      probability: Number(probabilities[row]),
      logit: Number(logits[row]),
      cosine: /** @type {null} */ (null),
    }))
    .sort((a, b) => b.probability - a.probability);
  const [best] = ranked;
  return { ranked, none: none !== null && Number(best?.[none.score]) < none.below };
}
