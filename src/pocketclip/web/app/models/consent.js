// Asks for a download before it begins.

import { openDialog } from "../shared/dialog.js";
import { formatBytes, h } from "../shared/dom.js";
import { hideLoading, showLoading } from "./starter.js";

/**
 * Ask whether the text tower may be downloaded, which labels of one's own need.
 * @param {number} bytes that would travel
 * @returns {Promise<boolean>}
 */
async function askForTextTower(bytes) {
  const size = formatBytes(bytes);
  const why = `It has ${size}, is downloaded once and kept on this device. Your labels stay here too.`;
  const buttons = [
    { text: `Download ${size}`, value: "yes", class: "primary" },
    { text: "Not now", value: "no" },
  ];
  const title = "These labels need the text part of the model";
  return (await openDialog(title, [h("p", {}, why)], buttons)) === "yes";
}

/** What a page's Namer asks and shows about the download of the text tower. */
export const textTowerDownload = {
  onConsent: askForTextTower,
  /**
   * @param {number} loaded bytes
   * @param {number} total bytes
   */
  onProgress(loaded, total) {
    showLoading("Loading the text part of the model", { loaded, total });
    if (loaded >= total) hideLoading();
  },
};
