// Groups of duplicates, page by page. Nothing is deleted here.

import { byId, countOf, fill, formatBytes, h, printable } from "../shared/dom.js";
import { ApiError, callPatiently, isAbort, messageOf, pause } from "./client.js";
import { stripItem } from "./strip.js";
import { PhotoList } from "./photo_list.js";
import { shownName, shownTime, splitName } from "./photo_texts.js";

/** @typedef {"exact" | "near" | "burst"} Kind */

/**
 * @typedef {object} Duplicate
 * @property {number} id
 * @property {string} name
 * @property {string} root
 * @property {number} bytes
 * @property {number | null} width
 * @property {number | null} height
 * @property {string | null} time
 * @property {number | null} distance
 * @property {number | null} similarity
 * @property {number | null} pixels
 * @property {boolean} linked
 */

/**
 * @typedef {object} Group
 * @property {Kind} kind
 * @property {number} room
 * @property {Duplicate[]} photos
 * @property {number} total
 */

const PAGE = 20;
const POLL = 1000;
/** @type {Record<Kind, string>} */
const ABOUT = {
  exact: "Files with the same bytes.",
  near: "The same shot, saved at another size or quality, or cropped a little.",
  burst: "Shots of one camera within seconds that look alike.",
};
const LIMITS = [
  "near_distance",
  "near_similarity",
  "near_pixels",
  "burst_seconds",
  "burst_similarity",
];

