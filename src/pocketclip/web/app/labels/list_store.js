// The lists of labels that are kept on the device. Every change reads first what is stored now, so
// that two tabs do not undo each other's work.

import { load, remove, save } from "../shared/storage.js";
import { LabelError, checked, checkedName, keyOf, quoted } from "./label_list.js";
import { listOf } from "./list_file.js";

/** @typedef {import("./label_list.js").LabelList} LabelList */

const OWN = "labels.own";
const CURRENT = "labels.current.";
const MAX_OWN = 200;

/**
 * Return the own lists, in the order in which they were made. Damaged ones are left out.
 * @returns {LabelList[]}
 */
export function ownLists() {
  const stored = load(OWN, /** @type {unknown} */ ([]));
  if (!Array.isArray(stored)) return [];
  return stored.flatMap((raw) => {
    const list = usable(raw);
    return list === null ? [] : [list];
  });
}

/**
 * Return the own list of a name; null: there is none.
 * @param {string} name
 */
export function ownList(name) {
  return ownLists().find((one) => keyOf(one.name) === keyOf(name)) ?? null;
}

/**
 * Keep a list under its name, in place of one with the same name.
 * @param {LabelList} list
 * @param {number} [position] of a new one; by default the end
 * @returns {boolean} whether it is kept after the page is closed
 * @throws {LabelError} there are too many
 */
export function keepList(list, position) {
  return keepLists([list], position);
}

/**
 * Keep several lists, all of them or none.
 * @param {readonly LabelList[]} fresh
 * @param {number} [position] of new ones; by default the end
 * @returns {boolean} whether they are kept after the page is closed
 * @throws {LabelError} there are too many
 */
export function keepLists(fresh, position) {
  const lists = ownLists();
  const before = lists.length;
  for (const list of fresh) {
    const at = lists.findIndex((one) => keyOf(one.name) === keyOf(list.name));
    if (at >= 0) lists[at] = list;
    else lists.splice(position ?? lists.length, 0, list);
  }
  if (lists.length > MAX_OWN && lists.length > before) {
    const room = `There is room for ${MAX_OWN} lists of your own, and you have ${before}`;
    throw new LabelError(`${room}: delete some first, then add ${lists.length - before}.`);
  }
  return save(OWN, lists);
}

/**
 * Give an own list another name.
 * @param {string} name
 * @param {string} wanted
 * @param {string[]} [taken] names that no own list may have
 * @returns {string} the name as it is now
 * @throws {LabelError} it is refused
 */
export function renameList(name, wanted, taken = []) {
  const renamed = freeName(wanted, taken, name);
  const lists = ownLists().map((one) =>
    keyOf(one.name) === keyOf(name) ? { ...one, name: renamed } : one,
  );
  save(OWN, lists);
  return renamed;
}

/**
 * Return a name for an own list, clean.
 * @param {string} wanted
 * @param {string[]} taken names that no own list may have: those of presets
 * @param {string} [except] an own list that may have it
 * @throws {LabelError} another list has it
 */
export function freeName(wanted, taken, except) {
  const name = checkedName(wanted);
  const others = ownLists().filter(
    (one) => except === undefined || keyOf(one.name) !== keyOf(except),
  );
  if ([...taken, ...others.map((one) => one.name)].some((one) => keyOf(one) === keyOf(name))) {
    throw new LabelError(`There is a list ${quoted(name)} already: choose another name.`);
  }
  return name;
}

/**
 * Return a name that no list has: the wanted one, or with a number.
 * @param {string} wanted
 * @param {string[]} taken
 */
export function distinctName(wanted, taken) {
  const keys = new Set([...taken, ...ownLists().map((one) => one.name)].map(keyOf));
  let name = wanted;
  for (let n = 2; keys.has(keyOf(name)); n++) name = `${wanted.slice(0, 50)} (${n})`;
  return name;
}

/**
 * Forget an own list.
 * @param {string} name
 * @returns {number} where it was, for `keepList`
 */
export function forgetList(name) {
  const lists = ownLists();
  const at = lists.findIndex((one) => keyOf(one.name) === keyOf(name));
  if (at >= 0) save(OWN, [...lists.slice(0, at), ...lists.slice(at + 1)]);
  return at;
}

/** Forget all own lists. */
export function forgetAll() {
  remove(OWN);
}

/**
 * What a page had chosen last: a list as it was edited, or the name of a label set.
 * @typedef {{list: LabelList | null, base: string | null, set: string | null}} Current
 */

/**
 * Return what a page had chosen last; null: nothing, or it is damaged.
 * @param {string} page
 * @returns {Current | null}
 */
export function currentOf(page) {
  const raw = load(CURRENT + page, /** @type {any} */ (null));
  if (typeof raw !== "object" || raw === null) return null;
  return {
    list: usable(raw.list),
    base: typeof raw.base === "string" ? raw.base : null,
    set: typeof raw.set === "string" ? raw.set : null,
  };
}

/**
 * Keep what a page has chosen.
 * @param {string} page
 * @param {Current} current
 * @returns {boolean} whether it is kept after the page is closed
 */
export function keepCurrent(page, current) {
  return save(CURRENT + page, current);
}

/**
 * Call a function when another tab has changed the own lists.
 * @param {() => void} listener
 * @param {AbortSignal} signal ends it
 */
export function whenChangedElsewhere(listener, signal) {
  addEventListener(
    "storage",
    (event) => {
      if (event.key === null || event.key.endsWith(OWN)) listener();
    },
    { signal },
  );
}

/**
 * @param {unknown} raw
 * @returns {LabelList | null}
 */
function usable(raw) {
  try {
    return checked(listOf(raw)).list;
  } catch (error) {
    if (error instanceof LabelError) return null;
    throw error;
  }
}
