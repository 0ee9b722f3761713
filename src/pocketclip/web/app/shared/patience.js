// Waits for a server that has too much to do.

import { ApiError } from "./api.js";

/**
 * @typedef {object} Patience
 * @property {number} [tries] in all
 * @property {number} [most] seconds between two tries at most, whatever the server says
 * @property {readonly number[]} [statuses] of answers after which it is tried again
 * @property {() => void} [onWait] called before each wait
 * @property {AbortSignal | undefined} [signal]
 */

/**
 * Do something again while the server is busy, when it says that it may be tried.
 * @template T
 * @param {() => Promise<T>} action
 * @param {Patience} [options]
 * @returns {Promise<T>}
 */
export async function patiently(action, options = {}) {
  const { tries = 4, most = 10, statuses = [429], onWait, signal } = options;
  for (let attempt = 1; ; attempt++) {
    try {
      return await action();
    } catch (error) {
      const busy = error instanceof ApiError && statuses.includes(error.status);
      if (!busy || attempt >= tries) throw error;
      onWait?.();
      await pause(1000 * Math.min(error.retryAfter ?? 1, most), signal);
    }
  }
}

/**
 * Wait.
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 * @throws {DOMException} an AbortError
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
