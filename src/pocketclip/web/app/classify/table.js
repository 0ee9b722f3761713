// The table of images.

import { fill, h, printable } from "../shared/dom.js";
import { NONE, percent } from "../models/scored.js";
import { groupOf } from "./results.js";
import { Thumbnails } from "./thumbnails.js";

/** @typedef {import("./results.js").Item} Item */

/**
 * @typedef {object} Row
 * @property {HTMLElement} element
 * @property {HTMLImageElement} image
 * @property {HTMLElement} answer
 * @property {HTMLElement} probability
 * @property {HTMLElement} cosine
 */

export class Table {
  /** @type {Map<Item, Row>} */ #rows = new Map();
  /** @type {Item[]} */ #shown = [];
  #thumbnails = new Thumbnails();

  /**
   * @param {HTMLElement} body of the table
   * @param {{onRemove: (item: Item) => void}} handlers
   */
  constructor(body, handlers) {
    this.body = body;
    this.handlers = handlers;
  }

  /**
   * Show these images in this order; rows that are there already stay.
   * @param {Item[]} items
   */
  show(items) {
    const same =
      items.length === this.#shown.length && items.every((item, at) => item === this.#shown[at]);
    if (same) return;
    this.#shown = items;
    const focus = document.activeElement;
    this.body.replaceChildren(...items.map((item) => this.#rowOf(item).element));
    if (focus instanceof HTMLElement && this.body.contains(focus)) focus.focus();
  }

  /**
   * Show what is known of an image now.
   * @param {Item} item
   */
  update(item) {
    const row = this.#rows.get(item);
    if (row !== undefined) draw(row, item);
  }

  /**
   * Forget an image.
   * @param {Item} item
   * @returns {HTMLElement | null} what should have the focus then
   */
  remove(item) {
    const row = this.#rows.get(item);
    if (row === undefined) return null;
    const near = row.element.nextElementSibling ?? row.element.previousElementSibling;
    this.#thumbnails.forget(row.image);
    this.#rows.delete(item);
    row.element.remove();
    this.#shown = this.#shown.filter((one) => one !== item);
    return near?.querySelector(".remove button") ?? null;
  }

  /**
   * @param {Item} item
   * @returns {Row}
   */
  #rowOf(item) {
    let row = this.#rows.get(item);
    if (row !== undefined) return row;
    const image = h("img", { alt: "", width: 56, height: 56 });
    const answer = h("td", { role: "cell", class: "answer" });
    const probability = h("td", { role: "cell", class: "number probability" });
    const cosine = h("td", { role: "cell", class: "number cosine" });
    const name = printable(item.path);
    const remove = h(
      "button",
      {
        type: "button",
        class: "icon plain",
        "aria-label": `Remove ${name}`,
        onclick: () => this.handlers.onRemove(item),
      },
      h("span", { "aria-hidden": "true" }, "×"),
    );
    const element = h(
      "tr",
      { role: "row" },
      h("td", { role: "cell", class: "thumbnail" }, image),
      h("th", { role: "rowheader", scope: "row", class: "name" }, h("bdi", {}, item.path)),
      answer,
      probability,
      cosine,
      h("td", { role: "cell", class: "remove" }, remove),
    );
    row = { element, image, answer, probability, cosine };
    this.#rows.set(item, row);
    this.#thumbnails.show(image, item.file);
    draw(row, item);
    return row;
  }
}

/**
 * @param {Row} row
 * @param {Item} item
 */
function draw({ element, answer, probability, cosine }, item) {
  const { result, state } = item;
  const best = result?.top[0];
  element.dataset.group = groupOf(item).split(" ")[0];
  if (result === null || best === undefined) {
    fill(answer, h("span", { class: state === "failed" ? "error" : "dim" }, wordOf(item)));
    fill(probability);
    fill(cosine);
    return;
  }
  const none = result.none ? [bar(NONE, result.noneProbability, true)] : [];
  fill(
    answer,
    h(
      "ul",
      { role: "list", class: "bars" },
      ...none,
      result.top.map((one, at) => bar(one.label, one.probability, at === 0 && !result.none)),
    ),
  );
  const shown = result.none ? result.noneProbability : best.probability;
  fill(probability, shown === null ? "–" : percent(shown));
  fill(cosine, best.cosine === null ? "–" : best.cosine.toFixed(3).replace(/^-(?=0\.000$)/, ""));
}

/** @param {Item} item */
function wordOf({ state, why, embedding }) {
  if (state === "failed") return why;
  if (state === "encoding") return "Being read …";
  return embedding === null ? "Waits" : "Read; there are no labels yet";
}

/**
 * @param {string} label
 * @param {number | null} probability
 * @param {boolean} isBest
 */
function bar(label, probability, isBest) {
  const share = probability ?? 0;
  return h(
    "li",
    { class: isBest ? "bar-row best" : "bar-row", style: { "--share": String(share) } },
    h("span", { class: "bar-label" }, h("bdi", {}, label)),
    h("span", { class: "bar-value" }, probability === null ? "" : percent(probability)),
  );
}
