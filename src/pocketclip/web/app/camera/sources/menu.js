// The dialog in which people choose what is looked at.

import { byId, fill, h } from "../../shared/dom.js";
import { showDialog } from "../controls.js";
import { listCameras } from "./camera.js";
import { canShareScreen } from "./screen.js";

/**
 * @typedef {object} MenuHandlers
 * @property {(deviceId: string | null) => void} onCamera
 * @property {(file: File) => void} onFile a photograph or a video
 * @property {() => void} onScreen
 */

/** @typedef {"photo" | "snapshot" | "video"} Input */

export class SourceMenu {
  /** @param {MenuHandlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("source-dialog"));
    for (const name of /** @type {Input[]} */ (["photo", "snapshot", "video"])) {
      const input = inputOf(name);
      input.addEventListener("change", () => {
        const [file] = input.files ?? [];
        if (file !== undefined) handlers.onFile(file);
        input.value = ""; // The same file can be chosen again.
      });
    }
  }

  /**
   * Let people choose a file, or take a photograph with the device's own camera.
   * @param {Input} name
   */
  pick(name) {
    inputOf(name).click();
  }

  /**
   * Open the dialog.
   * @param {string | null} current the camera that runs
   */
  async open(current) {
    const cameras = isSecureContext ? await listCameras() : [];
    const { onCamera, onScreen } = this.handlers;
    /** @type {[string, () => void, boolean?][]} */
    const choices =
      cameras.length > 1
        ? cameras.map(({ deviceId, label }) => [
            label,
            () => onCamera(deviceId),
            deviceId === current,
          ])
        : [["Camera", () => onCamera(null), current !== null]];
    choices.push(["Photograph from a file", () => this.pick("photo")]);
    if (matchMedia("(pointer: coarse)").matches) {
      choices.push(["Take a photograph", () => this.pick("snapshot")]);
    }
    choices.push(["Video from a file", () => this.pick("video")]);
    if (canShareScreen()) choices.push(["Screen, window or tab", onScreen]);
    fill(
      byId("source-choices"),
      choices.map(([text, run, isCurrent = false]) => {
        const onclick = () => {
          this.dialog.close();
          run();
        };
        return h(
          "button",
          { type: "button", onclick, "aria-current": isCurrent ? "true" : null },
          text,
        );
      }),
    );
    await showDialog(this.dialog);
  }
}

/**
 * @param {Input} name
 * @returns {HTMLInputElement}
 */
function inputOf(name) {
  return byId(`${name}-input`);
}
