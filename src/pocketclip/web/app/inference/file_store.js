// Files kept on the device under their SHA-256, in the browser's Cache API.
//
// It is absent on origins that are not secure, and may be full or denied: then files are kept in
// memory until the page is closed, and `storeNote` says so.

const NAME = "pocketclip-files-1";
/** @type {Map<string, Uint8Array<ArrayBuffer>>} */
const memory = new Map();
let note = "";
let asked = false;

/**
 * @typedef {object} StoredFile
 * @property {string} sha256
 * @property {string} name
 * @property {number} bytes
 */

/** Return why files are not kept on the device; empty: they are, or none was stored yet. */
export function storeNote() {
  return note;
}

/** @param {string} sha256 */
function addressOf(sha256) {
  return new URL(`/${NAME}/${sha256}`, location.origin).href;
}

/** Return the cache; null: there is none. */
async function openCache() {
  if (!("caches" in globalThis)) {
    note =
      "Model files are kept until the page is closed only: browsers store them for pages over " +
      "https and on this device itself.";
    return null;
  }
  try {
    return await caches.open(NAME);
  } catch {
    note = "Model files are kept until the page is closed only: the browser denies storage here.";
    return null;
  }
}

/**
 * Return a stored file, which is not verified; null where there is none.
 * @param {string} sha256
 */
export async function readStored(sha256) {
  const held = memory.get(sha256);
  if (held !== undefined) return held;
  try {
    const found = await (await openCache())?.match(addressOf(sha256));
    return found === undefined ? null : new Uint8Array(await found.arrayBuffer());
  } catch {
    return null;
  }
}

/**
 * Return whether a file is stored.
 * @param {string} sha256
 */
export async function isStored(sha256) {
  if (memory.has(sha256)) return true;
  try {
    return (await (await openCache())?.match(addressOf(sha256))) !== undefined;
  } catch {
    return false;
  }
}

/**
 * Keep a verified file: on the device, or where that is not possible in memory.
 * @param {string} sha256
 * @param {string} name for people
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export async function store(sha256, name, bytes) {
  const cache = await openCache();
  if (cache === null) {
    memory.set(sha256, bytes);
    return;
  }
  const headers = { "X-Name": encodeURIComponent(name), "X-Bytes": String(bytes.length) };
  try {
    await cache.put(addressOf(sha256), new Response(bytes, { headers }));
  } catch (error) {
    memory.set(sha256, bytes);
    const full = error instanceof DOMException && error.name === "QuotaExceededError";
    note = full
      ? "Model files are kept until the page is closed only: the browser's storage is full. " +
        "Remove models that you do not use, or free space on the device."
      : "Model files are kept until the page is closed only: the browser could not store them.";
    return;
  }
  if (!asked) {
    asked = true;
    // The browser may remove what is stored when space runs out, unless it grants this.
    navigator.storage?.persist?.().catch(() => false);
  }
}

/**
 * Remove a stored file.
 * @param {string} sha256
 */
export async function removeStored(sha256) {
  memory.delete(sha256);
  try {
    await (await openCache())?.delete(addressOf(sha256));
  } catch {
    // It cannot be removed where nothing can be stored.
  }
}

/**
 * Return all stored files.
 * @returns {Promise<StoredFile[]>}
 */
export async function listStored() {
  const found = new Map(
    Array.from(memory, ([sha256, { length }]) => [sha256, { sha256, name: "", bytes: length }]),
  );
  try {
    const cache = await openCache();
    for (const request of (await cache?.keys()) ?? []) {
      const headers = (await cache?.match(request))?.headers;
      const sha256 = request.url.slice(request.url.lastIndexOf("/") + 1);
      found.set(sha256, {
        sha256,
        name: decodeURIComponent(headers?.get("X-Name") ?? ""),
        bytes: Number(headers?.get("X-Bytes") ?? 0),
      });
    }
  } catch {
    // What cannot be listed is as if it were absent.
  }
  return [...found.values()];
}
