// Calls of the search page, tried again while the server is busy.

import { ApiError, call, isAbort } from "../shared/api.js";
import { patiently, pause } from "../shared/patience.js";

/**
 * Call the server; if it is busy (429), wait as it says, and try again.
 * @param {"GET" | "POST"} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {{signal?: AbortSignal, onWait?: () => void}} [options] `onWait`: called before waiting
 * @returns {Promise<any>}
 */
export function callPatiently(method, path, body, options = {}) {
  const { signal } = options;
  return patiently(() => call(method, path, body, signal ? { signal } : {}), options);
}

export { messageOf } from "./result_texts.js";
export { ApiError, isAbort, pause };
