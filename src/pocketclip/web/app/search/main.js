// The search page: the query, the grid, one photograph, duplicates, and what the library has.

import { startShell } from "../shared/shell.js";
import { byId } from "../shared/dom.js";
import { ApiError, callPatiently, isAbort, messageOf } from "./client.js";
import { DetailsPanel } from "./details_panel.js";
import { DuplicatesView } from "./duplicates_view.js";
import { HistoryEntries } from "./history_entries.js";
import { LibraryStatus } from "./library_status.js";
import { FactStore, PhotoList } from "./photo_list.js";
import { PhotoGrid } from "./photo_grid.js";
import { QueryBar } from "./query_bar.js";
import {
  FOLLOWING,
  TOP,
  emptyQuery,
  filtersOf,
  isBrowsing,
  isSame,
  isTypedOn,
  readQuery,
  searchBody,
} from "./query_state.js";
import { ResultView } from "./result_view.js";

/** @typedef {import("./query_state.js").QueryState} QueryState */
/** @typedef {import("./status_texts.js").LibraryState} LibraryState */

const TYPING = 250; // ms without a key before a search

class SearchPage {
  /** @param {any} info what `/info` says; null: the server did not answer */
  constructor(info) {
    this.facts = new FactStore((ids) => this.grid.refresh(new Set(ids)));
    this.query = emptyQuery();
    /** @type {QueryState | null} what the grid shows, or is about to */
    this.asked = null;
    this.shown = "photographs";
    this.list = new PhotoList([]);
    /** @type {LibraryState | null} */
    this.library = null;
    /** @type {AbortController | null} */
    this.searching = null;
    this.followed = true;
    this.isBroken = false; // the last search found nothing out: it is tried again
    this.hasAnswer = false;
    this.isClosing = false; // the step back in the history that closing the panel makes
    this.view = new ResultView({
      onAgain: () => {
        void this.status.ask();
        void this.run();
      },
      onClearFilters: () => this.bar.clearFilters(),
      onNews: () => void this.run(),
    });
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.typing = undefined;
    this.entries = new HistoryEntries(() => this.entry());
    this.grid = new PhotoGrid(byId("grid"), {
      onOpen: (index) => this.open(this.list, index),
      onActive: (index) => {
        if (!this.panel.isOpen) return;
        this.panel.open(this.list, index, { focus: false });
        this.entries.saveSoon();
      },
      onSee: (ids) => this.facts.want(ids),
      onNearEnd: () => void this.follow(),
      factsOf: (id) => this.facts.get(id),
    });
    this.panel = new DetailsPanel(this.facts, {
      onMove: (index) => {
        if (this.panel.list === this.list) this.grid.setActive(index, { scroll: true });
        this.entries.saveSoon();
      },
      onClose: () => this.closed(),
      onLike: (id, name, minus) => {
        this.panel.close({ tell: false });
        this.show("photographs");
        this.bar.addKnown(id, name, minus);
        scrollTo(0, 0);
      },
      canAvoid: () => this.shown === "photographs" && !isBrowsing(this.query),
    });
    this.bar = new QueryBar(this.query, {
      onChange: (how) => this.changed(how),
      spaceId: () => this.library?.space_id ?? null,
      imageBytes: info?.limits.image_bytes ?? Infinity,
    });
    this.duplicates = new DuplicatesView((list, index) => this.open(list, index));
    this.status = new LibraryStatus(
      (state) => this.onLibrary(state),
      (error) => this.onTrouble(error),
    );
    this.listen();
  }

  listen() {
    byId("view-photographs").addEventListener("click", () => this.choose("photographs"));
    byId("view-duplicates").addEventListener("click", () => this.choose("duplicates"));
    addEventListener("popstate", (event) => {
      if (this.isClosing) {
        this.isClosing = false;
        this.entries.save();
      } else void this.restore(event.state);
    });
    addEventListener("scroll", () => this.entries.saveSoon(), { passive: true });
    addEventListener("pagehide", () => this.entries.saveNow());
    addEventListener("keydown", (event) => this.onKey(event));
    history.scrollRestoration = "manual";
  }

  /** Show what the history holds for this entry, or the beginning. */
  async start() {
    byId("search-app").hidden = false;
    void this.status.ask();
    await this.restore(history.state);
  }

