// Files of the site that are too large to fetch twice: models and the runtime's WebAssembly.
//
//     const bytes = await openFile(file, {onProgress, signal});
//
// A file is downloaded once, inflated, compared with its SHA-256 before anything uses it, and kept
// on the device under that hash.

import { siteUrl } from "../shared/config.js";
import { aborted, InferenceError, reasonOf } from "./errors.js";
import { isStored, listStored, readStored, removeStored, store } from "./file_store.js";
import { DamagedError, readWhole } from "./read_whole.js";
import { sha256 } from "./sha256.js";

export { storeNote } from "./file_store.js";

/** @import { SiteFile } from "../shared/config.js" */

/**
 * Receives how far a download is, in bytes that travel; at least once, at the end.
 * @callback OnProgress
 * @param {number} loaded
 * @param {number} total
 * @returns {void}
 */

/**
 * @typedef {object} OpenOptions
 * @property {OnProgress | undefined} [onProgress]
 * @property {AbortSignal | undefined} [signal]
 */

/**
 * A download, which several parts of a page may wait for.
 * @typedef {object} Download
 * @property {Promise<Uint8Array<ArrayBuffer>>} result
 * @property {Set<OnProgress>} listeners
 * @property {AbortController} controller
 * @property {number} waiting how many wait for it; it is given up when none does
 */

const MOST_BYTES = 2 ** 31 - 1;
/** @type {Map<string, Download>} */
const downloads = new Map();

/**
 * Return the inflated and verified bytes of a file. They belong to everybody: do not change them,
 * and do not transfer their buffer.
 * @param {SiteFile} file
 * @param {OpenOptions} [options]
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {InferenceError} `not_found`, `unreachable`, `refused`, `damaged`, `no_inflate`
 * @throws {DOMException} an AbortError
 */
export async function openFile(file, { onProgress = () => {}, signal } = {}) {
  if (signal?.aborted) throw aborted();
  let download = downloads.get(file.sha256);
  if (download === undefined) {
    download = start(file);
    downloads.set(file.sha256, download);
  }
  return wait(download, onProgress, signal);
}

/**
 * Return several files; their progress is one. An error of one gives up the others.
 * @param {SiteFile[]} files
 * @param {OpenOptions} [options]
 */
export async function openFiles(files, { onProgress = () => {}, signal } = {}) {
  if (signal?.aborted) throw aborted();
  const controller = new AbortController();
  const giveUp = () => controller.abort();
  signal?.addEventListener("abort", giveUp);
  const loaded = files.map(() => 0);
  const total = files.reduce((sum, file) => sum + file.download_bytes, 0);
  const all = files.map((file, i) =>
    openFile(file, {
      signal: controller.signal,
      onProgress: (done, all) => {
        loaded[i] = Math.min(1, done / all) * file.download_bytes;
        onProgress(Math.round(loaded.reduce((sum, one) => sum + one, 0)), total);
      },
    }),
  );
  try {
    return await Promise.all(all);
  } catch (error) {
    giveUp();
    throw error;
  } finally {
    signal?.removeEventListener("abort", giveUp);
  }
}

/**
 * Return whether a file is kept on the device.
 * @param {SiteFile} file
 */
export function isCached(file) {
  return isStored(file.sha256);
}

/**
 * Return how many bytes of some files would travel now.
 * @param {SiteFile[]} files
 */
export async function bytesToDownload(files) {
  const cached = await Promise.all(files.map(isCached));
  return files.reduce((sum, file, i) => sum + (cached[i] ? 0 : file.download_bytes), 0);
}

/**
 * Return the files kept on the device, by whether something of the site still names them.
 * @param {SiteFile[]} files those that are named
 */
export async function listKept(files) {
  const named = new Set(files.map((file) => file.sha256));
  const stored = await listStored();
  return {
    named: stored.filter((one) => named.has(one.sha256)),
    others: stored.filter((one) => !named.has(one.sha256)),
  };
}

/**
 * Remove files from the device.
 * @param {{sha256: string}[]} files
 */
export async function removeFiles(files) {
  for (const { sha256: digest } of files) await removeStored(digest);
}

/**
 * @param {SiteFile} file
 * @returns {Download}
 */