export class DuplicatesView {
  /** @param {(list: PhotoList, index: number) => void} onOpen */
  constructor(onOpen) {
    this.onOpen = onOpen;
    /** @type {Kind} */
    this.kind = "exact";
    /** @type {string | null} */
    this.report = null;
    this.shown = 0; // groups
    this.total = 0;
    /** @type {AbortController | null} */
    this.asking = null;
    for (const kind of /** @type {Kind[]} */ (["exact", "near", "burst"])) {
      byId(`kind-${kind}`).addEventListener("click", () => {
        this.kind = kind;
        void this.load();
      });
    }
    byId("limits-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.report = null;
      void this.load();
    });
    byId("duplicates-again").addEventListener("click", () => {
      this.report = null;
      void this.load({ again: true });
    });
    byId("duplicates-more").addEventListener("click", () => void this.more());
    new IntersectionObserver((entries) => {
      if (entries.some((one) => one.isIntersecting)) void this.more();
    }).observe(byId("duplicates-more"));
  }

  /** Ask for no more: another view is shown. */
  stop() {
    this.asking?.abort();
    this.asking = null;
  }

  limits() {
    return Object.fromEntries(
      LIMITS.map((name) => [
        name,
        Number(/** @type {HTMLInputElement} */ (byId(`limit-${name}`)).value),
      ]),
    );
  }

  /**
   * Show the groups of the kind, from the first.
   * @param {{again?: boolean}} [options]
   */
  async load({ again = false } = {}) {
    this.stop();
    const asking = (this.asking = new AbortController());
    for (const kind of ["exact", "near", "burst"]) {
      byId(`kind-${kind}`).setAttribute("aria-pressed", String(kind === this.kind));
    }
    byId("kind-about").textContent = ABOUT[this.kind];
    byId("duplicates-more").hidden = true;
    byId("duplicate-groups").classList.add("old");
    try {
      let answer = await this.ask(0, asking.signal, again);
      while (answer.state === "running") {
        this.drawProgress(answer);
        await pause(POLL, asking.signal);
        answer = await this.ask(0, asking.signal, false);
      }
      this.drawProgress(null);
      fill(byId("duplicate-groups"));
      this.shown = 0;
      this.drawAnswer(answer);
    } catch (error) {
      if (isAbort(error)) return;
      this.drawProgress(null);
      fill(byId("duplicate-groups"), h("p", { class: "notice bad" }, messageOf(error)));
    } finally {
      if (this.asking === asking) {
        this.asking = null;
        byId("duplicate-groups").classList.remove("old");
      }
    }
  }

  /** Show the next groups. */
  async more() {
    if (this.asking || this.report === null || this.shown >= this.total) return;
    const asking = (this.asking = new AbortController());
    try {
      this.drawAnswer(await this.ask(this.shown, asking.signal, false));
    } catch (error) {
      if (!isAbort(error)) byId("duplicates-remarks").textContent = messageOf(error);
    } finally {
      if (this.asking === asking) this.asking = null;
    }
  }

  /**
   * @param {number} offset
   * @param {AbortSignal} signal
   * @param {boolean} again
   * @returns {Promise<any>}
   */
  async ask(offset, signal, again) {
    const body = { kind: this.kind, offset, top: PAGE };
    const from = this.report === null ? { limits: this.limits(), again } : { report: this.report };
    try {
      const answer = await callPatiently("POST", "duplicates", { ...body, ...from }, { signal });
      this.report = answer.report;
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 410 || this.report === null) throw error;
      this.report = null; // it was forgotten: look again
      return this.ask(offset, signal, false);
    }
  }

  /** @param {any} answer null: it has ended */
  drawProgress(answer) {
    const bar = /** @type {HTMLProgressElement} */ (byId("duplicates-progress"));
    bar.hidden = answer === null;
    if (answer?.total) bar.value = answer.done / answer.total;
    else bar.removeAttribute("value");
    byId("duplicates-stage").textContent = answer ? `${sentence(answer.stage)}…` : "";
  }

  /** @param {any} answer */
  drawAnswer(answer) {
    for (const kind of /** @type {Kind[]} */ (["exact", "near", "burst"])) {
      byId(`count-${kind}`).textContent = answer.counts[kind].toLocaleString("en");
    }
    this.total = answer.counts[this.kind];
    byId("duplicates-outdated").hidden = !answer.outdated;
    byId("duplicates-remarks").textContent = remarksOf(answer, this.kind).join(" ");
    const groups = byId("duplicate-groups");
    groups.append(...answer.groups.map((/** @type {Group} */ group) => this.makeGroup(group)));
    this.shown += answer.groups.length;
    if (!this.total) {
      fill(groups, h("p", { class: "empty" }, "None was found. That is good."));
    }
    byId("duplicates-more").hidden = this.shown >= this.total;
  }

  /** @param {Group} group */
  makeGroup(group) {
    const list = new PhotoList(group.photos.map((one) => one.id));
    const items = group.photos.map((one, at) => {
      const name = printable(splitName(one).file);
      return stripItem(
        one.id,
        { name, title: printable(shownName(one.name)), onclick: () => this.onOpen(list, at) },
        h("span", { class: "strip-name" }, name),
        h("span", { class: "dim small" }, wordsOf(one, at, group)),
      );
    });
    const more = group.total - group.photos.length;
    const room =
      group.kind !== "burst" && group.room ? `, ${formatBytes(group.room)} in copies` : "";
    return h(
      "section",
      { class: "duplicate-group" },
      h("h2", {}, `${countOf(group.total, "photograph")}${room}`),
      h("ul", { class: "strip" }, items, more > 0 ? h("li", {}, `and ${more} more`) : null),
    );
  }
}

/**
 * @param {Duplicate} one
 * @param {number} at
 * @param {Group} group
 */
function wordsOf(one, at, group) {
  const size = one.width && one.height ? `${one.width} × ${one.height}` : null;
  const words = [at === 0 && group.kind !== "exact" ? "best" : null];
  if (group.kind === "exact") words.push(splitName(one).folder);
  else words.push(size, formatBytes(one.bytes));
  if (group.kind === "burst") words.push(shownTime(one.time));
  if (one.similarity !== null) words.push(`cosine ${one.similarity.toFixed(3)}`);
  if (one.distance !== null && at > 0) words.push(`${one.distance} bits`);
  if (one.linked) words.push("a link, takes no room");
  return words.filter(Boolean).join(" · ");
}

/**
 * @param {any} answer
 * @param {Kind} kind
 */
function remarksOf(answer, kind) {
  const said = answer.remarks.map(sentence).map((/** @type {string} */ one) => `${one}.`);
  if (kind === "near" && answer.blank) {
    said.push(`${countOf(answer.blank, "photograph")} without detail cannot be compared.`);
  }
  if (kind === "burst" && answer.untimed) {
    said.push(`${countOf(answer.untimed, "photograph")} without camera or time cannot be in one.`);
  }
  return said;
}

/** @param {string} text */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
