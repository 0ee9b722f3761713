// Sentences about what a browser lacks. Pure: see capabilities.js.

/**
 * @typedef {object} Capabilities
 * @property {boolean} secure the page came over https, or from the device itself
 * @property {boolean} camera pages can ask for the camera
 * @property {boolean} webgpu there is the API; a graphics processor may be missing all the same
 * @property {boolean} threads memory can be shared between threads
 * @property {boolean} cache files can be kept on the device
 * @property {boolean} subtle there is a built-in SHA-256
 * @property {boolean} serviceWorker pages can be kept for use without a network
 * @property {boolean} inflate gzip can be read
 * @property {boolean} ios a phone or a tablet of Apple
 */

/**
 * @typedef {object} Problem
 * @property {keyof Capabilities} name
 * @property {string} sentence why, and what to do
 */

/**
 * Return what is missing, what matters most first. What a page does itself where the browser does
 * not (SHA-256) is no problem.
 * @param {Capabilities} found
 * @param {{server: boolean}} site whether a pocketclip server answers here
 * @returns {Problem[]}
 */
export function problemsOf(found, { server }) {
  /** @type {Problem[]} */
  const problems = [];
  const https = server
    ? "start the server with --tls and open its https address"
    : "open this page over https";
  /** @type {(name: keyof Capabilities, sentence: string) => void} */
  const add = (name, sentence) => {
    if (!found[name]) problems.push({ name, sentence });
  };
  add(
    "camera",
    found.secure
      ? "This browser gives pages no camera: take photographs, or try another browser."
      : `The camera needs https: ${https}. Photographs can be taken here too.`,
  );
  add("inflate", "This browser is too old to unpack a model (DecompressionStream): update it.");
  add(
    "cache",
    found.secure
      ? "This browser keeps no files for pages: a model is downloaded at each visit."
      : `A model is downloaded at each visit, as browsers keep files over https only: ${https}.`,
  );
  add(
    "webgpu",
    found.secure
      ? "This browser has no WebGPU: models run on the processor, which is enough for small ones."
      : `Models run on the processor, as WebGPU needs https: ${https}.`,
  );
  if (!found.ios) {
    add(
      "threads",
      found.secure
        ? "Models use one core of the processor, as this site's host sends no headers that isolate pages."
        : `Models use one core of the processor, as threads need https: ${https}.`,
    );
  }
  add(
    "serviceWorker",
    found.secure
      ? "This browser keeps no pages for use without a network."
      : `These pages do not open without a network, as that needs https: ${https}.`,
  );
  return problems;
}
