// What stands around the grid: how much was found, what people must know, what went wrong.

import { byId, countOf, fill, h } from "../shared/dom.js";
import { TOP, countFilters, isBrowsing } from "./query_state.js";
import { emptyState, remarksOf } from "./result_texts.js";

/** @typedef {import("./query_state.js").QueryState} QueryState */
/** @typedef {import("./status_texts.js").LibraryState} LibraryState */

/**
 * @typedef {object} ViewEvents
 * @property {() => void} onAgain people want what failed to be tried again
 * @property {() => void} onClearFilters
 * @property {() => void} onNews people want to see new photographs
 */

export class ResultView {
  /** @param {ViewEvents} events */
  constructor(events) {
    this.events = events;
    this.news = 0;
  }

  /**
   * Say how many photographs a browse found.
   * @param {QueryState} query
   * @param {number} count
   * @param {LibraryState | null} library
   */
  drawBrowse(query, count, library) {
    byId("weak").hidden = true;
    byId("summary").textContent = countFilters(query) ? countOf(count, "photograph") : "";
    fill(byId("remarks"));
    this.drawEmpty(query, count, library);
  }

  /**
   * Say what a search found.
   * @param {QueryState} query
   * @param {any} answer of `/search`
   * @param {LibraryState | null} library
   */
  drawSearch(query, answer, library) {
    const count = answer.hits.length;
    byId("weak").hidden = answer.fits !== false || count === 0;
    byId("summary").textContent =
      count < TOP
        ? countOf(count, "photograph")
        : `${countOf(answer.searched, "photograph")}, the best first`;
    fill(
      byId("remarks"),
      remarksOf(answer).map((one) => h("li", {}, one)),
    );
    this.drawEmpty(query, count, library);
  }

  /**
   * @param {QueryState} query
   * @param {number} count
   * @param {LibraryState | null} library
   */
  drawEmpty(query, count, library) {
    byId("grid").hidden = count === 0;
    if (isBrowsing(query)) byId("weak").hidden = true;
    const box = byId("empty");
    const empty = count === 0 ? emptyState(query, library) : null;
    box.hidden = empty === null;
    if (empty === null) return;
    fill(
      box,
      h("h2", {}, empty.title),
      empty.text ? h("p", {}, empty.text) : null,
      empty.command ? h("pre", {}, h("code", {}, empty.command)) : null,
      empty.canClear
        ? h("button", { type: "button", onclick: this.events.onClearFilters }, "Clear the filters")
        : null,
    );
  }

  /**
   * Tell of photographs that came since the grid was filled.
   * @param {number} count how many more; 0: the grid has them now
   */
  drawNews(count) {
    this.news = count === 0 ? 0 : this.news + count;
    const box = byId("news");
    box.hidden = this.news <= 0;
    if (box.hidden) return;
    const show = h(
      "button",
      { type: "button", class: "plain", onclick: this.events.onNews },
      "Show",
    );
    fill(box, h("span", {}, countOf(this.news, "new photograph")), show);
  }

  /** Say that the server has no library, and what to do. */
  drawNoLibrary() {
    byId("search-app").hidden = true;
    byId("no-library").hidden = false;
  }

  /**
   * Say whether an answer is awaited; what is shown until then, or if none came, is dimmed.
   * @param {boolean} busy
   * @param {boolean} [isOld]
   */
  setBusy(busy, isOld = busy) {
    byId("panel-photographs").classList.toggle("old", isOld);
    byId("grid").setAttribute("aria-busy", String(busy));
  }

  /** Whether the message is that the server does not answer. */
  get isUnreachable() {
    return byId("trouble").dataset.kind === "unreachable";
  }

  /**
   * Say what went wrong, where it is seen.
   * @param {string} text empty: nothing is wrong
   * @param {string} [kind]
   */
  say(text, kind = "other") {
    const box = byId("trouble");
    box.hidden = text === "";
    box.dataset.kind = text ? kind : "";
    fill(
      box,
      text
        ? [
            h("span", {}, text),
            h("button", { type: "button", onclick: this.events.onAgain }, "Try again"),
          ]
        : [],
    );
  }
}
