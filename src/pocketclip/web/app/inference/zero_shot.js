// Zero-shot classification: labels by the similarity of an image to their prompts.
//
// Equal to `pocketclip.infer.zero_shot` of Python: the unit embeddings of a label's prompts are
// averaged and scaled to unit length; probabilities are the softmax of the cosine similarities times
// the model's logit scale. No page is needed: Node runs it too.

/**
 * A label and its prompts.
 * @typedef {object} PromptGroup
 * @property {string} label
 * @property {readonly string[]} texts at least one
 */

/**
 * @typedef {object} Classifier
 * @property {string[]} labels
 * @property {Float32Array[]} rows one unit embedding per label
 */

/**
 * How well a label fits an image.
 * @typedef {object} Score
 * @property {string} label
 * @property {number} cosine -1 to 1
 * @property {number} probability among the labels, and "none of these" if it takes part
 */

/**
 * @typedef {object} Scores
 * @property {Score[]} ranked the most probable label first; equal ones in the order of the labels
 * @property {boolean} none whether the image is none of the labels
 * @property {number | null} noneCosine of the background prompt that fits best; null without any
 * @property {number | null} noneProbability of "none of these"; null without background prompts
 */

/**
 * Return one unit embedding per label.
 * @param {readonly PromptGroup[]} groups
 * @param {readonly Float32Array[]} embeddings unit embeddings of all prompts, group by group
 * @returns {Classifier}
 */
export function buildClassifier(groups, embeddings) {
  const wanted = groups.reduce((sum, { texts }) => sum + texts.length, 0);
  if (wanted !== embeddings.length) {
    throw new RangeError(`${embeddings.length} embeddings for ${wanted} prompts`);
  }
  let next = 0;
  /** @type {Classifier} */
  const classifier = { labels: [], rows: [] };
  for (const { label, texts } of groups) {
    classifier.labels.push(label);
    classifier.rows.push(unitMean(embeddings.slice(next, next + texts.length), label));
    next += texts.length;
  }
  return classifier;
}

/**
 * Return the mean of embeddings at unit length.
 * @param {readonly Float32Array[]} embeddings at least one, of one width
 * @param {string} what they are of, for the message
 */
function unitMean(embeddings, what) {
  const mean = new Float64Array(embeddings[0]?.length ?? 0);
  for (const row of embeddings) {
    if (row.length !== mean.length) throw new RangeError("the embeddings differ in their width");
    for (let i = 0; i < mean.length; i++) mean[i] += row[i] / embeddings.length;
  }
  return toUnit(mean, what);
}

/**
 * Return a vector at unit length.
 * @param {Float32Array | Float64Array} vector
 * @param {string} what it is of, for the message
 * @returns {Float32Array<ArrayBuffer>}
 */
export function toUnit(vector, what) {
  const length = Math.sqrt(dot(vector, vector));
  if (!(length > 1e-12 && length < Infinity)) {
    throw new RangeError(`The embedding of "${what}" is zero or not finite: use another model.`);
  }
  return Float32Array.from(vector, (value) => value / length);
}

/**
 * @param {Float32Array | Float64Array} a
 * @param {Float32Array | Float64Array} b
 */
export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** @param {readonly number[]} values */
function highest(values) {
  return values.reduce((a, b) => Math.max(a, b), -Infinity); // there may be 100,000
}

/**
 * Return probabilities.
 * @param {readonly number[]} logits
 */
