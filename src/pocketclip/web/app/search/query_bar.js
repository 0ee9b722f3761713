// The bar with the text, the pictures and the filters of a search.

import { byId, fill, h, printable } from "../shared/dom.js";
import { siteUrl } from "../shared/config.js";
import { countFilters, doubtfulSign } from "./query_state.js";
import { embedPicture, imagesIn } from "./sent_pictures.js";
import { callPatiently, isAbort, messageOf } from "./client.js";
import { shownName } from "./photo_texts.js";

/** @typedef {import("./query_state.js").QueryState} QueryState */
/** @typedef {import("./query_state.js").Picture} Picture */
/** @typedef {import("./query_state.js").FilterState} FilterState */

/**
 * @typedef {object} BarEvents
 * @property {(how: "typed" | "chosen") => void} onChange the query is another one
 * @property {() => string | null} spaceId of the library; null: not known yet
 * @property {number} imageBytes of a picture that the server takes
 */

export class QueryBar {
  /**
   * @param {QueryState} query is changed in place
   * @param {BarEvents} events
   */
  constructor(query, events) {
    this.query = query;
    this.events = events;
    this.text = /** @type {HTMLInputElement} */ (byId("query"));
    this.literal = /** @type {HTMLInputElement} */ (byId("literal"));
    this.filters = byId("filters");
    this.toggle = byId("filters-toggle");
    this.pending = 0;
    this.hasChoices = false;
    this.listen();
  }

