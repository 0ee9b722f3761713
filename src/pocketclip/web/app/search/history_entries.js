// The search page's entries of the browser's history. Nothing of a search stands in an address.

/**
 * @typedef {object} Entry
 * @property {import("./query_state.js").QueryState} query
 * @property {string} view "photographs" or "duplicates"
 * @property {number} scroll px
 * @property {number} open the id of the photograph that is shown large; 0: none
 * @property {boolean} [isStep] made by opening it, so that Back closes it
 */

const SOON = 400; // ms without scrolling before the place is kept
const AGAIN = 5000; // ms until a browser that counts changes is asked again

export class HistoryEntries {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer = undefined;

  /** @param {() => Entry} current what the page shows */
  constructor(current) {
    this.current = current;
  }

  /** Whether the entry was made by opening a photograph. */
  get isStep() {
    return history.state?.isStep === true;
  }

  /** Keep what the page shows in the entry that it has. */
  save() {
    this.#write("replaceState", { ...this.current(), isStep: this.isStep });
  }

  /** As `save`, when people have stopped scrolling or walking through photographs. */
  saveSoon() {
    this.#saveAfter(SOON);
  }

  /** As `save`, if `saveSoon` has yet to do it: the page is left. */
  saveNow() {
    if (this.#timer !== undefined) this.save();
  }

  /** Let what `saveSoon` would keep go: it is of another entry. */
  cancel() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** @param {Entry} entry */
  push(entry) {
    this.#write("pushState", entry);
  }

  /** @param {Entry} entry */
  replace(entry) {
    this.#write("replaceState", entry);
  }

  /** @param {number} delay milliseconds */
  #saveAfter(delay) {
    this.cancel();
    this.#timer = setTimeout(() => this.save(), delay);
  }

  /**
   * @param {"pushState" | "replaceState"} method
   * @param {Entry} entry
   */
  #write(method, entry) {
    this.cancel();
    try {
      history[method](entry, "");
    } catch (error) {
      // Safari allows 100 changes in 30 seconds. A search does not fail for a place that is lost.
      if (!(error instanceof DOMException) || error.name !== "SecurityError") throw error;
      this.#saveAfter(AGAIN);
    }
  }
}
