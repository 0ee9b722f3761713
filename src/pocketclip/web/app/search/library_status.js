// What the library has, and how far indexing is: asked for again and again, seldom if nobody looks.

import { byId, countOf, fill, h, printable } from "../shared/dom.js";
import { callPatiently, messageOf } from "./client.js";
import { shownName } from "./photo_texts.js";
import { countsText, rootsText, runText, share } from "./status_texts.js";

/** @typedef {import("./status_texts.js").LibraryState} LibraryState */

const RUNNING = 2000; // ms between two questions
const IDLE = 10_000;
const HIDDEN = 120_000;
const LONGEST = 30_000; // while the server does not answer

export class LibraryStatus {
  /**
   * @param {(state: LibraryState) => void} onState
   * @param {(error: unknown) => void} onError
   */
  constructor(onState, onError) {
    this.onState = onState;
    this.onError = onError;
    /** @type {LibraryState | null} */
    this.state = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.failures = 0;
    this.asking = false;
    const details = /** @type {HTMLDetailsElement} */ (byId("status-details"));
    details.addEventListener("toggle", () => void this.loadUnreadable());
    document.addEventListener("click", (event) => {
      if (!details.contains(/** @type {Node} */ (event.target))) details.open = false;
    });
    details.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !details.open) return;
      event.stopPropagation();
      details.open = false;
      byId("status-toggle").focus();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void this.ask();
    });
    addEventListener("online", () => void this.ask());
  }

  /** Ask now, and go on. */
  async ask() {
    clearTimeout(this.timer);
    if (this.asking) return;
    this.asking = true;
    try {
      this.state = /** @type {LibraryState} */ (await callPatiently("GET", "library"));
      this.failures = 0;
      this.draw(this.state);
      this.onState(this.state);
    } catch (error) {
      this.failures += 1;
      this.onError(error);
    } finally {
      this.asking = false;
    }
    this.timer = setTimeout(() => void this.ask(), this.delay());
  }

  delay() {
    if (this.failures) return Math.min(LONGEST, 2000 * 2 ** this.failures);
    if (document.hidden) return HIDDEN;
    return this.state?.run?.outcome === "running" ? RUNNING : IDLE;
  }

  /** @param {LibraryState} state */
  draw(state) {
    const { run } = state;
    const running = run?.outcome === "running";
    fill(
      byId("status-summary"),
      running
        ? [h("span", { class: "wide-only" }, "Indexing: "), share(run)]
        : [
            state.photos.toLocaleString("en"),
            h("span", { class: "wide-only" }, state.photos === 1 ? " photograph" : " photographs"),
          ],
    );
    byId("status-toggle").setAttribute(
      "aria-label",
      running
        ? `Library: indexing, ${share(run)}`
        : `Library: ${countOf(state.photos, "photograph")}`,
    );
    byId("status-details").classList.toggle("running", running);
    const bar = /** @type {HTMLProgressElement} */ (byId("index-progress"));
    bar.hidden = !running;
    if (running && run.total) bar.value = run.done / run.total;
    else bar.removeAttribute("value");
    byId("index-text").textContent = run ? printable(runText(run)) : "";
    fill(
      byId("library-facts"),
      fact("Library", state.name),
      fact("Photographs", countsText(state)),
      fact("Folders", rootsText(state)),
      fact("Model", state.model ?? "none yet"),
    );
    const count = state.unreadable;
    byId("unreadable").hidden = count === 0;
    byId("unreadable-title").textContent = `${countOf(count, "file")} could not be read`;
  }

  /** List the files that could not be read, when people look. */
  async loadUnreadable() {
    const details = /** @type {HTMLDetailsElement} */ (byId("status-details"));
    if (!details.open || !this.state?.unreadable) return;
    const list = byId("unreadable-list");
    try {
      const { files, total } = await callPatiently("GET", "library/unreadable");
      fill(
        list,
        files.map((/** @type {{name: string, root: string, reason: string}} */ one) =>
          h(
            "li",
            {},
            h("span", {}, shownName(`${one.root}/${one.name}`)),
            h("span", { class: "dim" }, one.reason),
          ),
        ),
        total > files.length ? h("li", {}, `and ${total - files.length} more`) : null,
      );
    } catch (error) {
      fill(list, h("li", {}, messageOf(error)));
    }
  }
}

/**
 * @param {string} title
 * @param {string} text
 */
function fact(title, text) {
  return [h("dt", {}, title), h("dd", {}, text)];
}