  /** @param {any} state of the history */
  async restore(state) {
    this.entries.cancel();
    Object.assign(this.query, readQuery(state?.query));
    this.bar.draw();
    this.show(state?.view === "duplicates" ? "duplicates" : "photographs");
    if (this.shown === "duplicates") {
      this.panel.close({ tell: false });
      return;
    }
    const place = { scroll: Number(state?.scroll) || 0, open: Number(state?.open) || 0 };
    if (!this.asked || !isSame(this.asked, this.query)) await this.run({ place });
    else this.place(place);
  }

  /**
   * Return to the place in the grid that an entry of the history had.
   * @param {{scroll: number, open: number}} place
   */
  place({ scroll, open }) {
    const index = open ? this.list.ids.indexOf(open) : -1;
    if (index < 0) this.panel.close({ tell: false });
    scrollTo(0, scroll);
    this.grid.draw();
    if (index < 0) return;
    this.grid.setActive(index);
    this.panel.open(this.list, index);
  }

  /** Return what is shown, for the history. */
  entry() {
    const isOpen = this.panel.isOpen && this.panel.list === this.list;
    return {
      query: structuredClone(this.query),
      view: this.shown,
      scroll: Math.round(scrollY),
      open: (isOpen && this.list.ids[this.panel.index]) || 0,
    };
  }

  /** @param {"typed" | "chosen"} how */
  changed(how) {
    clearTimeout(this.typing);
    if (how === "chosen") this.submit();
    else this.typing = setTimeout(() => this.submit({ isTyped: true }), TYPING);
  }

  /**
   * Search for the query as it is now, as a new entry of the history.
   * @param {{isTyped?: boolean}} [options]
   */
  submit({ isTyped = false } = {}) {
    clearTimeout(this.typing);
    if (this.shown !== "photographs") this.show("photographs");
    else if (this.asked && isSame(this.asked, this.query) && !this.isBroken) return;
    this.panel.close({ tell: false });
    const isRefined = isTyped && this.asked && isTypedOn(this.asked, this.query);
    const state = { query: structuredClone(this.query), view: this.shown, scroll: 0, open: 0 };
    if (isRefined) this.entries.replace(state);
    else this.entries.push(state);
    void this.run();
  }

  /**
   * Ask the server, and show what it found; what is shown already stays until then, dimmed.
   * @param {{place?: {scroll: number, open: number}}} [options]
   */
  async run({ place } = {}) {
    this.searching?.abort();
    const searching = (this.searching = new AbortController());
    const { signal } = searching;
    const query = (this.asked = structuredClone(this.query));
    let isOld = false; // whether what is shown is not of this query
    this.view.setBusy(true);
    this.bar.say("");
    try {
      const onWait = () => this.view.say("The server is busy. Trying again…");
      if (isBrowsing(query)) {
        const body = { filters: filtersOf(query) };
        const { ids } = await callPatiently("POST", "browse", body, { signal, onWait });
        this.facts.clear();
        this.list = new PhotoList(ids);
        this.followed = true;
        this.view.drawBrowse(query, ids.length, this.library);
      } else {
        const body = searchBody(query, { top: TOP });
        const answer = await callPatiently("POST", "search", body, { signal, onWait });
        this.facts.clear(); // files may have moved, or be there again
        for (const hit of answer.hits) this.facts.put(hit);
        this.list = PhotoList.found(answer);
        this.followed = answer.hits.length < TOP;
        this.view.drawSearch(query, answer, this.library);
      }
      this.isBroken = false;
      this.hasAnswer = true;
      this.view.say("");
      this.view.drawNews(0);
      this.grid.show(this.list);
      if (place) this.place(place);
      else if (scrollY > byId("search-app").offsetTop) scrollTo(0, 0);
    } catch (error) {
      if (isAbort(error)) return;
      this.onTrouble(error);
      isOld = !(error instanceof ApiError) || error.code !== "empty_library";
      this.isBroken = !(error instanceof ApiError) || ![400, 404, 409].includes(error.status);
    } finally {
      if (this.searching === searching) this.view.setBusy(false, isOld);
    }
  }

