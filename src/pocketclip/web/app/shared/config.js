// What a page knows of its site: the JSON in its element #config.

/**
 * A file of the site.
 * @typedef {object} SiteFile
 * @property {string} name
 * @property {string} url relative to the page
 * @property {number} bytes inflated
 * @property {string} sha256 of the inflated bytes, in hex
 * @property {"gzip" | null} encoding how the file is stored; the page inflates it
 * @property {number} download_bytes what travels
 */

/**
 * @typedef {object} Vendor
 * @property {string} path the folder of onnxruntime-web and tokenizers
 * @property {Record<string, SiteFile>} files by their names without `.gz`
 * @property {boolean} webgpu whether the runtime for WebGPU is there
 */

/**
 * @typedef {object} Config
 * @property {string} version of pocketclip
 * @property {string} assets the folder of the hashed assets
 * @property {Vendor | null} vendor null: the package was built without npm
 * @property {boolean} server whether a pocketclip server answers at this origin
 */

/** @type {Config} */
export const config = JSON.parse(
  /** @type {HTMLElement} */ (document.getElementById("config")).textContent ?? "",
);

/**
 * Return the absolute URL of a path of the site.
 * @param {string} path relative to the site
 */
export function siteUrl(path) {
  return new URL(path, document.baseURI).href;
}
