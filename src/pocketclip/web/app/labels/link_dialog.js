// Links with a list of labels: made for others, and received from anybody.

import { countOf, h } from "../shared/dom.js";
import { openDialog } from "../shared/dialog.js";
import { LabelError, promptsOf } from "./label_list.js";
import { LINK_NAME, decodeLink, encodeLink } from "./share_link.js";

/** @typedef {import("./label_list.js").LabelList} LabelList */

/**
 * Take lists from the address, now and whenever it changes. Each is shown before it is used.
 * @param {(list: LabelList) => void} onUse
 * @param {(message: string) => void} onRefused
 * @param {AbortSignal} signal ends it
 */
export function receiveLinks(onUse, onRefused, signal) {
  let isAsking = false;
  const receive = async () => {
    const value = takeValue();
    if (value === null || isAsking) return; // whoever opened the page may change its address often
    isAsking = true;
    try {
      const { list, changed } = decodeLink(value);
      if (await isWanted(list, changed)) onUse(list);
    } catch (error) {
      if (!(error instanceof LabelError)) throw error;
      onRefused(error.message);
    } finally {
      isAsking = false;
    }
  };
  void receive();
  addEventListener("hashchange", () => void receive(), { signal });
}

/** Return the value in the fragment, and remove it there: a reload must not ask again. */
function takeValue() {
  const values = new URLSearchParams(location.hash.slice(1));
  const value = values.get(LINK_NAME);
  if (value === null) return null;
  values.delete(LINK_NAME);
  const rest = values.toString();
  const address = location.pathname + location.search + (rest === "" ? "" : `#${rest}`);
  history.replaceState(history.state, "", address);
  return value;
}

/**
 * Show a list from a link, and return whether people want it.
 * @param {LabelList} list
 * @param {boolean} changed whether invisible characters were removed
 */
async function isWanted(list, changed) {
  const prompts = promptsOf(list, "LABEL");
  const answer = await openDialog(
    "Use this list from a link?",
    [
      h(
        "dl",
        { class: "facts" },
        h("dt", {}, "Name"),
        h("dd", {}, h("bdi", {}, list.name)),
        h("dt", {}, prompts.length === 1 ? "Prompt" : countOf(prompts.length, "template")),
        h(
          "dd",
          {},
          prompts.map((one) => h("div", {}, h("bdi", {}, one))),
        ),
      ),
      h("h3", { id: "link-labels" }, countOf(list.labels.length, "label")),
      h(
        "ul",
        { class: "link-labels", role: "list", tabindex: "0", "aria-labelledby": "link-labels" },
        list.labels.map((label) => h("li", {}, h("bdi", {}, label))),
      ),
      changed &&
        h("p", { class: "notice small" }, "Invisible characters or extra blanks were removed."),
      h(
        "p",
        { class: "small dim" },
        "Whoever made the link chose these texts. Nothing is sent back.",
      ),
    ],
    [
      { text: "Use this list", value: "use", class: "primary" },
      { text: "Discard", value: "discard" },
    ],
  );
  return answer === "use";
}

/**
 * Show the link of a list, to copy it or hand it on.
 * @param {LabelList} list
 * @throws {LabelError} the list is too long for a link
 */
export async function showLink(list) {
  const address = new URL(location.href);
  address.hash = `${LINK_NAME}=${await encodeLink(list)}`;
  const field = h("input", {
    id: "share-link",
    readonly: true,
    value: address.href,
    onfocus: () => field.select(),
  });
  const told = h("p", { class: "small", role: "status" });
  const copy = async () => {
    told.textContent = (await copied(field)) ? "Copied." : "Copy it with the keyboard or the menu.";
  };
  const share = async () => {
    try {
      await navigator.share({ title: `Labels: ${list.name}`, url: address.href });
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // given up, or not allowed
    }
  };
  await openDialog(
    "Share this list",
    [
      h(
        "p",
        {},
        "The link holds the list itself. It opens this page, which shows the list before using it.",
      ),
      h("div", { class: "field" }, h("label", { for: "share-link" }, "Link"), field),
      told,
    ],
    [
      { text: "Copy", onclick: copy },
      ...("share" in navigator ? [{ text: "Share…", onclick: share }] : []),
      { text: "Close", value: "close" },
    ],
  );
}

/**
 * Copy a field's text; also without a secure origin, where there is no `navigator.clipboard`.
 * @param {HTMLInputElement} field
 */
async function copied(field) {
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch {
    field.select();
    return document.execCommand("copy");
  }
}
