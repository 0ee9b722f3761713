// The model of the page: asks before the first download, shows its progress, and says what is wrong.

import { aborted } from "../inference/errors.js";
import { VENDOR_MISSING } from "../inference/paths.js";
import { listModels } from "../inference/models.js";
import { isAbort } from "../shared/api.js";
import { config } from "../shared/config.js";
import { byId, fill, formatBytes, h } from "../shared/dom.js";
import { messageOf } from "../shared/errors.js";
import { accept, currentChoice, isAccepted, keepChoice } from "./choice.js";
import { formOf, serverModel } from "./model_facts.js";
import { pickModel } from "./model_picker.js";
import { openImageEncoder } from "./open_model.js";
import { licenceLinks, startFacts } from "./start_facts.js";

/** @import { Choice } from "./choice.js" */
/** @import { Model } from "../inference/models.js" */

/**
 * `none`: there is no model. `asks`: people have to start it. `loading`, `ready`, `failed`.
 * @typedef {"none" | "asks" | "loading" | "ready" | "failed"} ModelState
 */

/** @typedef {Awaited<ReturnType<typeof openImageEncoder>>} Encoder */

export class Starter {
  /** @type {ModelState} */ state = "none";
  /** @type {Choice | null} */ choice = null;
  /** @type {import("./start_facts.js").StartFacts | null} */ facts = null;
  /** @type {Encoder | null} */ #encoder = null;
  /** @type {AbortController | null} */ #work = null;
  #unlisted = ""; // why it is not known which models there are

