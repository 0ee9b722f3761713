// Calls of the search page, tried again while the server is busy.

import { ApiError, call, isAbort } from "../shared/api.js";

const TRIES = 4;
const MOST_SECONDS = 10;

/**
 * Call the server; if it is busy (429), wait as it says, and try again.
 * @param {"GET" | "POST"} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {{signal?: AbortSignal, onWait?: () => void}} [options] `onWait`: called before waiting
 * @returns {Promise<any>}
 */
export async function callPatiently(method, path, body, { signal, onWait } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call(method, path, body, signal ? { signal } : {});
    } catch (error) {
      const busy = error instanceof ApiError && error.status === 429;
      if (!busy || attempt >= TRIES) throw error;
      onWait?.();
      await pause(Math.min(error.retryAfter ?? 1, MOST_SECONDS) * 1000, signal);
    }
  }
}

/**
 * Wait.
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 */
export function pause(milliseconds, signal) {
  return /** @type {Promise<void>} */ (
    new Promise((resolve, reject) => {
      const stop = () => {
        clearTimeout(timer);
        reject(new DOMException("given up", "AbortError"));
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener("abort", stop);
        resolve();
      }, milliseconds);
      if (signal?.aborted) stop();
      else signal?.addEventListener("abort", stop, { once: true });
    })
  );
}

/**
 * Return a message for people about anything that went wrong.
 * @param {unknown} error
 */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}

export { ApiError, isAbort };
