// What is seen at the place of the picture: the picture, or why there is none and what to do.

import { press } from "./controls.js";
import { rounded } from "./figures.js";
import { byId, fill, h } from "../shared/dom.js";

/** @typedef {import("./picture.js").Picture} Picture */

/** @type {Partial<Record<import("./picture.js").State, string>>} */
const MARKS = { frozen: "Frozen", paused: "Paused", ended: "The end" };

/**
 * @typedef {object} CoverButton
 * @property {string} text
 * @property {() => void} run
 * @property {boolean} [primary]
 */

export class Stage {
  /** @type {boolean | null} */ #mirror = null; // null: as people expect of the source

  /** @param {Picture} picture */
  constructor(picture) {
    this.picture = picture;
    this.element = byId("stage");
    this.slot = byId("view");
    this.cover = byId("cover");
    this.mark = byId("mark");
    this.figures = byId("figures");
    this.rate = byId("rate");
    this.speed = byId("speed");
    this.controls = byId("controls");
    this.mirrorButton = byId("mirror-button");
    this.freezeButton = byId("freeze-button");
    this.pauseButton = byId("pause-button");
    setInterval(() => this.#drawFigures(), 500);
  }

  /** Draw what there is now. */
  draw() {
    const { state, source } = this.picture;
    this.element.dataset.state = state;
    this.element.dataset.source = source?.kind ?? "";
    this.#draw(source?.element ?? null);
    this.picture.canvas.hidden = state !== "frozen";
    const off = state === "paused" && source?.kind === "camera";
    this.slot.hidden = state === "frozen" || off;
    const mark = MARKS[state];
    this.mark.hidden = mark === undefined;
    fill(this.mark, mark);
    this.controls.hidden = source === null;
    const canMirror = source?.kind === "camera";
    const mirrored = canMirror && (this.#mirror ?? source.mirrors);
    this.mirrorButton.hidden = !canMirror;
    press(this.mirrorButton, mirrored);
    this.element.classList.toggle("mirrored", mirrored);
    const moves = this.picture.video !== null;
    this.freezeButton.hidden = this.pauseButton.hidden = !moves;
    press(this.freezeButton, state === "frozen");
    const stands = state === "paused" || state === "ended";
    this.pauseButton.setAttribute("aria-label", stands ? "Continue" : "Pause");
    this.pauseButton.classList.toggle("stands", stands);
    this.#drawFigures();
  }

  toggleMirror() {
    const { source } = this.picture;
    if (source?.kind !== "camera") return;
    this.#mirror = !(this.#mirror ?? source.mirrors);
    this.draw();
  }

  /** Another camera is seen as people expect of it. */
  resetMirror() {
    this.#mirror = null;
  }

  /**
   * Say why there is no picture, and what can be done.
   * @param {{title: string, text?: string, busy?: boolean, more?: Node | null, buttons?: CoverButton[]}} content
   */
  showCover({ title, text, busy = false, more = null, buttons = [] }) {
    this.cover.hidden = false;
    fill(
      this.cover,
      busy && h("span", { class: "spinner", "aria-hidden": "true" }),
      h("h2", { tabindex: "-1" }, title),
      text !== undefined && h("p", {}, text),
      buttons.length > 0 &&
        h(
          "p",
          { class: "cover-buttons" },
          buttons.map(({ text: label, run, primary = false }) =>
            h("button", { type: "button", class: primary ? "primary" : null, onclick: run }, label),
          ),
        ),
      more,
    );
  }

  hideCover() {
    const hadFocus = this.cover.contains(document.activeElement);
    this.cover.hidden = true;
    fill(this.cover);
    if (!hadFocus) return;
    // Keyboards go on where the picture is.
    if (this.freezeButton.hidden) byId("source-button").focus();
    else this.freezeButton.focus();
  }

  /** @param {HTMLElement | null} view */
  #draw(view) {
    if (view === null) fill(this.slot);
    else if (this.slot.firstChild !== view) fill(this.slot, view);
  }

  // The figures are for programs too, which measure the page.
  #drawFigures() {
    const { figures } = this.picture;
    const now = performance.now();
    const rate = figures.rate(now);
    const shown = figures.sourceRate(now);
    const { median, p95 } = figures;
    Object.assign(this.figures.dataset, {
      frames: figures.frames,
      rate: rate ?? "",
      sourceRate: shown ?? "",
      median: median ?? "",
      p95: p95 ?? "",
    });
    this.rate.hidden = rate === null;
    if (rate !== null) {
      const of = shown === null ? "" : ` of ${rounded(shown)}`;
      fill(this.rate, `${rounded(rate)}${of} frames/s`);
    }
    this.speed.hidden = median === null;
    if (median !== null) {
      fill(this.speed, `${rounded(median)} ms`, p95 !== null && `, 95 % below ${rounded(p95)}`);
    }
    this.figures.hidden = rate === null && median === null;
  }
}