export function softmax(logits) {
  const top = highest(logits);
  const exponentials = logits.map((logit) => Math.exp(logit - top));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

/**
 * Rank labels for an image.
 *
 * With background prompts, "none of these" takes part in the softmax as one more label, with the
 * similarity of the background prompt that fits best. The image is none of the labels if that one
 * fits better than all of them.
 * @param {Float32Array} embedding of the image, unit length
 * @param {Classifier} classifier
 * @param {number} logitScale of the model
 * @param {{background?: readonly Float32Array[] | null}} [options] unit embeddings of texts that
 *   are about something else
 * @returns {Scores}
 */
export function scores(embedding, classifier, logitScale, { background = null } = {}) {
  const { labels, rows } = classifier;
  if (rows.some((row) => row.length !== embedding.length)) {
    throw new RangeError("the image and the labels are of different models");
  }
  if (!embedding.every(Number.isFinite)) throw new RangeError("the embedding is not finite");
  const cosines = rows.map((row) => dot(embedding, row));
  const noneCosine = background?.length
    ? highest(background.map((row) => dot(embedding, row)))
    : null;
  const all = noneCosine === null ? cosines : [...cosines, noneCosine];
  const probabilities = all.length ? softmax(all.map((cosine) => logitScale * cosine)) : [];
  const ranked = labels.map((label, i) => {
    return { label, cosine: cosines[i], probability: probabilities[i] };
  });
  ranked.sort((a, b) => b.probability - a.probability);
  return {
    ranked,
    none: noneCosine !== null && highest(cosines) < noneCosine,
    noneCosine,
    noneProbability: noneCosine === null ? null : probabilities[labels.length],
  };
}

const STOP_WORDS = new Set(["the", "with", "and", "for", "from"]);

/**
 * Return the background prompts that can stand for "none of these".
 *
 * Those that share a word with a label are left out: a typewriter must not be none of "typewriter".
 * @template T
 * @param {readonly string[]} labels
 * @param {readonly string[]} texts background prompts
 * @param {readonly T[]} rows one per text: its embedding, or the text itself
 * @returns {T[]}
 */
export function backgroundFor(labels, texts, rows) {
  const named = new Set(labels.flatMap(wordsOf));
  return rows.filter((_, i) => !wordsOf(texts[i]).some((word) => named.has(word)));
}

/**
 * Return the words of a text, without those that say nothing, in lower case and singular.
 * @param {string} text
 */
function wordsOf(text) {
  const words = text.toLowerCase().match(/\p{L}{3,}/gu) ?? [];
  return words
    .filter((word) => !STOP_WORDS.has(word))
    .map((word) => (word.length > 3 ? word.replace(/(?<=[^s])s$/u, "") : word));
}

const BOLD_FROM = 0.22;
const GREY_FROM = 0.15;

/**
 * Return how a score is shown: bold if the label fits well, and as well as the best one; else
 * the paler the worse it fits.
 * @param {number} cosine of the label
 * @param {number} top cosine of the label that fits best
 * @param {boolean} none whether the image is none of the labels: then nothing is bold
 * @returns {{bold: boolean, level: number}} level: 0, pale, to 1, in steps of 0.05
 */
export function emphasis(cosine, top, none = false) {
  const level = Math.min(1, Math.max(0, (cosine - GREY_FROM) / (BOLD_FROM - GREY_FROM)));
  return {
    bold: !none && cosine >= BOLD_FROM && cosine >= 0.95 * top,
    level: Math.round(20 * level) / 20,
  };
}

/**
 * Averages the embeddings of a camera's frames, so that labels do not flicker.
 *
 * The average is over time and not over frames: a slow phone shows each frame nearly by itself.
 */
export class Steady {
  /** @type {Float32Array | null} */
  #mean = null;
  #time = 0;

  /** @param {number} [seconds] after which a frame counts for 37 %; 0: frames are not averaged */
  constructor(seconds = 0.25) {
    this.seconds = seconds;
  }

  /**
   * Return the average embedding, at unit length.
   * @param {Float32Array} embedding of a frame, at unit length
   * @param {number} time of the frame in milliseconds
   */
  next(embedding, time) {
    const before = this.#mean;
    const passed = Math.max(0, time - this.#time) / 1000;
    this.#time = time;
    if (before === null || before.length !== embedding.length || !(this.seconds > 0)) {
      this.#mean = embedding;
      return embedding;
    }
    const weight = 1 - Math.exp(-passed / this.seconds);
    const mixed = embedding.map((value, i) => before[i] + weight * (value - before[i]));
    this.#mean = toUnit(mixed, "the camera's picture");
    return this.#mean;
  }

  /** Forget the frames so far. */
  reset() {
    this.#mean = null;
  }
}
