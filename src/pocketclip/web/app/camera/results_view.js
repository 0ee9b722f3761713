// The list of results. Rows keep their element, so that they move instead of blinking.

import { Announcer } from "./announcer.js";
import { percent } from "../models/scored.js";
import { rowsOf, spoken } from "./rows.js";
import { byId, countOf, fill, h, printable } from "../shared/dom.js";

const SHOWN = 10; // rows, until people want all
const ORDER_MS = 400; // between two orders of the rows of a moving picture

/** @typedef {import("./rows.js").Row} Row */

export class ResultsView {
  /** @type {Row[]} */ rows = [];
  /** @type {Map<string, HTMLLIElement>} */ #elements = new Map();
  /** @type {string[]} */ #order = [];
  #orderedAt = -Infinity;
  #all = false;
  #announcer = new Announcer();

  constructor() {
    this.list = byId("results");
    this.empty = byId("results-empty");
    this.tools = byId("results-tools");
    this.more = byId("results-more");
    this.voice = byId("spoken");
    this.more.addEventListener("click", () => {
      this.#all = !this.#all;
      this.#draw();
    });
  }

  /**
   * Show a result.
   * @param {import("../models/scored.js").Scored} scored
   * @param {{final?: boolean}} [options] final: no other one follows soon
   */
  show(scored, { final = false } = {}) {
    const now = performance.now();
    this.rows = rowsOf(scored);
    const keys = this.rows.map((row) => row.key);
    const known = new Set(this.#order);
    const same = keys.length === known.size && keys.every((key) => known.has(key));
    if (final || !same || now - this.#orderedAt >= ORDER_MS) {
      this.#order = keys;
      this.#orderedAt = now;
    }
    this.#draw();
    const text = this.#announcer.next(spoken(this.rows), now, { final });
    if (text !== null) this.voice.textContent = printable(text);
  }

  /**
   * Show that there is no result, and what to do.
   * @param {string} text
   */
  clear(text) {
    this.rows = [];
    this.#order = [];
    this.#announcer.reset();
    this.voice.textContent = "";
    this.#draw();
    fill(this.empty, text);
  }

  #draw() {
    const byKey = new Map(this.rows.map((row) => [row.key, row]));
    const long = this.#order.length > SHOWN + 2;
    const keys = this.#all || !long ? this.#order : this.#order.slice(0, SHOWN);
    const before = this.#places();
    const wanted = new Set(keys);
    for (const [key, element] of this.#elements) {
      if (wanted.has(key)) continue;
      element.remove();
      this.#elements.delete(key);
    }
    keys.forEach((key, at) => {
      const row = /** @type {Row} */ (byKey.get(key));
      const element = this.#elements.get(key) ?? newRow(row);
      this.#elements.set(key, element);
      if (this.list.children[at] !== element) {
        this.list.insertBefore(element, this.list.children[at] ?? null);
      }
      update(element, row);
    });
    this.#move(before);
    this.empty.hidden = this.rows.length > 0;
    this.list.hidden = this.tools.hidden = this.rows.length === 0;
    this.more.hidden = !long;
    fill(this.more, this.#all ? "Show the best" : `Show all ${countOf(this.rows.length, "label")}`);
  }

  /** @returns {Map<string, number>} */
  #places() {
    return new Map([...this.#elements].map(([key, one]) => [key, one.offsetTop]));
  }

  /**
   * Let rows glide from where they were.
   * @param {Map<string, number>} before
   */
  #move(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const [key, element] of this.#elements) {
      const from = before.get(key);
      const by = from === undefined ? 0 : from - element.offsetTop;
      if (by === 0) continue;
      element.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], {
        duration: 220,
        easing: "ease-out",
      });
    }
  }
}

/**
 * @param {Row} row
 * @returns {HTMLLIElement}
 */
function newRow(row) {
  return h(
    "li",
    { class: row.none ? "result none" : "result" },
    h("span", { class: "bar-fill", "aria-hidden": "true" }),
    h("span", { class: "name" }, row.label),
    h("span", { class: "cosine" }),
    h("span", { class: "probability" }),
  );
}

/**
 * @param {HTMLLIElement} element
 * @param {Row} row
 */
function update(element, { bold, cosine, level, probability }) {
  element.classList.toggle("fits", bold);
  element.style.setProperty("--level", String(level));
  const [fillOf, , cosineOf, probabilityOf] = /** @type {HTMLElement[]} */ ([...element.children]);
  fillOf?.style.setProperty("--share", String(probability ?? 0));
  setText(cosineOf, cosine === null ? "" : cosine.toFixed(2).replace(/^-(?=0\.00$)/, ""));
  setText(probabilityOf, probability === null ? "" : percent(probability));
}

/**
 * Change a text only where it differs: what stays the same is not painted again.
 * @param {HTMLElement | undefined} element
 * @param {string} text
 */
function setText(element, text) {
  if (element !== undefined && element.textContent !== text) element.textContent = text;
}
