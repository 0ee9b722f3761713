// The buttons over the picture, the sliders below it, and the keys.

import { byId, fill, h } from "../shared/dom.js";
import { load, save } from "../shared/storage.js";

/**
 * @typedef {object} Action
 * @property {string} key on the keyboard, in lower case
 * @property {string} shown the key's name
 * @property {string} does
 * @property {() => void} run
 */

/**
 * Run actions by their keys, unless people type, have a dialog open or have switched keys off: who
 * speaks to the device writes letters by accident.
 * @param {readonly Action[]} actions
 */
export function listenToKeys(actions) {
  const byKey = new Map(actions.map((one) => [one.key, one]));
  const on = /** @type {HTMLInputElement} */ (byId("keys-on"));
  on.checked = load("camera.keys", /** @type {unknown} */ (true)) !== false;
  on.addEventListener("change", () => save("camera.keys", on.checked));
  document.addEventListener("keydown", (event) => {
    if (!on.checked) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.defaultPrevented)
      return;
    if (isTaken(event.target, event.key) || document.querySelector("dialog[open]") !== null) return;
    const action = byKey.get(event.key.toLowerCase());
    if (action === undefined) return;
    event.preventDefault();
    action.run();
  });
  fill(
    byId("help-keys"),
    actions.flatMap(({ shown, does }) => [h("dt", {}, h("kbd", {}, shown)), h("dd", {}, does)]),
  );
}

/**
 * Return whether an element has a use of its own for a key.
 * @param {EventTarget | null} target
 * @param {string} key
 */
function isTaken(target, key) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target.matches("textarea, select")) return true;
  if (target.matches("input"))
    return !target.matches("[type=range], [type=checkbox]") || key === " ";
  return key === " " && target.matches("button, summary, a, [role=button], [role=tab]");
}

/**
 * Show a toggle's state.
 * @param {HTMLElement} button
 * @param {boolean} on
 */
export function press(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

/**
 * Open a dialog, and return when it is closed; a click beside it closes it.
 * @param {HTMLDialogElement} dialog
 * @returns {Promise<string>} the value that it was closed with
 */
export function showDialog(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

/** The slider of the camera's zoom. */
export class ZoomSlider {
  /** @type {import("./sources/camera.js").CameraSource | null} */ #camera = null;

  constructor() {
    this.row = byId("zoom-row");
    this.input = /** @type {HTMLInputElement} */ (byId("zoom"));
    this.input.addEventListener(
      "input",
      () => void this.#camera?.setZoom(Number(this.input.value)),
    );
  }

  /**
   * Show a camera's zoom, if it has one.
   * @param {import("./sources/camera.js").CameraSource | null} camera
   */
  show(camera) {
    const zoom = camera?.zoom ?? null;
    this.#camera = camera;
    this.row.hidden = zoom === null;
    if (zoom === null) return;
    this.input.min = String(zoom.min);
    this.input.max = String(zoom.max);
    this.input.step = String(zoom.step);
    this.input.value = String(zoom.value);
  }

  /**
   * Zoom by a tenth of the range.
   * @param {1 | -1} sign
   */
  move(sign) {
    if (this.row.hidden) return;
    const by = (Number(this.input.max) - Number(this.input.min)) / 10;
    this.input.value = String(Number(this.input.value) + sign * by);
    void this.#camera?.setZoom(Number(this.input.value));
  }
}

/** The slider of a video file's position. */
export class SeekSlider {
  /** @type {HTMLVideoElement | null} */ #video = null;

  constructor() {
    this.row = byId("seek-row");
    this.input = /** @type {HTMLInputElement} */ (byId("seek"));
    this.input.addEventListener("input", () => {
      if (this.#video !== null) this.#video.currentTime = Number(this.input.value);
    });
  }

  /**
   * Follow a video file; null: there is none.
   * @param {HTMLVideoElement | null} video
   */
  show(video) {
    this.row.hidden = video === null || !Number.isFinite(video.duration);
    if (this.#video === video) return;
    this.#video = video;
    if (video === null) return;
    this.input.max = String(video.duration || 0);
    video.addEventListener("timeupdate", () => {
      this.input.value = String(video.currentTime);
      this.input.setAttribute("aria-valuetext", `${video.currentTime.toFixed(0)} seconds`);
    });
  }
}
