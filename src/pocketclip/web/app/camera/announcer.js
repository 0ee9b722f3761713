// What screen readers hear of results that change many times a second.

const PAUSE = 2500; // ms between two announcements

/**
 * Lets a text pass if it is another one than the last, and the last is long enough ago.
 *
 * A label has to be on top in two results that follow each other: what flashes by is not spoken.
 */
export class Announcer {
  #said = "";
  #seen = "";
  #at = -Infinity;

  /**
   * Return what is to be said now.
   * @param {string} text of the newest result
   * @param {number} now ms
   * @param {{final?: boolean}} [options] final: no other result follows soon, as of a photograph
   * @returns {string | null} null: nothing
   */
  next(text, now, { final = false } = {}) {
    const stable = final || text === this.#seen;
    this.#seen = text;
    if (!stable || text === this.#said || (!final && now - this.#at < PAUSE)) return null;
    this.#said = text;
    this.#at = now;
    return text;
  }

  /** Let the next text pass, also if it was the last: of another photograph. */
  reset() {
    this.#said = "";
    this.#seen = "";
  }
}
