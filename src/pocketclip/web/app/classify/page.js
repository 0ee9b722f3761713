// The classify page's state: images, their results, and what is shown of them.

import { byId, countOf, fill, h } from "../shared/dom.js";
import { saveFile } from "../shared/files.js";
import { writeCsv } from "../shared/csv.js";
import { arranged, groupsOf, hasFormula, resultOf, tableOf } from "./results.js";
import { Table } from "./table.js";
import { Work } from "./work.js";

/** @typedef {import("./results.js").Item} Item */
/** @typedef {import("./results.js").Order} Order */
/** @typedef {import("../models/scored.js").Scored} Scored */
/** @typedef {import("./collect.js").Collection} Collection */

const MOST_IMAGES = 5000;
const SLICE = 30; // ms of work before the page may answer
const REDRAW = 200; // ms between two orders of the table

/**
 * @typedef {object} PageHandlers
 * @property {(embedding: Float32Array) => Scored | null} score null: there are no labels
 * @property {() => string[]} labels that are scored
 * @property {(error: unknown) => void} onError the encoder is of no use
 * @property {() => void} onItems there are images now, or none
 */

export class Page {
  /** @type {Item[]} */ items = [];
  /** @type {Item[]} */ #cleared = []; // they can be brought back
  /** @type {string | null} */ #group = null;
  #drawing = false;
  #scoring = 0;
  #ids = 0;

  /** @param {PageHandlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.table = new Table(byId("images"), { onRemove: (item) => this.remove(item) });
    this.work = new Work(this.items, {
      onItem: (item) => this.#changed(item),
      onIdle: () => this.#idle(),
      onError: (error) => handlers.onError(error),
    });
    /** @type {HTMLSelectElement} */
    this.order = byId("order");
    this.order.addEventListener("change", () => this.draw());
    byId("stop").addEventListener("click", () => {
      if (this.work.stopped) this.work.goOn();
      else this.work.stop();
      this.draw();
    });
    byId("save").addEventListener("click", () => this.#save());
    byId("copy").addEventListener("click", () => void this.#copy());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("undo").addEventListener("click", () => this.#restore());
  }

  /**
   * Add images to the table.
   * @param {Collection} collection
   */
  add({ images, others }) {
    const known = new Set(this.items.map((one) => identity(one.file, one.path)));
    const fresh = images.filter(({ file, path }) => !known.has(identity(file, path)));
    const taken = fresh.slice(0, MOST_IMAGES - this.items.length);
    for (const { file, path } of taken) {
      this.items.push({
        id: ++this.#ids,
        file,
        path,
        state: "waiting",
        why: "",
        embedding: null,
        result: null,
      });
    }
    this.#forgetCleared();
    const again = images.length - fresh.length;
    const left = fresh.length - taken.length;
    const most = MOST_IMAGES.toLocaleString("en");
    this.tell(
      [
        images.length + others === 0 && "There is no image in this.",
        others > 0 && `${countOf(others, "file")} left out: no images.`,
        again > 0 && `${countOf(again, "image")} left out: in the table already.`,
        left > 0 && `${countOf(left, "image")} left out: the table holds ${most}.`,
      ]
        .filter(Boolean)
        .join(" "),
    );
    this.draw();
    this.handlers.onItems();
    void this.work.run();
  }

  /** @param {Item} item */
  remove(item) {
    const at = this.items.indexOf(item);
    if (at < 0) return;
    const next = this.table.remove(item);
    this.items.splice(at, 1);
    this.draw();
    next?.focus();
    this.handlers.onItems();
  }

  #clear() {
    this.#forgetCleared();
    this.#cleared = this.items.splice(0);
    this.#group = null;
    this.work.stopped = false;
    this.tell(`Removed ${countOf(this.#cleared.length, "image")}.`, true);
    this.draw();
    this.handlers.onItems();
    byId("pick").focus();
  }

  #restore() {
    this.items.unshift(...this.#cleared.splice(0));
    this.tell("");
    void this.scoreAll();
    this.handlers.onItems();
    void this.work.run();
  }

