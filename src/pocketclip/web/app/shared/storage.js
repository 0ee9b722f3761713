// What a page keeps on the device; in private windows and full stores, until it is closed.

/** @type {Map<string, string>} */
const memory = new Map();
const PREFIX = "pocketclip.";

/**
 * Return a stored value; `fallback` where there is none, or it is damaged.
 * @template T
 * @param {string} name
 * @param {T} fallback
 * @returns {T}
 */
export function load(name, fallback) {
  let text = memory.get(name) ?? null;
  try {
    text ??= localStorage.getItem(PREFIX + name);
  } catch {
    // The browser denies storage to this page.
  }
  if (text === null) return fallback;
  try {
    return JSON.parse(text);
  } catch {
    return fallback;
  }
}

/**
 * Keep a value.
 * @param {string} name
 * @param {unknown} value as JSON
 * @returns {boolean} whether it is kept after the page is closed
 */
export function save(name, value) {
  const text = JSON.stringify(value);
  try {
    localStorage.setItem(PREFIX + name, text);
    memory.delete(name);
    return true;
  } catch {
    memory.set(name, text);
    return false;
  }
}

/**
 * Forget a value.
 * @param {string} name
 */
export function remove(name) {
  memory.delete(name);
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // There is no storage.
  }
}
