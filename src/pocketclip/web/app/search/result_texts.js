// What is said of the answer to a search, and where nothing is shown.

import { countOf } from "../shared/dom.js";
import { messageOf as textOf } from "../shared/errors.js";
import { countFilters, isBrowsing } from "./query_state.js";

/** @typedef {import("./query_state.js").QueryState} QueryState */
/** @typedef {import("./status_texts.js").LibraryState} LibraryState */

/** @type {Record<string, string>} */
const REMOVED = {
  absent: "are not there any more",
  away: "are in folders that are not there now",
  in: "are in other folders",
  since: "are older",
  until: "are newer",
  camera: "are of other cameras, or name none",
};

/**
 * Return what people must know besides the photographs, each in a sentence.
 * @param {any} answer of `/search`
 * @returns {string[]}
 */
export function remarksOf(answer) {
  const said = [];
  for (const [name, count] of Object.entries(answer.removed ?? {})) {
    if (count) said.push(`${countOf(Number(count), "photograph")} ${REMOVED[name] ?? name}.`);
  }
  if (answer.gone) {
    said.push(
      `${countOf(answer.gone, "better photograph")} left out: the file is not there now. ` +
        "pocketclip index looks for it.",
    );
  }
  if (answer.away) {
    said.push(`${countOf(answer.away, "folder")} not there now: those photographs are left out.`);
  }
  if (answer.unencoded) {
    said.push(`${countOf(answer.unencoded, "photograph")} not searched, as not encoded yet.`);
  }
  return said;
}

/**
 * Return what to say where no photograph is shown.
 * @param {QueryState} query
 * @param {LibraryState | null} library
 * @returns {{title: string, text: string, command: string | null, canClear: boolean}}
 */
export function emptyState(query, library) {
  const canClear = countFilters(query) > 0;
  if (library && library.photos === 0) {
    const text =
      library.run?.outcome === "running"
        ? "The first photographs appear here in a moment."
        : "Index a folder of photographs; this page shows them as they come.";
    const command = library.run?.outcome === "running" ? null : "pocketclip index ~/Pictures";
    return { title: "No photographs yet", text, command, canClear: false };
  }
  if (library && library.encoded === 0 && !isBrowsing(query)) {
    const text = "No photograph is encoded yet, so none can be found. Wait for the indexing.";
    return { title: "Not searchable yet", text, command: null, canClear: false };
  }
  if (canClear) {
    const text = "The filters leave no photograph.";
    return { title: "Nothing here", text, command: null, canClear };
  }
  return { title: "No photographs", text: "", command: null, canClear };
}

/**
 * Return a message for people about anything that went wrong.
 * @param {unknown} error
 */
export function messageOf(error) {
  // The server speaks to whoever writes requests; this page has a box to tick.
  return textOf(error).replace(
    'send it with "literal": true',
    "choose “Take + and - as they are written” under “Filters”",
  );
}
