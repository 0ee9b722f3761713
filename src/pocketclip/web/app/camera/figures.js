// How fast the camera is: what its encoder takes, and how many frames it really names.

import { Recent } from "../inference/stats.js";

const KEPT = 100; // encodings
const FEW = 5; // encodings, too few for a 95th percentile
const WINDOW = 3000; // ms over which rates are taken

/**
 * Figures of the last frames. Times are in milliseconds of one clock.
 */
export class Figures {
  #encodings = new Recent(KEPT);
  /** @type {number[]} */ #classified = [];
  /** @type {[number, number][]} */ #presented = [];
  /** Frames that were classified since the last reset. */
  frames = 0;

  /**
   * Note a frame that was classified.
   * @param {number} encodeMs what the encoder took
   * @param {number} now when its result was there
   */
  addResult(encodeMs, now) {
    this.frames += 1;
    this.#encodings.add(encodeMs);
    this.#classified.push(now);
    while (now - (this.#classified[0] ?? now) > WINDOW) this.#classified.shift();
  }

  /**
   * Note a frame that the source has shown, classified or not.
   * @param {number} count how many it has shown so far, those that were missed included
   * @param {number} now
   */
  addFrame(count, now) {
    const last = this.#presented.at(-1);
    if (last !== undefined && count < last[0]) this.#presented = [];
    this.#presented.push([count, now]);
    while (now - (this.#presented[0]?.[1] ?? now) > WINDOW) this.#presented.shift();
  }

  /** Median of the encoder's times; null: there is none yet. */
  get median() {
    return this.#encodings.values.length === 0 ? null : this.#encodings.median;
  }

  /** The time that 95 % of the encodings stay below; null: there are too few to tell. */
  get p95() {
    return this.#encodings.values.length < FEW ? null : this.#encodings.p95;
  }

  /**
   * Return the frames that were classified per second.
   * @param {number} now
   * @returns {number | null} null: too few, or none lately
   */
  rate(now) {
    const { length } = this.#classified;
    const first = this.#classified[0];
    const last = this.#classified[length - 1];
    if (length < 2 || first === undefined || last === undefined) return null;
    return now - last > WINDOW || last <= first ? null : ((length - 1) * 1000) / (last - first);
  }

  /**
   * Return the frames that the source shows per second.
   * @param {number} now
   * @returns {number | null}
   */
  sourceRate(now) {
    const first = this.#presented[0];
    const last = this.#presented.at(-1);
    if (first === undefined || last === undefined) return null;
    const time = last[1] - first[1];
    return now - last[1] > WINDOW || time <= 0 ? null : ((last[0] - first[0]) * 1000) / time;
  }

  /** Forget the rates, which a pause would spoil; the encoder's times stay true. */
  interrupt() {
    this.#classified = [];
    this.#presented = [];
  }

  /** Forget everything: another encoder, or another source. */
  reset() {
    this.interrupt();
    this.#encodings.clear();
    this.frames = 0;
  }
}

/**
 * Return a rate or a time for people.
 * @param {number} value
 */
export function rounded(value) {
  return value.toFixed(value < 10 ? 1 : 0);
}