  listen() {
    this.text.addEventListener("input", () => {
      this.query.text = this.text.value;
      this.drawHint();
      this.events.onChange("typed");
    });
    byId("query-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.query.text = this.text.value;
      this.events.onChange("chosen");
    });
    this.literal.addEventListener("change", () => {
      this.query.literal = this.literal.checked;
      this.drawHint();
      this.events.onChange("chosen");
    });
    this.toggle.addEventListener("click", () => this.showFilters(this.filters.hidden !== false));
    for (const name of /** @type {(keyof FilterState)[]} */ (Object.keys(this.query.filters))) {
      const field = this.field(name);
      field.addEventListener("change", () => {
        this.query.filters[name] = field.value;
        this.drawFilters();
        this.events.onChange("chosen");
      });
    }
    byId("filters-clear").addEventListener("click", () => this.clearFilters());
    const dialog = /** @type {HTMLDialogElement} */ (byId("picture-dialog"));
    byId("add-picture").addEventListener("click", () => dialog.showModal());
    for (const id of ["picture-file", "picture-camera"]) {
      const input = /** @type {HTMLInputElement} */ (byId(id));
      input.addEventListener("change", () => {
        dialog.close();
        void this.addFiles(imagesIn(input.files));
        input.value = "";
      });
    }
    byId("picture-close").addEventListener("click", () => dialog.close());
    this.listenToDrops();
  }

  listenToDrops() {
    const hasFiles = (/** @type {DragEvent} */ event) =>
      event.dataTransfer?.types.includes("Files");
    let depth = 0;
    const mark = () => document.body.classList.toggle("dropping", depth > 0);
    addEventListener("dragenter", (event) => {
      if (hasFiles(event)) depth += 1;
      mark();
    });
    addEventListener("dragleave", (event) => {
      if (hasFiles(event)) depth = Math.max(0, depth - 1);
      mark();
    });
    addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      depth = 0;
      mark();
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.addGiven(event.dataTransfer);
    });
    addEventListener("paste", (event) => {
      if (imagesIn(event.clipboardData).length === 0) return; // text goes where the cursor is
      event.preventDefault();
      this.addGiven(event.clipboardData);
    });
  }

  /** @param {DataTransfer | null} given */
  addGiven(given) {
    const files = imagesIn(given);
    if (files.length) void this.addFiles(files);
    else this.say("That is no picture.");
  }

  /** @param {File[]} files */
  async addFiles(files) {
    const { imageBytes: limit } = this.events;
    const spaceId = this.events.spaceId();
    if (spaceId === null) {
      this.say("The server does not answer: its model is not known.");
      return;
    }
    this.pending += files.length;
    this.drawPictures();
    this.say("");
    for (const file of files) {
      try {
        this.query.pictures.push(await embedPicture(file, { spaceId, limit }));
        this.events.onChange("chosen");
      } catch (error) {
        if (!isAbort(error)) this.say(messageOf(error));
      } finally {
        this.pending -= 1;
        this.drawPictures();
      }
    }
  }

  /**
   * Search for photographs like one of the library, or unlike it.
   * @param {number} id
   * @param {string} name
   * @param {boolean} minus
   */
  addKnown(id, name, minus) {
    const others = this.query.pictures.filter((one) => one.id !== id);
    this.query.pictures = minus ? others : [];
    if (!minus) {
      this.query.text = "";
    }
    this.query.pictures.push({ kind: "library", id, name, minus });
    this.draw();
    this.events.onChange("chosen");
  }

  clearFilters() {
    for (const name of /** @type {(keyof FilterState)[]} */ (Object.keys(this.query.filters))) {
      this.query.filters[name] = "";
    }
    this.draw();
    this.events.onChange("chosen");
  }

  /** @param {boolean} shown */
  showFilters(shown) {
    this.filters.hidden = !shown;
    this.toggle.setAttribute("aria-expanded", String(shown));
    if (shown && !this.hasChoices) void this.loadChoices();
  }

  /** Ask what the filters may be. */
  async loadChoices() {
    try {
      const choices = await callPatiently("GET", "library/choices");
      this.hasChoices = true;
      for (const [id, found] of [
        ["folder-choices", choices.folders],
        ["camera-choices", choices.cameras],
        ["year-choices", choices.years],
      ]) {
        fill(
          byId(id),
          found.map((/** @type {{name: string, files: number}} */ one) =>
            h("option", { value: one.name, label: `${shownName(one.name)} (${one.files})` }),
          ),
        );
      }
    } catch {
      // People can write them all the same.
    }
  }

  /**
   * @param {keyof FilterState} name
   * @returns {HTMLInputElement}
   */
  field(name) {
    return byId(`filter-${name}`);
  }

  /** Show the query. */
  draw() {
    if (this.text.value !== this.query.text) this.text.value = this.query.text;
    this.literal.checked = this.query.literal;
    this.drawHint();
    this.drawPictures();
    this.drawFilters();
  }

  drawHint() {
    const word = doubtfulSign(this.query);
    byId("query-hint").textContent = word
      ? `To avoid something, put a space after the sign: “- ${word.slice(1)}”.`
      : "";
  }

  /** @param {string} text */
  say(text) {
    byId("query-error").textContent = printable(text);
  }

  drawFilters() {
    for (const name of /** @type {(keyof FilterState)[]} */ (Object.keys(this.query.filters))) {
      const field = this.field(name);
      if (field.value !== this.query.filters[name]) field.value = this.query.filters[name];
    }
    const count = countFilters(this.query);
    byId("filters-count").textContent = count ? String(count) : "";
    this.toggle.setAttribute("aria-label", count ? `Filters, ${count} set` : "Filters");
    byId("filters-clear").hidden = count === 0;
  }

  drawPictures() {
    const chips = this.query.pictures.map((picture, at) => this.makeChip(picture, at));
    for (let i = 0; i < this.pending; i += 1) {
      chips.push(h("li", { class: "chip picture pending" }, h("span", {}, "Reading a picture…")));
    }
    fill(byId("pictures"), chips);
    byId("pictures").hidden = chips.length === 0;
  }

  /**
   * @param {Picture} picture
   * @param {number} at
   */
  makeChip(picture, at) {
    const name = printable(picture.name);
    const source =
      picture.kind === "library" ? siteUrl(`thumbnails/${picture.id}`) : picture.thumbnail;
    const sign = h(
      "button",
      {
        type: "button",
        class: "sign",
        "aria-label": picture.minus ? `Unlike ${name}: look for it` : `Like ${name}: avoid it`,
        title: picture.minus ? "Avoided. Click to look for it." : "Looked for. Click to avoid it.",
      },
      picture.minus ? "\u2212" : "+",
    );
    sign.addEventListener("click", () => {
      picture.minus = !picture.minus;
      this.drawPictures();
      this.signAt(at)?.focus();
      this.events.onChange("chosen");
    });
    const remove = h("button", { type: "button", "aria-label": `Remove ${name}` }, "×");
    remove.addEventListener("click", () => {
      this.query.pictures.splice(at, 1);
      this.drawPictures();
      (this.signAt(at) ?? this.signAt(at - 1) ?? this.text).focus();
      this.events.onChange("chosen");
    });
    return h(
      "li",
      { class: picture.minus ? "chip picture minus" : "chip picture" },
      sign,
      source
        ? h("img", { src: source, alt: "", width: 36, height: 36 })
        : h("span", { class: "no-thumbnail", "aria-hidden": "true" }),
      h("span", { class: "picture-name", title: name }, name),
      remove,
    );
  }

  /**
   * @param {number} at
   * @returns {HTMLElement | null}
   */
  signAt(at) {
    return byId("pictures").children[at]?.querySelector("button.sign") ?? null;
  }
}