  /**
   * @param {any} info what the server's `/info` says; null without one
   * @param {{onState: () => void, onModel?: (model: Model) => void,
   *   onEncoder: (encoder: Encoder | null) => void}} handlers onModel: a model was started, and
   *   its labels can be prepared while it loads
   */
  constructor(info, handlers) {
    this.info = info;
    this.handlers = handlers;
    /** @type {Model[]} */
    this.models = [];
    byId("loading-cancel").addEventListener("click", () => this.#work?.abort());
    byId("model-button").addEventListener("click", () => void this.pick());
  }

  /**
   * Begin with the models of the site. What is on the device and was used before starts at once;
   * the server's model does not, as pictures are sent to it.
   */
  async begin() {
    try {
      const models = await listModels();
      this.models = config.vendor === null ? [] : models;
    } catch (error) {
      this.#unlisted = messageOf(error);
    }
    this.choice = currentChoice(this.models, this.info);
    if (this.choice === null) {
      this.#set("none");
      return;
    }
    this.facts = await startFacts(this.choice);
    this.#set("asks");
    if (isAccepted(this.choice) && this.facts.bytes === 0) void this.start();
  }

  /** Why there is no model, or why it is the server's. */
  get lack() {
    if (config.vendor === null) return VENDOR_MISSING;
    if (this.models.length > 0) return "";
    if (this.#unlisted !== "") return this.#unlisted;
    const how = config.server
      ? "start the server with an ONNX bundle, or with `--web-model BUNDLE`"
      : "export one with `--format web`";
    return `There is no model here that runs in a browser: ${how}.`;
  }

  /** Load the model that is chosen; by this its licence is accepted. */
  async start() {
    const { choice } = this;
    if (choice === null || this.state === "loading" || this.state === "ready") return;
    accept(choice);
    await this.#open(choice);
  }

  /** Let people choose another model. */
  async pick() {
    const { models, choice, info } = this;
    const picked = await pickModel({ models, choice, info });
    if (picked === null) return;
    accept(picked);
    await this.#open(picked);
  }

  /** Use the server's model: pictures are sent to it. */
  async useServer() {
    /** @type {Choice} */
    const choice = { kind: "server", model: serverModel(this.info) };
    accept(choice);
    await this.#open(choice);
  }

  /** @param {Choice} choice */
  async #open(choice) {
    this.#work?.abort();
    const work = (this.#work = new AbortController());
    this.#close();
    this.choice = choice;
    keepChoice(choice);
    fill(byId("notes"));
    this.#set("loading");
    this.handlers.onModel?.(choice.model);
    showLoading("Starting the model", null);
    try {
      const encoder = await openImageEncoder(choice, {
        info: this.info,
        signal: work.signal,
        onProgress: (loaded, total) => {
          if (!work.signal.aborted) showLoading("Loading the model", { loaded, total });
        },
      });
      if (work.signal.aborted) {
        encoder.close();
        throw aborted();
      }
      this.#encoder = encoder;
      this.#set("ready");
      this.drawNotes();
      this.handlers.onEncoder(encoder);
    } catch (error) {
      if (this.#work !== work) return; // Another one was chosen meanwhile.
      this.facts = await startFacts(choice);
      if (this.#work !== work) return;
      if (isAbort(error)) this.#set("asks");
      else this.fail(error);
    } finally {
      if (this.#work === work) hideLoading();
    }
  }

  /**
   * Say that the model does not work, and what else there is.
   * @param {unknown} error
   */
  fail(error) {
    this.#close();
    this.#set("failed");
    const message = messageOf(error);
    const { choice, info } = this;
    const again = h("button", { type: "button", onclick: () => void this.#again() }, "Try again");
    const other = h(
      "button",
      { type: "button", onclick: () => void this.pick() },
      "Choose a model",
    );
    const useServer = () => void this.useServer();
    const server =
      info !== null && choice?.kind !== "server"
        ? h("button", { type: "button", onclick: useServer }, "Send pictures to the server instead")
        : null;
    fill(
      byId("notes"),
      h(
        "div",
        { class: "notice bad", role: "alert" },
        h("p", {}, message),
        h("p", { class: "row" }, again, other, server),
      ),
    );
  }

  async #again() {
    if (this.choice !== null) await this.#open(this.choice);
  }

  #close() {
    this.#encoder?.close();
    this.#encoder = null;
    this.drawNotes();
    this.handlers.onEncoder(null);
  }

  /** @param {ModelState} state */
  #set(state) {
    this.state = state;
    this.#drawLine();
    this.handlers.onState();
  }

  /** Show what the encoder says of itself, which may become more. */
  drawNotes() {
    const notes = this.#encoder?.notes ?? [];
    const list = byId("model-notes");
    if (list.childElementCount === notes.length) return;
    fill(
      list,
      notes.map((text) => h("p", { class: "note" }, text)),
    );
  }

  #drawLine() {
    const { choice } = this;
    const line = byId("model-line");
    if (choice === null) {
      fill(line, this.lack);
      return;
    }
    const encoder = this.#encoder;
    const name = h("strong", {}, choice.model.name);
    if (choice.kind === "server") {
      fill(line, name, " on this server. Pictures are sent to it.");
      return;
    }
    const form =
      encoder !== null && encoder.runtime !== "server"
        ? `, ${formOf(encoder.variant, encoder.runtime)}${threadsOf(encoder)}`
        : "";
    fill(
      line,
      name,
      `${form}. Pictures stay on this device. Licence: `,
      ...licenceLinks(choice.model.licence),
      ".",
    );
  }
}

/** @param {{runtime: string, threads: number}} encoder */
function threadsOf({ runtime, threads }) {
  return runtime === "wasm" && threads > 1 ? ` with ${threads} threads` : "";
}

/**
 * Show how far a download is.
 * @param {string} text
 * @param {{loaded: number, total: number} | null} progress null: not known
 */
export function showLoading(text, progress) {
  const bar = /** @type {HTMLProgressElement} */ (byId("loading-bar"));
  byId("loading").hidden = false;
  if (progress === null || progress.total === 0) {
    bar.removeAttribute("value");
    fill(byId("loading-text"), text);
    return;
  }
  const { loaded, total } = progress;
  bar.value = loaded / total;
  bar.setAttribute("aria-valuetext", `${formatBytes(loaded)} of ${formatBytes(total)}`);
  fill(byId("loading-text"), `${text}: ${formatBytes(loaded)} of ${formatBytes(total)}`);
}

export function hideLoading() {
  byId("loading").hidden = true;
}
