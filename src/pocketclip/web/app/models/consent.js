// Asks for a download before it begins.

import { openDialog } from "../shared/dialog.js";
import { formatBytes, h } from "../shared/dom.js";

/**
 * Ask whether the text tower may be downloaded, which labels of one's own need.
 * @param {number} bytes that would travel
 * @returns {Promise<boolean>}
 */
export async function askForTextTower(bytes) {
  const size = formatBytes(bytes);
  const why = `It has ${size}, is downloaded once and kept on this device. Your labels stay here too.`;
  const buttons = [
    { text: `Download ${size}`, value: "yes", class: "primary" },
    { text: "Not now", value: "no" },
  ];
  const title = "These labels need the text part of the model";
  return (await openDialog(title, [h("p", {}, why)], buttons)) === "yes";
}
