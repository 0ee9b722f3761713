// What all pages have: the session, and the line with messages.

import { ApiError, call, whenLocked } from "./api.js";
import { config } from "./config.js";
import { byId, fill, h, printable } from "./dom.js";
import { messageOf } from "./errors.js";
import { forgetModels, offlineState } from "./offline.js";

/**
 * @typedef {object} Shell
 * @property {any | null} info what `/info` says; null without a server, or if it does not answer
 * @property {boolean} offline there should be a server, and it does not answer
 */

/**
 * Let the browser in, and show the page.
 *
 * A page whose work needs no server is shown without one too.
 * @param {{needsServer?: boolean}} [options]
 * @returns {Promise<Shell>} when the page may begin its work
 */
export async function startShell({ needsServer = false } = {}) {
  const token = takeToken();
  void offlineState(); // begins to keep the pages
  if (!config.server) return { info: null, offline: false };
  try {
    await enter(token);
    whenLocked(() => void letInAgain(needsServer));
    const info = await call("GET", "info");
    return { info, offline: false };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.code !== "unreachable" || needsServer) say(error.message);
    return { info: null, offline: error.code === "unreachable" };
  }
}

/**
 * Show a message to everybody, screen readers included.
 * @param {string} text empty: none
 */
export function say(text) {
  byId("status").textContent = printable(text);
}

/**
 * Return the token in the address, and remove it there: it must not be seen, saved or sent on.
 * @returns {string | null}
 */
function takeToken() {
  const values = new URLSearchParams(location.hash.slice(1));
  const token = values.get("token");
  if (token !== null) {
    values.delete("token");
    const rest = values.toString();
    const address = location.pathname + location.search + (rest === "" ? "" : `#${rest}`);
    history.replaceState(null, "", address);
  }
  return token;
}

/**
 * Begin a session, by the token or by the key that people type.
 * @param {string | null} token
 */
async function enter(token) {
  let session = null;
  if (token !== null) {
    try {
      session = await call("POST", "session", { token });
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      say(error.message);
    }
  }
  session ??= await call("GET", "session");
  if (session.required && !session.active) {
    await askForKey();
    session = { required: true, active: true };
  }
  say("");
  if (session.active) showLeave();
}

let isAsking = false;

/**
 * Ask for the key again: the session has ended, as the server was started anew.
 * @param {boolean} reload whether the page begins anew; else what people have done in it stays
 */
async function letInAgain(reload) {
  if (reload) return location.reload();
  if (isAsking) return;
  isAsking = true;
  say("The session has ended.");
  await askForKey();
  isAsking = false;
  say("");
}

/** Wait until people have typed the key. */
function askForKey() {
  void forgetModels();
  const gate = byId("gate");
  const content = byId("content");
  return /** @type {Promise<void>} */ (
    new Promise((resolve) => {
      const key = h("input", {
        id: "key",
        type: "password",
        autocomplete: "current-password",
        required: true,
        maxlength: 4096,
      });
      /** @param {SubmitEvent} event */
      const onsubmit = async (event) => {
        event.preventDefault();
        const typed = key.value;
        key.value = "";
        try {
          await call("POST", "session", { key: typed });
        } catch (error) {
          say(messageOf(error));
          return;
        }
        gate.hidden = true;
        fill(gate);
        content.hidden = false;
        resolve();
      };
      fill(
        gate,
        h(
          "form",
          { class: "panel", onsubmit },
          h("h1", {}, "This server asks for its key"),
          h("div", { class: "field" }, h("label", { for: "key" }, "Key"), key),
          h("button", { class: "primary" }, "Enter"),
        ),
      );
      content.hidden = true;
      gate.hidden = false;
      key.focus();
    })
  );
}

/** Offer to end the session. */
function showLeave() {
  const leave = async () => {
    try {
      await call("DELETE", "session");
      await forgetModels();
      location.reload();
    } catch (error) {
      say(messageOf(error));
    }
  };
  fill(byId("shell-tools"), h("button", { class: "plain", onclick: leave }, "Leave"));
}

addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("token")) location.reload();
});