  /** Name what follows the hits, when people come near their end. */
  async follow() {
    if (this.followed || !this.asked) return;
    this.followed = true;
    const list = this.list;
    const signal = this.searching?.signal;
    try {
      const body = searchBody(this.asked, { top: TOP, following: FOLLOWING });
      const answer = await callPatiently("POST", "search", body, signal ? { signal } : {});
      if (list !== this.list) return;
      list.append(answer.following);
      this.grid.grown();
      this.panel.drawPlace();
    } catch (error) {
      if (!isAbort(error) && list === this.list) this.view.say(messageOf(error));
    }
  }

  /**
   * @param {PhotoList} list
   * @param {number} index
   */
  open(list, index) {
    const wasOpen = this.panel.isOpen;
    if (!wasOpen) this.entries.save();
    this.panel.open(list, index);
    if (list !== this.list || this.shown !== "photographs") return;
    void this.follow();
    const state = { ...this.entry(), isStep: true };
    if (wasOpen) this.entries.replace(state);
    else this.entries.push(state); // so that the phone's Back closes it
  }

  /** The panel was closed by people: the step that opening it made is taken back. */
  closed() {
    if (this.shown !== "photographs") return;
    const index = this.panel.list === this.list ? this.panel.index : this.grid.active;
    this.grid.setActive(index, { focus: true, scroll: true });
    if (this.entries.isStep) {
      this.entries.cancel();
      this.isClosing = true;
      history.back();
    } else this.entries.save();
  }

  /** @param {string} view */
  choose(view) {
    if (view === this.shown) return;
    this.entries.save();
    this.panel.close({ tell: false });
    this.show(view);
    this.entries.push({ query: structuredClone(this.query), view, scroll: 0, open: 0 });
    if (view === "photographs" && !this.asked) void this.run();
  }

  /** @param {string} view */
  show(view) {
    const isOther = view !== this.shown;
    this.shown = view;
    for (const name of ["photographs", "duplicates"]) {
      byId(`panel-${name}`).hidden = name !== view;
      byId(`view-${name}`).setAttribute("aria-pressed", String(name === view));
    }
    if (!isOther) return;
    if (view === "duplicates") void this.duplicates.load();
    else {
      this.duplicates.stop();
      this.grid.draw();
    }
  }

  /** @param {LibraryState} state */
  onLibrary(state) {
    const before = this.library;
    this.library = state;
    if (this.view.isUnreachable) this.view.say("");
    const more = before ? state.photos - before.photos : 0;
    if (this.isBroken || (this.hasAnswer && more !== 0 && this.list.length === 0)) void this.run();
    else if (more > 0) this.view.drawNews(more);
    if (this.hasAnswer && this.list.length === 0) this.view.drawEmpty(this.query, 0, state);
  }

  /**
   * Say what went wrong, where it belongs.
   * @param {unknown} error
   */
  onTrouble(error) {
    const { code, status } =
      error instanceof ApiError ? error : { code: null, status: /** @type {number} */ (-1) };
    if (status === 401) return; // the shell asks for the key
    if (code === "no_library") {
      this.view.drawNoLibrary();
    } else if (code === "other_space") {
      this.bar.say("The server's model has changed: remove the pictures, and add them again.");
    } else if (status === 400 || status === 404) {
      this.bar.say(messageOf(error));
    } else if (code === "empty_library") {
      this.list = new PhotoList([]);
      this.hasAnswer = true;
      this.view.drawBrowse(this.query, 0, this.library);
    } else {
      const text = navigator.onLine ? messageOf(error) : "This device is offline.";
      this.view.say(text, code === "unreachable" ? "unreachable" : "other");
    }
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const isField = target.matches("input, textarea, select") || target.isContentEditable;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !isField) {
      event.preventDefault();
      const field = /** @type {HTMLInputElement} */ (byId("query"));
      field.focus();
      field.select();
    } else if (event.key === "Escape" && this.panel.isOpen && !isField) {
      event.preventDefault();
      this.panel.close();
    } else if (event.key === "ArrowDown" && target.id === "query" && this.list.length) {
      event.preventDefault();
      this.grid.setActive(this.grid.active, { focus: true, scroll: true });
    }
  }
}

const { info } = await startShell({ needsServer: true });
const page = new SearchPage(info);
if (info && info.library === null) page.onTrouble(new ApiError("", 404, "no_library"));
else await page.start();
