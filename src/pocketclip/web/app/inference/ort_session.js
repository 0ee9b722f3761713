// A session of onnxruntime-web, for the workers with a tower.

import { importScript } from "./vendor_script.js";

/** @import { InferenceSession, Tensor } from "onnxruntime-web" */

/**
 * What a session is made of.
 * @typedef {object} SessionFiles
 * @property {"wasm" | "webgpu"} runtime
 * @property {number} threads of the wasm runtime
 * @property {string} script URL of onnxruntime-web
 * @property {string} loader URL of the module that starts its WebAssembly
 * @property {Uint8Array<ArrayBuffer>} wasm its WebAssembly
 * @property {Uint8Array<ArrayBuffer>} graph
 * @property {{path: string, data: Uint8Array<ArrayBuffer>}[]} weights
 * @property {string} input
 * @property {string} output
 */

/**
 * Start a session.
 * @param {SessionFiles} about
 * @returns {Promise<{ort: any, Tensor: typeof Tensor, session: InferenceSession}>}
 */
export async function startSession(about) {
  const ort = await importScript(about.script);
  await importScript(about.loader); // the runtime imports it too, and says less if it cannot
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = about.threads;
  ort.env.wasm.wasmPaths = { mjs: about.loader };
  ort.env.wasm.wasmBinary = about.wasm;
  const session = await ort.InferenceSession.create(about.graph, {
    executionProviders: [about.runtime],
    externalData: about.weights,
    graphOptimizationLevel: "all",
  });
  return { ort, Tensor: ort.Tensor, session };
}