  /**
   * Go on with an encoder; see `Work.setEncoder`.
   * @param {import("./work.js").Encoder | null} encoder
   * @param {string} form
   */
  setEncoder(encoder, form) {
    const isOther = this.work.setEncoder(encoder, form);
    if (!isOther || this.#cleared.length === 0) return;
    this.#forgetCleared(); // what was removed is of the earlier model
    this.tell("");
  }

  #forgetCleared() {
    for (const item of this.#cleared.splice(0)) this.table.remove(item);
  }

  /** Score all images again, because labels or model are other ones now. */
  async scoreAll() {
    const turn = ++this.#scoring;
    let until = performance.now() + SLICE;
    for (const item of [...this.items]) {
      if (item.embedding === null) continue;
      this.#score(item);
      if (performance.now() < until) continue;
      await new Promise((resolve) => setTimeout(resolve));
      if (turn !== this.#scoring) return;
      until = performance.now() + SLICE;
    }
    this.draw();
  }

  /** @param {Item} item */
  #changed(item) {
    if (item.state === "done") this.#score(item);
    else this.table.update(item);
    this.drawSoon();
  }

  /** @param {Item} item */
  #score(item) {
    const scored = item.embedding && this.handlers.score(item.embedding);
    item.result = scored ? resultOf(scored) : null;
    this.table.update(item);
  }

  #idle() {
    this.draw();
    const done = this.items.filter((one) => one.state === "done").length;
    const failed = this.items.filter((one) => one.state === "failed").length;
    if (done + failed > 0 && done + failed === this.items.length) {
      const bad = failed > 0 ? ` ${countOf(failed, "image")} could not be read.` : "";
      fill(byId("spoken"), `${countOf(done, "image")} done.${bad}`);
    }
  }

  drawSoon() {
    if (this.#drawing) return;
    this.#drawing = true;
    setTimeout(() => this.draw(), REDRAW);
  }

  draw() {
    this.#drawing = false;
    const { items } = this;
    byId("results").hidden = items.length === 0;
    byId("drop").classList.toggle("small-drop", items.length > 0);
    this.#drawProgress();
    const groups = groupsOf(items);
    if (!groups.some((one) => one.key === this.#group)) this.#group = null;
    const choices = [{ key: null, name: "All", count: items.length }, ...groups];
    const focused = document.activeElement?.getAttribute("data-key") ?? null;
    fill(
      byId("groups"),
      ...choices.map(({ key, name, count }) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(key === this.#group),
            "data-key": key ?? "all",
            onclick: () => {
              this.#group = key;
              this.draw();
            },
          },
          h("bdi", {}, name),
          h("span", { class: "count" }, count.toLocaleString("en")),
        ),
      ),
    );
    for (const one of byId("groups").children) {
      if (one instanceof HTMLElement && one.dataset.key === focused) one.focus();
    }
    this.table.show(arranged(items, /** @type {Order} */ (this.order.value), this.#group));
  }

  #drawProgress() {
    const total = this.items.length;
    const done = this.items.filter((one) => one.state === "done" || one.state === "failed").length;
    const isOpen = done < total && (this.work.running || this.work.stopped);
    byId("progress").hidden = !isOpen;
    if (!isOpen) return;
    /** @type {HTMLProgressElement} */
    const bar = byId("progress-bar");
    bar.max = total;
    bar.value = done;
    const count = `${done.toLocaleString("en")} of ${countOf(total, "image")}`;
    fill(byId("progress-text"), this.work.stopped ? `Stopped after ${count}` : `Read ${count}`);
    fill(byId("stop"), this.work.stopped ? "Go on" : "Stop");
  }

  #rows() {
    const { items, handlers } = this;
    const shown = arranged(items, /** @type {Order} */ (this.order.value), null);
    return tableOf(shown, handlers.labels(), handlers.score);
  }

  #save() {
    const rows = this.#rows();
    // The mark tells spreadsheets that the text is UTF-8.
    saveFile("labels.csv", `\ufeff${writeCsv(rows)}`, "text/csv;charset=utf-8");
    this.tell(`Saved ${countOf(rows.length - 1, "row")}.${noteOf(rows)}`);
  }

  async #copy() {
    const rows = this.#rows();
    try {
      await navigator.clipboard.writeText(writeCsv(rows, "\t"));
      this.tell(`Copied ${countOf(rows.length - 1, "row")}.${noteOf(rows)}`);
    } catch {
      this.tell("The browser does not allow to copy here: save the table as a file.");
    }
  }

  /**
   * Let people save the table, or not while its labels are being prepared.
   * @param {boolean} isReady
   */
  setReady(isReady) {
    for (const id of ["save", "copy"]) {
      const button = /** @type {HTMLButtonElement} */ (byId(id));
      button.disabled = !isReady;
    }
  }

  /**
   * @param {string} text
   * @param {boolean} [canUndo]
   */
  tell(text, canUndo = false) {
    fill(byId("told"), text);
    byId("undo").hidden = !canUndo;
  }
}

/** @param {(string | number)[][]} rows */
function noteOf(rows) {
  if (!hasFormula(rows)) return "";
  return " A label begins with =, +, - or @: import the table as text, or a spreadsheet takes it for a formula.";
}

/**
 * @param {File} file
 * @param {string} path
 */
function identity(file, path) {
  return JSON.stringify([path, file.size, file.lastModified]);
}
