// What this browser can run.

/** Whether this is Safari's engine on a phone or a tablet of Apple, where every browser has it. */
export function isIos() {
  const { maxTouchPoints, userAgent } = navigator;
  return /iPad|iPhone|iPod/.test(userAgent) || (/Macintosh/.test(userAgent) && maxTouchPoints > 1);
}

/**
 * Return how many threads the wasm runtime gets. Threads share memory, which browsers allow to
 * isolated pages only; on iOS they run out of memory.
 */
export function threadCount() {
  if (!globalThis.crossOriginIsolated || isIos()) return 1;
  return Math.min(4, Math.ceil((navigator.hardwareConcurrency ?? 1) / 2));
}

/**
 * Return why WebGPU cannot be used; null: it can.
 * @returns {Promise<string | null>} a sentence
 */
export async function webgpuProblem() {
  const gpu = /** @type {any} */ (navigator).gpu;
  if (gpu === undefined) {
    return globalThis.isSecureContext
      ? "This browser has no WebGPU."
      : "WebGPU needs a page over https, or on this device itself.";
  }
  try {
    if ((await gpu.requestAdapter()) !== null) return null;
  } catch {
    // As if there were none.
  }
  return "This device has no graphics processor that the browser's WebGPU can use.";
}

/** @type {boolean | undefined} */
let offscreen;

/** Whether workers can draw, so that frames are scaled there; Safari can since version 16.4. */
export function workersCanDraw() {
  try {
    offscreen ??= new OffscreenCanvas(1, 1).getContext("2d") !== null;
  } catch {
    offscreen = false;
  }
  return offscreen;
}
