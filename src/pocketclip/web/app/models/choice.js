// Which model people have chosen, and whose licence they have accepted; all pages share it.

import { config } from "../shared/config.js";
import { load, save } from "../shared/storage.js";
import { partsOf, serverModel } from "./model_facts.js";

/** @import { Model, Runtime } from "../inference/models.js" */

/**
 * `browser`: the model runs in this page. `server`: pictures are sent to the server.
 * @typedef {{kind: "browser", model: Model, runtime: Runtime} | {kind: "server", model: Model}} Choice
 */

/**
 * Return what people chose, or else the first model that can be used.
 * @param {Model[]} models that can run in the browser
 * @param {any} info of the server; null: there is none
 * @returns {Choice | null} null: there is no model at all
 */
export function currentChoice(models, info) {
  const kept = load("model.choice", /** @type {any} */ (null));
  if (kept?.server === true && info !== null) return { kind: "server", model: serverModel(info) };
  const model = models.find((one) => one.id === kept?.id) ?? models[0];
  if (model !== undefined) {
    const wantsGpu = model.id === kept?.id && kept.runtime === "webgpu";
    const canGpu = partsOf(model, "webgpu", config.vendor) !== null;
    return { kind: "browser", model, runtime: wantsGpu && canGpu ? "webgpu" : "wasm" };
  }
  return info === null ? null : { kind: "server", model: serverModel(info) };
}

/**
 * Keep a choice.
 * @param {Choice} choice
 */
export function keepChoice(choice) {
  const kept =
    choice.kind === "server" ? { server: true } : { id: choice.model.id, runtime: choice.runtime };
  save("model.choice", kept);
}

/**
 * Return whether people have started this before, with this licence, so that it may start by itself.
 *
 * That pictures are sent to the server is agreed to anew in every visit of a page.
 * @param {Choice} choice
 */
export function isAccepted({ kind, model }) {
  return kind === "browser" && accepted()[model.id] === licenceOf(model);
}

/**
 * Note that people have started this, and so accepted its licence.
 * @param {Choice} choice
 */
export function accept({ kind, model }) {
  if (kind === "browser") save("model.accepted", { ...accepted(), [model.id]: licenceOf(model) });
}

/** @returns {Record<string, unknown>} the licences that people have accepted, by model */
function accepted() {
  return load("model.accepted", /** @type {any} */ (null)) ?? {}; // null can be stored too
}

/** @param {Model} model */
function licenceOf({ licence }) {
  return licence.name ?? "not known";
}
