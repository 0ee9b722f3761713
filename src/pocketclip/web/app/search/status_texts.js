// What is said of a library and of a run of indexing.

import { countOf } from "../shared/dom.js";
import { shownDuration, shownName, shownTime } from "./photo_texts.js";

/**
 * @typedef {object} LibraryState
 * @property {string} name
 * @property {string | null} model
 * @property {string | null} space_id
 * @property {number} files
 * @property {number} photos
 * @property {number} encoded
 * @property {number} unencoded
 * @property {number} unreadable
 * @property {{name: string, files: number, away: boolean}[]} roots
 * @property {null | {outcome: string, stage: string, done: number, total: number, encoded: number,
 *   failed: number, rate: number | null, seconds_left: number | null, started: string,
 *   updated: string}} run
 */

/** @param {NonNullable<LibraryState["run"]>} run */
export function share(run) {
  return run.total ? `${Math.floor((100 * run.done) / run.total)} %` : run.stage;
}

/** @param {NonNullable<LibraryState["run"]>} run */
export function runText(run) {
  const failed = run.failed ? `, ${countOf(run.failed, "file")} could not be read` : "";
  if (run.outcome === "running") {
    if (!run.total) return `Indexing: ${run.stage}.`;
    const of = `${run.done.toLocaleString("en")} of ${run.total.toLocaleString("en")} files`;
    const rate = run.rate ? `, ${run.rate.toFixed(run.rate < 10 ? 1 : 0)} per second` : "";
    const left = run.seconds_left === null ? "" : `, about ${shownDuration(run.seconds_left)} left`;
    return `Indexing: ${of}${rate}${left}${failed}.`;
  }
  const when = shownTime(run.updated.replace(/Z$/, ""));
  /** @type {Record<string, string>} */
  const ends = {
    done: "Last indexed",
    interrupted: "Indexing was interrupted",
    failed: "Indexing failed",
    killed: "Indexing was cut off",
  };
  const advice = run.outcome === "done" ? "" : " Run pocketclip index again: it goes on.";
  const news = run.encoded ? `, ${run.encoded.toLocaleString("en")} new` : "";
  return `${ends[run.outcome] ?? run.outcome}: ${when} UTC${news}${failed}.${advice}`;
}

/** @param {LibraryState} state */
export function countsText(state) {
  const copies = state.files - state.photos;
  const parts = [state.photos.toLocaleString("en")];
  if (copies > 0) parts.push(countOf(copies, "copy", "copies"));
  if (state.unencoded) parts.push(`${state.unencoded.toLocaleString("en")} not searchable yet`);
  return parts.join(", ");
}

/** @param {LibraryState} state */
export function rootsText(state) {
  if (!state.roots.length) return "none yet";
  return state.roots
    .map((root) => `${shownName(root.name)}${root.away ? " (not there now)" : ""}`)
    .join(", ");
}
