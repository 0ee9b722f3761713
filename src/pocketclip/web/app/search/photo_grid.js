// A grid of any number of photographs, of which only those near what is seen are elements.
//
// The rows near the window are kept, and the row of the active cell, so that the focus stays. Keys
// move the active cell (roving tabindex); Enter opens it.

import { h, printable } from "../shared/dom.js";
import { siteUrl } from "../shared/config.js";
import { GAP, columnsFor, moveBy, rowsNear } from "./layout.js";
import { shownName, splitName } from "./photo_texts.js";

/** @typedef {import("./photo_list.js").PhotoList} PhotoList */
/** @typedef {import("./photo_texts.js").PhotoFacts} PhotoFacts */

/**
 * @typedef {object} GridEvents
 * @property {(index: number) => void} onOpen a cell was chosen
 * @property {(index: number) => void} onActive the active cell is another one, by keys
 * @property {(ids: number[]) => void} onSee what is near the window has changed
 * @property {() => void} onNearEnd the end is near
 * @property {(id: number) => PhotoFacts | null | undefined} factsOf
 */

const SETTLE = 90; // ms: while people scroll fast, pictures that pass are not loaded
const RETRY = 1500; // ms after which a thumbnail is asked for again
const TRIES = 3;

export class PhotoGrid {
  /**
   * @param {HTMLElement} element
   * @param {GridEvents} events
   */
  constructor(element, events) {
    this.element = element;
    this.events = events;
    /** @type {PhotoList | null} */
    this.list = null;
    this.active = 0;
    this.columns = 3;
    this.side = 100;
    /** @type {Map<number, HTMLElement>} */
    this.rows = new Map();
    this.lastTop = 0;
    this.lastTime = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.settling = undefined;
    this.frame = 0;
    const schedule = () => {
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        this.draw();
      });
    };
    addEventListener("scroll", schedule, { passive: true });
    addEventListener("resize", schedule);
    new ResizeObserver(() => this.measure()).observe(element);
    element.addEventListener("click", (event) => {
      const index = this.indexOf(event.target);
      if (index === null) return;
      this.setActive(index, { focus: true });
      this.events.onOpen(index);
    });
    element.addEventListener("focusin", (event) => {
      const index = this.indexOf(event.target);
      if (index !== null && index !== this.active) this.setActive(index);
    });
    element.addEventListener("keydown", (event) => this.onKey(event));
  }

  /**
   * Show other photographs.
   * @param {PhotoList} list
   */
  show(list) {
    this.list = list;
    this.active = 0;
    this.clear();
    this.measure(true);
  }

  /** The list has grown. */
  grown() {
    const count = this.list?.length ?? 0;
    // The last row may have been half full.
    const row = this.rows.get(Math.floor((count - 1) / this.columns));
    if (row) this.dropRow(Math.floor((count - 1) / this.columns));
    for (const at of [...this.rows.keys()]) {
      if ((this.rows.get(at)?.childElementCount ?? 0) < this.columns) this.dropRow(at);
    }
    this.measure(true);
  }

  /** @param {boolean} [always] */
  measure(always = false) {
    const { columns, side } = columnsFor(this.element.clientWidth);
    if (!always && columns === this.columns && Math.abs(side - this.side) < 0.01) return;
    const anchor = this.firstSeen();
    const hasFocus = this.element.contains(document.activeElement);
    if (columns !== this.columns || side !== this.side) this.clear();
    Object.assign(this, { columns, side });
    this.element.style.setProperty("--columns", String(columns));
    this.element.style.setProperty("--side", `${side}px`);
    const rows = this.rowCount();
    this.element.style.setProperty("height", `${Math.max(0, rows * this.pitch - GAP)}px`);
    this.element.setAttribute("aria-rowcount", String(rows));
    this.element.setAttribute("aria-colcount", String(columns));
    if (!always && anchor > 0) this.scrollTo(anchor, "start");
    this.draw();
    if (hasFocus) this.buttonAt(this.active)?.focus({ preventScroll: true });
  }

  get pitch() {
    return this.side + GAP;
  }

  rowCount() {
    return Math.ceil((this.list?.length ?? 0) / this.columns);
  }

  /** Return the first photograph that is seen. */
  firstSeen() {
    const top = -this.element.getBoundingClientRect().top;
    return top <= 0 ? 0 : Math.round(top / this.pitch) * this.columns;
  }

  /** Make the rows that are near the window, and drop the others. */
  draw() {
    const list = this.list;
    if (!list || this.element.offsetParent === null) return;
    const top = -this.element.getBoundingClientRect().top;
    const view = { top, height: innerHeight, rows: this.rowCount(), pitch: this.pitch };
    const { begin, end } = rowsNear(view);
    const now = performance.now();
    const isFast = Math.abs(top - this.lastTop) > 3 * (now - this.lastTime); // px per ms
    this.lastTop = top;
    this.lastTime = now;
    const pinned = Math.floor(this.active / this.columns);
    for (const at of [...this.rows.keys()]) {
      if ((at < begin || at >= end) && at !== pinned) this.dropRow(at);
    }
    for (let at = begin; at < end; at += 1) if (!this.rows.has(at)) this.makeRow(at);
    if (list.length && !this.rows.has(pinned)) this.makeRow(pinned);
    clearTimeout(this.settling);
    const settle = () => {
      for (const row of this.rows.values()) for (const cell of row.children) loadPicture(cell);
      this.events.onSee(list.ids.slice(begin * this.columns, end * this.columns));
    };
    if (isFast) this.settling = setTimeout(settle, SETTLE);
    else settle();
    if (end * this.columns >= list.length - 2 * this.columns) this.events.onNearEnd();
  }

  clear() {
    for (const at of [...this.rows.keys()]) this.dropRow(at);
  }

  /** @param {number} at */
  dropRow(at) {
    const row = this.rows.get(at);
    if (!row) return;
    // A picture that is still on its way is given up.
    for (const image of row.querySelectorAll("img")) image.removeAttribute("src");
    row.remove();
    this.rows.delete(at);
  }

  /** @param {number} at */
  makeRow(at) {
    const list = /** @type {PhotoList} */ (this.list);
    const first = at * this.columns;
    const cells = list.ids
      .slice(first, first + this.columns)
      .map((id, column) => this.makeCell(id, first + column, column));
    const row = h("div", { role: "row", class: "photo-row", "aria-rowindex": at + 1 }, cells);
    row.style.setProperty("transform", `translateY(${at * this.pitch}px)`);
    this.rows.set(at, row);
    // In the order of the rows, for readers that go through the page.
    const after = [...this.element.children].find(
      (one) => Number(one.getAttribute("aria-rowindex")) > at + 1,
    );
    this.element.insertBefore(row, after ?? null);
  }

  /**
   * @param {number} id
   * @param {number} index
   * @param {number} column
   */
  makeCell(id, index, column) {
    const image = h("img", { alt: "", decoding: "async", draggable: "false" });
    const button = h(
      "button",
      {
        type: "button",
        class: "photo",
        tabindex: index === this.active ? 0 : -1,
        dataset: { index: String(index), id: String(id) },
      },
      image,
    );
    const cell = h("div", { role: "gridcell", "aria-colindex": column + 1 }, button);
    this.describe(cell, id, index);
    image.addEventListener("load", () => button.classList.add("loaded"));
    image.addEventListener("error", () => onMissing(button, image));
    return cell;
  }

  /**
   * Say what is known of a photograph.
   * @param {Element} cell
   * @param {number} id
   * @param {number} index
   */
  describe(cell, id, index) {
    const button = /** @type {HTMLButtonElement} */ (cell.firstElementChild);
    const image = /** @type {HTMLImageElement} */ (button.firstElementChild);
    const facts = this.events.factsOf(id);
    let name = `Photograph ${index + 1}`;
    if (facts === null) name = "Its file is not there now";
    else if (facts) name = printable(splitName(facts).file);
    image.alt = name;
    button.title = facts ? printable(shownName(facts.name)) : name;
    button.classList.toggle("gone", facts === null);
    button.querySelector(".badge")?.remove();
    const similar = this.list?.similar.get(id)?.total ?? 0;
    if (similar) {
      button.append(
        h("span", { class: "badge", title: `${similar} near duplicates` }, `+${similar}`),
      );
    }
  }

  /**
   * More is known of some photographs.
   * @param {Set<number>} ids
   */
  refresh(ids) {
    for (const row of this.rows.values()) {
      for (const cell of row.children) {
        const { id, index } = /** @type {HTMLElement} */ (cell.firstElementChild).dataset;
        if (ids.has(Number(id))) this.describe(cell, Number(id), Number(index));
      }
    }
  }

  /**
   * Make another cell the active one.
   * @param {number} index
   * @param {{focus?: boolean, scroll?: boolean}} [options]
   */
  setActive(index, { focus = false, scroll = false } = {}) {
    const count = this.list?.length ?? 0;
    if (!count) return;
    this.buttonAt(this.active)?.setAttribute("tabindex", "-1");
    this.active = Math.max(0, Math.min(index, count - 1));
    if (scroll) this.scrollTo(this.active, "nearest");
    this.draw();
    const button = this.buttonAt(this.active);
    button?.setAttribute("tabindex", "0");
    if (focus) button?.focus({ preventScroll: true });
  }

  /**
   * @param {number} index
   * @returns {HTMLButtonElement | null}
   */
  buttonAt(index) {
    return this.element.querySelector(`button[data-index="${index}"]`);
  }

  /**
   * Scroll so that a cell is seen.
   * @param {number} index
   * @param {"nearest" | "start"} where
   */
  scrollTo(index, where) {
    const begin = Math.floor(index / this.columns) * this.pitch;
    const offset = this.element.getBoundingClientRect().top;
    const bar = barHeight();
    const top = offset + begin;
    if (where === "start") scrollBy(0, top - bar);
    else if (top < bar) scrollBy(0, top - bar - GAP);
    else if (top + this.side > innerHeight) scrollBy(0, top + this.side - innerHeight + GAP);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.altKey || this.indexOf(event.target) === null) return;
    const ctrl = event.ctrlKey || event.metaKey;
    const page = Math.floor((innerHeight - barHeight()) / this.pitch);
    const to = moveBy(event.key, this.active, {
      count: this.list?.length ?? 0,
      columns: this.columns,
      page,
      ctrl,
    });
    if (to === null) return;
    event.preventDefault();
    if (to === this.active) return;
    this.setActive(to, { focus: true, scroll: true });
    this.events.onActive(to);
  }

  /**
   * @param {EventTarget | null} target
   * @returns {number | null}
   */
  indexOf(target) {
    const button = target instanceof Element ? target.closest("button.photo") : null;
    return button instanceof HTMLElement ? Number(button.dataset.index) : null;
  }
}

/** Return the height of what stands above the grid while it scrolls. */
function barHeight() {
  const bar = document.querySelector(".search-bar");
  return bar ? bar.getBoundingClientRect().height : 0;
}

/** @param {Element} cell */
function loadPicture(cell) {
  const button = /** @type {HTMLElement} */ (cell.firstElementChild);
  const image = /** @type {HTMLImageElement} */ (button.firstElementChild);
  if (!image.hasAttribute("src") && !button.classList.contains("missing")) {
    image.src = siteUrl(`thumbnails/${button.dataset.id}`);
  }
}

/**
 * Ask again for a thumbnail that did not come: the server may have been busy.
 * @param {HTMLElement} button
 * @param {HTMLImageElement} image
 */
function onMissing(button, image) {
  const tries = Number(button.dataset.tries ?? 1);
  button.dataset.tries = String(tries + 1);
  if (tries >= TRIES || button.classList.contains("gone")) {
    button.classList.add("missing");
    return;
  }
  setTimeout(() => {
    if (image.isConnected) image.src = siteUrl(`thumbnails/${button.dataset.id}`);
  }, RETRY * tries);
}
