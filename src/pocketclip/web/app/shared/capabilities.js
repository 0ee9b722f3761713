// What this browser can do at this address, and for what is missing, why and what to do.

import { config } from "./config.js";
import { isIos } from "../inference/device.js";
import { problemsOf } from "./capability_texts.js";

/** @import { Capabilities, Problem } from "./capability_texts.js" */

/** @returns {Capabilities} */
export function capabilities() {
  const known = /** @type {any} */ (navigator);
  return {
    secure: globalThis.isSecureContext === true,
    camera: typeof known.mediaDevices?.getUserMedia === "function",
    webgpu: known.gpu !== undefined,
    threads: globalThis.crossOriginIsolated === true && "SharedArrayBuffer" in globalThis,
    cache: "caches" in globalThis,
    subtle: globalThis.crypto?.subtle !== undefined,
    serviceWorker: "serviceWorker" in navigator,
    inflate: "DecompressionStream" in globalThis,
    ios: isIos(),
  };
}

/** @returns {Problem[]} everything that is missing, what matters most first */
export function missing() {
  return problemsOf(capabilities(), { server: config.server });
}

/** Return why there can be no live camera here, and what to do; null: pages may ask for it. */
export function cameraProblem() {
  return missing().find((one) => one.name === "camera")?.sentence ?? null;
}
