// Files to and from the device.

import { h } from "./dom.js";

/**
 * Save a text as a file of the device.
 * @param {string} name
 * @param {string} text
 * @param {string} type its media type
 */
export function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  // Browsers begin to read the URL after the click has returned.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * Return a text as the middle of a file's name: without what systems do not allow there.
 * @param {string} text
 */
export function fileStem(text) {
  const stem = text.replace(/[\p{Cc}\p{Cf}\\/:*?"<>|]+/gu, " ").replace(/^[\s.]+|[\s.]+$/g, "");
  return stem.slice(0, 60) || "file";
}