function start(file) {
  const controller = new AbortController();
  /** @type {Set<OnProgress>} */
  const listeners = new Set();
  /** @type {OnProgress} */
  const tell = (loaded, total) => {
    for (const listener of listeners) listener(loaded, total);
  };
  const result = obtain(file, tell, controller.signal).finally(() => {
    if (downloads.get(file.sha256) === download) downloads.delete(file.sha256);
  });
  /** @type {Download} */
  const download = { result, listeners, controller, waiting: 0 };
  return download;
}

/**
 * Wait for a download, and give it up if nobody else waits for it.
 * @param {Download} download
 * @param {OnProgress} onProgress
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
function wait(download, onProgress, signal) {
  return new Promise((resolve, reject) => {
    download.listeners.add(onProgress);
    download.waiting++;
    const leave = () => {
      download.listeners.delete(onProgress);
      download.waiting--;
      signal?.removeEventListener("abort", onAbort);
    };
    const onAbort = () => {
      leave();
      if (download.waiting === 0) {
        for (const [key, one] of downloads) if (one === download) downloads.delete(key);
        download.controller.abort();
      }
      reject(aborted());
    };
    signal?.addEventListener("abort", onAbort);
    download.result.then(resolve, reject).finally(() => {
      if (!signal?.aborted) leave();
    });
  });
}

/**
 * Read a file from the device, or download it: twice, if the first one is not what was listed.
 * @param {SiteFile} file
 * @param {OnProgress} tell
 * @param {AbortSignal} signal
 */
async function obtain(file, tell, signal) {
  if (!(file.bytes >= 0 && file.bytes <= MOST_BYTES)) {
    throw new InferenceError("refused", `${file.name} is too large for a browser.`);
  }
  const stored = await readStored(file.sha256);
  if (stored !== null) {
    if ((await sha256(stored)) === file.sha256) {
      tell(file.download_bytes, file.download_bytes);
      return stored;
    }
    await removeStored(file.sha256); // damaged on the device
  }
  /** @type {unknown} */
  let damage;
  // The second time past the browser's own cache, which may hold an older or a damaged file.
  for (const cache of /** @type {RequestCache[]} */ (["default", "reload"])) {
    try {
      const bytes = await fetchWhole(file, cache, tell, signal);
      if (signal.aborted) throw aborted();
      if ((await sha256(bytes)) !== file.sha256) throw new DamagedError("its SHA-256 differs");
      await store(file.sha256, file.name, bytes);
      return bytes;
    } catch (error) {
      if (!(error instanceof DamagedError)) throw error;
      damage = error;
    }
  }
  throw new InferenceError(
    "damaged",
    `${file.name} is not the file that this site lists: ${reasonOf(damage)}. Reload the page; if ` +
      "that does not help, the site's files have to be copied or exported again.",
    { cause: damage },
  );
}

/**
 * @param {SiteFile} file
 * @param {RequestCache} cache
 * @param {OnProgress} tell
 * @param {AbortSignal} signal
 */
async function fetchWhole(file, cache, tell, signal) {
  try {
    const init = { cache, signal, credentials: /** @type {const} */ ("same-origin") };
    const answer = await fetch(siteUrl(file.url), init);
    if (!answer.ok || answer.body === null) {
      answer.body?.cancel().catch(() => {});
      throw refusal(file, answer.status);
    }
    const gzip = file.encoding === "gzip";
    return await readWhole(answer.body, { bytes: file.bytes, gzip }, (loaded, compressed) =>
      tell(loaded, Math.max(1, compressed ? file.download_bytes : file.bytes)),
    );
  } catch (error) {
    if (signal.aborted) throw aborted();
    if (error instanceof InferenceError || error instanceof DamagedError) throw error;
    if (error instanceof RangeError) {
      throw new InferenceError("refused", `There is not enough memory for ${file.name}.`);
    }
    throw new InferenceError(
      "unreachable",
      `${file.name} could not be downloaded: check the connection, and try again.`,
      { cause: error },
    );
  }
}

/**
 * @param {SiteFile} file
 * @param {number} status
 */
function refusal(file, status) {
  if (status === 404) {
    return new InferenceError(
      "not_found",
      `${file.name} is missing on this site: reload the page, as the site may have changed.`,
    );
  }
  const why = status === 401 ? "the session has ended: reload the page" : `error ${status}`;
  return new InferenceError("refused", `${file.name} could not be downloaded: ${why}.`);
}
