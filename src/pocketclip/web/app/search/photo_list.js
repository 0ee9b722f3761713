// The photographs that are shown, in their order, and what is known of them so far.

import { callPatiently } from "./client.js";

/** @typedef {import("./photo_texts.js").PhotoFacts} PhotoFacts */

/**
 * Near duplicates of a hit: the best ones, and how many there are.
 * @typedef {object} NearDuplicates
 * @property {{id: number, name: string, root: string, score: number}[]} photos
 * @property {number} total
 */

const MOST_FACTS = 4000;
const AT_ONCE = 200;
const DELAY = 60; // ms: while people scroll on, what they passed is not asked for

/** The order that a search or a browse gave: it stays as it is while the library changes. */
export class PhotoList {
  /**
   * @param {number[]} ids
   * @param {Map<number, number>} [scores] by id
   * @param {Map<number, NearDuplicates>} [similar] by the id of the best one
   */
  constructor(ids, scores = new Map(), similar = new Map()) {
    this.ids = ids;
    this.scores = scores;
    this.similar = similar;
  }

  /**
   * Return the hits of a search.
   * @param {any} answer of `/search`
   */
  static found(answer) {
    const scores = new Map();
    const similar = new Map();
    for (const hit of answer.hits) {
      scores.set(hit.id, hit.score);
      if (hit.similar_photos) {
        similar.set(hit.id, { photos: hit.similar, total: hit.similar_photos });
      }
    }
    return new PhotoList([...scores.keys()], scores, similar);
  }

  get length() {
    return this.ids.length;
  }

  /**
   * Add what follows, less what is there already.
   * @param {{id: number, score: number}[]} following best first
   */
  append(following) {
    const known = new Set(this.ids);
    for (const { photos } of this.similar.values()) for (const one of photos) known.add(one.id);
    const last = this.scores.get(this.ids.at(-1) ?? -1) ?? Infinity;
    for (const { id, score } of following) {
      // What is new and better since the hits were listed would stand at the wrong place.
      if (known.has(id) || score > last) continue;
      this.ids.push(id);
      this.scores.set(id, score);
    }
  }
}

/** Knows photographs by id; asks the server for those that are seen. */
export class FactStore {
  /** @param {(ids: number[]) => void} onFacts called with the ids of which more is known now */
  constructor(onFacts) {
    this.onFacts = onFacts;
    /** @type {Map<number, PhotoFacts | null>} null: its file is not there now */
    this.known = new Map();
    /** @type {number[]} */
    this.wanted = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.asking = false;
  }

  /** @param {PhotoFacts} facts */
  put(facts) {
    this.known.delete(facts.id);
    this.known.set(facts.id, facts);
    this.trim();
  }

  /** @param {number} id */
  get(id) {
    return this.known.get(id);
  }

  /** Forget everything: the library has changed, or another search begins. */
  clear() {
    this.known.clear();
    this.wanted = [];
  }

  /**
   * Ask for photographs that are seen now, and no more for those that were wanted before.
   * @param {number[]} ids
   */
  want(ids) {
    this.wanted = ids.filter((id) => !this.known.has(id));
    if (this.wanted.length === 0) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.ask(), DELAY);
  }

  /**
   * Return what is known of a photograph, all of it.
   * @param {number} id
   * @returns {Promise<PhotoFacts | null>} null: its file is not there now
   */
  async describe(id) {
    const known = this.known.get(id);
    if (known === null || known?.other_files) return known;
    const { photos } = await callPatiently("POST", "photo-facts", { ids: [id] });
    this.note([id], photos);
    return this.known.get(id) ?? null;
  }

  async ask() {
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.wanted.length) {
        const ids = this.wanted.slice(0, AT_ONCE);
        this.wanted = this.wanted.slice(AT_ONCE);
        const { photos } = await callPatiently("POST", "photo-facts", { ids });
        this.note(ids, photos);
      }
    } catch {
      // The pictures are shown without names; what is wrong, the next search or poll says.
    } finally {
      this.asking = false;
    }
  }

  /**
   * @param {number[]} ids
   * @param {PhotoFacts[]} photos
   */
  note(ids, photos) {
    for (const photo of photos) this.known.set(photo.id, photo);
    const there = new Set(photos.map((photo) => photo.id));
    for (const id of ids) if (!there.has(id)) this.known.set(id, null);
    this.trim();
    this.onFacts(ids);
  }

  trim() {
    for (const id of this.known.keys()) {
      if (this.known.size <= MOST_FACTS) break;
      this.known.delete(id);
    }
  }
}
