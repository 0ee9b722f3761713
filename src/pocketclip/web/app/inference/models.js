// The models that a browser may run, as the site's models.json lists them.

import { call } from "../shared/api.js";
import { config, siteUrl } from "../shared/config.js";
import { InferenceError } from "./errors.js";

/** @import { SiteFile } from "../shared/config.js" */

/**
 * @typedef {object} Preprocess
 * @property {number} size S: the side of the square that the image tower reads
 * @property {"bilinear" | "bicubic"} interpolation
 * @property {[number, number, number]} mean
 * @property {[number, number, number]} std
 */

/**
 * A tower of a variant.
 * @typedef {object} Tower
 * @property {string} input name of the graph's input
 * @property {string} output name of the graph's output
 * @property {"preprocessed" | "photo"} [image_input] of an image tower: float pixels (1, 3, S, S),
 *   or uint8 (1, H, W, 3) of any size
 * @property {SiteFile[]} files the graph, then the files of its weights
 */

/**
 * A photograph, and the embedding that the same file gave it.
 * @typedef {object} StoredCheck
 * @property {SiteFile} pixels uint8 (height, width, 3)
 * @property {[number, number]} size height and width
 * @property {number[]} embedding (D,)
 */

/**
 * An exported form of a model.
 * @typedef {object} Variant
 * @property {string} precision "int8", "fp16" or "fp32"
 * @property {("wasm" | "webgpu")[]} runtimes
 * @property {boolean} normalized whether the towers return unit embeddings
 * @property {string} variant tells exports of one model apart
 * @property {Tower} image
 * @property {Tower} text
 * @property {SiteFile} tokenizer
 * @property {StoredCheck | null} [check]
 */

/**
 * @typedef {object} Licence
 * @property {string | null} name
 * @property {string | null} url
 * @property {string | null} text path in the site
 * @property {boolean} restricted whether it allows less than use for any purpose
 */

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {string} name
 * @property {string} space_id of the embeddings
 * @property {number} embed_dim D
 * @property {number} image_size S
 * @property {number} context_length
 * @property {number} logit_scale
 * @property {Preprocess} preprocess
 * @property {Licence} licence
 * @property {SiteFile | null} presets embeddings of the prompts of presets
 * @property {{name: string, label_count: number, file: SiteFile}[]} [label_sets] of this space
 * @property {Variant[]} variants
 */

/** @typedef {"wasm" | "webgpu"} Runtime */

const VERSION = 1;
const ORDER = ["int8", "fp16", "fp32"]; // from the smallest

/**
 * Return the models of this site; none, if it lists none.
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<Model[]>}
 * @throws {InferenceError} `unreachable` or `refused`
 * @throws {import("../shared/api.js").ApiError} of the server
 */
export async function listModels(options = {}) {
  const list = config.server
    ? await call("GET", "models.json", undefined, options)
    : await plain(options);
  if (list?.version !== VERSION || !Array.isArray(list.models)) {
    throw new InferenceError(
      "refused",
      "The list of models was written for other pages than these: reload the page.",
    );
  }
  return list.models;
}

/** @param {{signal?: AbortSignal}} options */
async function plain(options) {
  let answer;
  try {
    answer = await fetch(siteUrl("models.json"), { cache: "no-cache", ...options });
    if (answer.status === 404) return { version: VERSION, models: [] };
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new InferenceError(
      "unreachable",
      "The list of models could not be loaded: check the connection, and reload the page.",
      { cause: error },
    );
  }
  throw new InferenceError(
    "refused",
    `The list of models could not be loaded: error ${answer.status}.`,
  );
}

/**
 * Return a model's variants that a runtime can run, the smallest first.
 * @param {Model} model
 * @param {Runtime} runtime
 */
export function variantsFor(model, runtime) {
  return model.variants
    .filter((variant) => variant.runtimes.includes(runtime))
    .sort((a, b) => ORDER.indexOf(a.precision) - ORDER.indexOf(b.precision));
}

/**
 * Return the variant that a runtime takes: the smallest; null: none can run there.
 * @param {Model} model
 * @param {Runtime} runtime
 */
export function variantFor(model, runtime) {
  return variantsFor(model, runtime)[0] ?? null;
}

/**
 * Return what a runtime downloads before any model.
 * @param {import("../shared/config.js").Vendor} vendor
 * @param {Runtime} runtime
 * @returns {{script: SiteFile, loader: SiteFile, wasm: SiteFile} | null} null: it is not there
 */
export function runtimeOf(vendor, runtime) {
  const core = runtime === "webgpu" ? "ort-wasm-simd-threaded.asyncify" : "ort-wasm-simd-threaded";
  const [script, loader, wasm] = [`ort.${runtime}.min.mjs`, `${core}.mjs`, `${core}.wasm`].map(
    (name) => vendor.files[name],
  );
  return script && loader && wasm ? { script, loader, wasm } : null;
}

/**
 * Return the files of a runtime; none, if it is not there.
 * @param {import("../shared/config.js").Vendor} vendor
 * @param {Runtime} runtime
 * @returns {SiteFile[]}
 */
export function runtimeFiles(vendor, runtime) {
  return Object.values(runtimeOf(vendor, runtime) ?? {});
}

/**
 * Return every file that a model names.
 * @param {Model} model
 * @returns {SiteFile[]}
 */
export function filesOf(model) {
  return model.variants.flatMap((variant) => [
    ...variant.image.files,
    ...variant.text.files,
    variant.tokenizer,
    ...(variant.check ? [variant.check.pixels] : []),
  ]);
}
