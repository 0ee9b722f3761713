// The ways to run a model in this browser.

import { config } from "../shared/config.js";
import { threadCount, webgpuProblem } from "./device.js";
import { InferenceError } from "./errors.js";
import { runtimeOf, variantFor } from "./models.js";

/** @import { Model, Runtime, Variant } from "./models.js" */

/**
 * A way to run a model.
 * @typedef {object} Path
 * @property {Runtime} runtime
 * @property {number} threads of the wasm runtime
 * @property {Variant} variant
 */

export const VENDOR_MISSING =
  "These pages were built without npm, so no model runs in them: install a wheel of pocketclip, or " +
  "run `python hatch_build.py` in the checkout.";

/**
 * Return the ways to run a model here, the first one first.
 * @param {Model} model
 * @param {"auto" | "wasm" | "webgpu"} runtime
 * @param {string[]} notes receives why WebGPU is not used, where it was asked for
 * @returns {Promise<Path[]>} at least one
 * @throws {InferenceError} `no_vendor` or `no_variant`
 */
export async function pathsOf(model, runtime, notes) {
  if (config.vendor === null) throw new InferenceError("no_vendor", VENDOR_MISSING);
  /** @type {Path[]} */
  const paths = [];
  if (runtime === "webgpu") {
    const variant = variantFor(model, "webgpu");
    const problem =
      runtimeOf(config.vendor, "webgpu") === null
        ? "This site has no runtime for WebGPU."
        : variant === null
          ? "This model has no form for WebGPU, which is fp16 or fp32."
          : await webgpuProblem();
    if (problem !== null) notes.push(`${problem} The model runs on the processor.`);
    else if (variant !== null) paths.push({ runtime, threads: 1, variant });
  }
  const variant = variantFor(model, "wasm");
  if (variant !== null) {
    const threads = threadCount();
    if (threads > 1) paths.push({ runtime: "wasm", threads, variant });
    paths.push({ runtime: "wasm", threads: 1, variant });
  }
  if (paths.length > 0) return paths;
  throw new InferenceError("no_variant", `${model.name} has no form that this browser can run.`);
}

/**
 * Return what people call a path, at the beginning of a sentence.
 * @param {Path} path
 */
export function nameOf({ runtime, threads }) {
  if (runtime === "webgpu") return "WebGPU";
  return threads > 1 ? `The processor with ${threads} threads` : "The processor with one thread";
}
