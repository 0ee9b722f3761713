// What people are told of a model before they download it: sizes, form, licence.

import { bytesToDownload } from "../inference/files.js";
import { runtimeFiles, variantFor } from "../inference/models.js";

/** @import { SiteFile, Vendor } from "../shared/config.js" */
/** @import { Licence, Model, Runtime, Variant } from "../inference/models.js" */

/**
 * What a model downloads for a runtime.
 * @typedef {object} Parts
 * @property {Variant} variant
 * @property {SiteFile[]} runtime of onnxruntime-web
 * @property {SiteFile[]} image what every picture needs
 * @property {SiteFile[]} text what labels of one's own need, where no server embeds them
 */

/**
 * Return what a model needs for a runtime; null: it cannot run so.
 * @param {Model} model
 * @param {Runtime} runtime
 * @param {Vendor | null} vendor of the site
 * @returns {Parts | null}
 */
export function partsOf(model, runtime, vendor) {
  if (vendor === null) return null;
  const files = runtimeFiles(vendor, runtime);
  const variant = variantFor(model, runtime);
  if (files.length === 0 || variant === null) return null;
  const { image, text, tokenizer, check } = variant;
  return {
    variant,
    runtime: files,
    image: [...image.files, ...(check ? [check.pixels] : [])],
    text: [...text.files, tokenizer],
  };
}

/**
 * Return how many bytes travel before the first picture; 0: it is all on the device.
 * @param {Parts} parts
 * @returns {Promise<number>}
 */
export async function startBytes({ runtime, image }) {
  // Scripts come with the pages, which keep them by other means: what counts is their WebAssembly.
  const large = runtime.filter((file) => /\.wasm(\.gz)?$/.test(file.name));
  const missing = await bytesToDownload(large);
  const scripts = missing === 0 ? [] : runtime.filter((file) => !large.includes(file));
  return missing + downloadBytes(scripts) + (await bytesToDownload(image));
}

/**
 * Return how many bytes travel for files, if none of them is kept.
 * @param {readonly SiteFile[]} files
 */
export function downloadBytes(files) {
  return files.reduce((sum, file) => sum + file.download_bytes, 0);
}

/**
 * Return why a model has nothing for WebGPU on this site; null: it has.
 * @param {Model} model
 * @param {Vendor | null} vendor
 */
export function whyNoWebgpu(model, vendor) {
  if (vendor === null || !vendor.webgpu) return "This site has no runtime for WebGPU.";
  if (partsOf(model, "webgpu", vendor) !== null) return null;
  return "This site has the model with 8-bit numbers only, which WebGPU cannot run.";
}

/**
 * Return the form of a model in words.
 * @param {Variant} variant
 * @param {Runtime} runtime
 */
export function formOf(variant, runtime) {
  return `${variant.precision} on the ${runtime === "webgpu" ? "graphics processor" : "CPU"}`;
}

/**
 * Return what people have to know of a licence, in a sentence.
 * @param {Licence} licence
 */
export function licenceSentence({ name, restricted }) {
  if (name === null) return "Ask whoever made the model.";
  return restricted
    ? "This licence restricts use, for example to research: read it. By starting you accept it."
    : "This licence allows any use under its terms.";
}

/**
 * Return the model that a server runs, in the form of models.json; it has no files.
 * @param {any} info what `/info` says
 * @returns {Model}
 */
export function serverModel(info) {
  return {
    id: "server",
    name: info.model,
    space_id: info.space_id,
    embed_dim: info.embed_dim,
    image_size: info.image_size,
    context_length: info.context_length,
    logit_scale: info.logit_scale,
    preprocess: {
      size: info.image_size,
      interpolation: "bicubic",
      mean: [0, 0, 0],
      std: [1, 1, 1],
    },
    licence: { ...info.license, text: null },
    presets: null,
    variants: [],
  };
}
