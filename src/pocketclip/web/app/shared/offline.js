// Whether these pages open without a network: by a service worker, where browsers allow one.

import { siteUrl } from "./config.js";

/**
 * @typedef {object} OfflineState
 * @property {boolean} ready
 * @property {string} sentence for people
 */

/** @type {Promise<OfflineState> | undefined} */
let state;

/** Return whether these pages open without a network, when that is known. */
export function offlineState() {
  state ??= register();
  return state;
}

/** Remove the list of models that sw.js keeps: it is for those who have a session. */
export async function forgetModels() {
  const name = `pocketclip-models-1 ${new URL(siteUrl("./")).pathname}`;
  await globalThis.caches?.delete(name).catch(() => false);
}

/** @returns {Promise<OfflineState>} */
async function register() {
  if (!globalThis.isSecureContext) {
    return not("browsers keep pages that come over https, or from the device itself, only");
  }
  if (!("serviceWorker" in navigator)) return not("this browser keeps no pages");
  await loaded();
  try {
    const options = /** @type {RegistrationOptions} */ ({ updateViaCache: "none" });
    const registration = await navigator.serviceWorker.register(siteUrl("sw.js"), options);
    if (await isActive(registration)) {
      return { ready: true, sentence: "These pages open without a network too." };
    }
    return not("the browser could not keep them: its storage may be full");
  } catch {
    // Most often the certificate: for a worker no browser lets people go on behind its warning.
    return not("the browser refuses to keep them, as it does for a certificate it does not know");
  }
}

/**
 * @param {string} why
 * @returns {OfflineState}
 */
function not(why) {
  return { ready: false, sentence: `These pages do not open without a network: ${why}.` };
}

/** Wait until the page has loaded what it shows: the worker fetches everything. */
function loaded() {
  return /** @type {Promise<void>} */ (
    new Promise((resolve) => {
      if (document.readyState === "complete") resolve();
      else addEventListener("load", () => resolve(), { once: true });
    })
  );
}

/**
 * Return whether a worker has everything that it keeps; wait for one that is being installed.
 * @param {ServiceWorkerRegistration} registration
 */
function isActive(registration) {
  const { active, installing, waiting } = registration;
  const one = installing ?? waiting;
  if (active !== null || one === null) return active !== null;
  return /** @type {Promise<boolean>} */ (
    new Promise((resolve) => {
      const look = () => {
        if (one.state === "activated" || one.state === "redundant") {
          one.removeEventListener("statechange", look);
          resolve(one.state === "activated");
        }
      };
      one.addEventListener("statechange", look);
      look();
    })
  );
}
