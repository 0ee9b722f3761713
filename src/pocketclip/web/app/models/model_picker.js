// The dialog in which people choose a model.

import { config } from "../shared/config.js";
import { fill, formatBytes, h } from "../shared/dom.js";
import { webgpuProblem } from "../inference/device.js";
import { VENDOR_MISSING } from "../inference/paths.js";
import { isCached, removeFiles } from "../inference/files.js";
import { filesOf } from "../inference/models.js";
import { forgetTexts } from "../inference/text_cache.js";
import { listLeftOver } from "./left_over.js";
import {
  downloadBytes,
  formOf,
  licenceSentence,
  partsOf,
  serverModel,
  startBytes,
  whyNoWebgpu,
} from "./model_facts.js";
import { licenceLinks, licenceWords } from "./start_facts.js";

/** @import { Choice } from "./choice.js" */
/** @import { Model, Runtime } from "../inference/models.js" */

/**
 * Let people choose a model; they can also remove downloads.
 * @param {{models: Model[], choice: Choice | null, info: any}} site
 * @returns {Promise<Choice | null>} null: they changed nothing
 */
export async function pickModel({ models, choice, info }) {
  const gpuProblem = await webgpuProblem();
  return await new Promise((resolve) => {
    const picker = new Picker(models, choice, info, gpuProblem);
    picker.dialog.addEventListener("close", () => {
      picker.dialog.remove();
      resolve(picker.result);
    });
    document.body.append(picker.dialog);
    void picker.draw();
    picker.dialog.showModal();
  });
}

class Picker {
  /** @type {Choice | null} */ result = null;
  // What was asked for last: an answer about anything earlier is not shown.
  #cards = 0;
  #needs = 0;

  /**
   * @param {Model[]} models
   * @param {Choice | null} choice
   * @param {any} info
   * @param {string | null} gpuProblem
   */
  constructor(models, choice, info, gpuProblem) {
    this.models = models;
    this.info = info;
    this.gpuProblem = gpuProblem;
    this.chosen = choice;
    /** @type {Runtime} */
    this.runtime = choice?.kind === "browser" ? choice.runtime : "wasm";
    this.list = h("div", { class: "model-list", role: "radiogroup", "aria-label": "Models" });
    this.gpu = h("input", {
      type: "checkbox",
      role: "switch",
      id: "picker-gpu",
      onchange: () => {
        this.runtime = this.gpu.checked ? "webgpu" : "wasm";
        void this.draw();
      },
    });
    this.gpuHelp = h("p", { class: "help", id: "picker-gpu-help" });
    this.gpu.setAttribute("aria-describedby", this.gpuHelp.id);
    this.use = h(
      "button",
      { type: "button", class: "primary", onclick: () => this.#use() },
      "Use it",
    );
    this.message = h("p", { role: "status", class: "small" });
    this.leftOver = h("p", { class: "row small", hidden: true });
    this.dialog = h(
      "dialog",
      { class: "model-picker", "aria-labelledby": "picker-title" },
      h("h2", { id: "picker-title" }, "Model"),
      config.vendor === null && h("p", { class: "notice" }, VENDOR_MISSING),
      this.list,
      h(
        "div",
        { class: "field", hidden: models.length === 0 || config.vendor === null },
        h(
          "label",
          { class: "check", for: "picker-gpu" },
          this.gpu,
          "Use the graphics processor (WebGPU)",
        ),
        this.gpuHelp,
      ),
      this.leftOver,
      this.message,
      h(
        "p",
        { class: "row dialog-buttons" },
        this.use,
        h("button", { type: "button", onclick: () => this.dialog.close() }, "Cancel"),
      ),
    );
  }

  #use() {
    const { chosen } = this;
    this.result =
      chosen?.kind === "browser" ? { ...chosen, runtime: this.#runtimeOf(chosen.model) } : chosen;
    this.dialog.close();
  }

  /** @param {Model} model */
  #gpuProblemOf(model) {
    return this.gpuProblem ?? whyNoWebgpu(model, config.vendor);
  }

  /**
   * @param {Model} model
   * @returns {Runtime}
   */
  #runtimeOf(model) {
    return this.runtime === "webgpu" && this.#gpuProblemOf(model) === null ? "webgpu" : "wasm";
  }

  async draw() {
    const turn = ++this.#cards;
    const cards = await Promise.all(this.models.map((model) => this.#card(model)));
    if (turn !== this.#cards) return;
    const server = this.info === null ? [] : [this.#serverCard()];
    if (cards.length + server.length === 0) {
      fill(this.list, h("p", {}, "There is no model here that runs in a browser."));
    } else {
      fill(this.list, ...cards, ...server);
    }
    await this.#drawChoice();
    await this.#drawLeftOver();
  }

  /** Offer to remove what replaced models have left on the device. */
  async #drawLeftOver() {
    const files = this.models.length > 0 ? await listLeftOver(this.models) : [];
    const size = formatBytes(files.reduce((sum, file) => sum + file.bytes, 0));
    const onclick = async () => {
      this.use.focus();
      await removeFiles(files);
      await this.draw(); // before the message: what it says must be seen at once
      fill(this.message, `${size} are free again on this device.`);
    };
    this.leftOver.hidden = files.length === 0;
    fill(
      this.leftOver,
      h("span", { class: "grow" }, `Models that are not listed any more take ${size}.`),
      h("button", { type: "button", class: "plain", onclick }, "Remove them"),
    );
  }

  /** Show what the model that is chosen needs. */
  async #drawChoice() {
    const turn = ++this.#needs;
    const { chosen } = this;
    this.use.disabled = chosen === null;
    const problem = chosen?.kind === "browser" ? this.#gpuProblemOf(chosen.model) : null;
    this.gpu.disabled = problem !== null || chosen?.kind !== "browser";
    this.gpu.checked = this.runtime === "webgpu" && !this.gpu.disabled;
    const help = problem ?? (await this.#gpuWords());
    const bytes = await this.#bytesToUse();
    if (turn !== this.#needs) return;
    fill(this.gpuHelp, help);
    fill(this.use, bytes > 0 ? `Use it: download ${formatBytes(bytes)}` : "Use it");
  }

  /** Return what the graphics processor means for the model that is chosen, which can use it. */
  async #gpuWords() {
    const { chosen } = this;
    const parts = chosen?.kind === "browser" && partsOf(chosen.model, "webgpu", config.vendor);
    if (!parts) return "For models that run on this device.";
    const bytes = await startBytes(parts);
    const size = bytes === 0 ? "On this device." : `Downloads ${formatBytes(bytes)}.`;
    return (
      `${size} The model has ${parts.variant.precision} numbers then. Often faster; a picture with ` +
      "a known result is checked at each start, and the CPU is used where it fails."
    );
  }

  /** Return how many bytes the model that is chosen downloads. */
  async #bytesToUse() {
    const { chosen } = this;
    if (chosen?.kind !== "browser") return 0;
    const parts = partsOf(chosen.model, this.#runtimeOf(chosen.model), config.vendor);
    return parts === null ? 0 : await startBytes(parts);
  }

  /** @param {Model} model */
  async #card(model) {
    const runtime = this.#runtimeOf(model);
    const parts = partsOf(model, runtime, config.vendor);
    if (parts === null) return this.#option(model.name, null, [h("span", {}, "Cannot run here.")]);
    const cached = await Promise.all([...parts.image].map(isCached));
    const kept = cached.every(Boolean);
    const any = await Promise.all([...parts.image, ...parts.text].map(isCached));
    const image = `Model ${formatBytes(downloadBytes(parts.image))}`;
    const base = `runtime ${formatBytes(downloadBytes(parts.runtime))}, shared by all models`;
    const text = `For labels of your own: ${formatBytes(downloadBytes(parts.text))} more`;
    const own =
      this.info?.space_id === model.space_id ? "Labels of your own: by this server" : text;
    return this.#option(
      model.name,
      { kind: "browser", model, runtime },
      [
        h("span", {}, kept && h("strong", {}, "On this device. "), `${image}, ${base}.`),
        h("span", {}, `${formOf(parts.variant, runtime)}.`),
        h("span", {}, `${own}.`),
        h(
          "span",
          {},
          "Licence: ",
          ...licenceLinks(model.licence),
          ". ",
          licenceSentence(model.licence),
        ),
      ],
      any.some(Boolean) ? this.#removeButton(model) : null,
    );
  }

  #serverCard() {
    const model = serverModel(this.info);
    return this.#option(`${model.name}, on this server`, { kind: "server", model }, [
      h("span", {}, "Nothing to download. Pictures are sent to this server."),
      h("span", {}, ...licenceWords(model.licence)),
    ]);
  }

  /**
   * @param {string} name
   * @param {Choice | null} choice null: it cannot be chosen
   * @param {Node[]} lines
   * @param {Node | null} [button]
   */
  #option(name, choice, lines, button = null) {
    const chosen = this.chosen;
    const radio = h("input", {
      type: "radio",
      name: "picker-model",
      disabled: choice === null,
      onchange: () => {
        this.chosen = choice;
        void this.#drawChoice(); // the cards stay: the focus is on one of them
      },
    });
    radio.checked =
      choice !== null && chosen?.kind === choice.kind && chosen.model.id === choice.model.id;
    return h(
      "div",
      { class: "model-option" },
      h("label", {}, radio, h("strong", {}, name)),
      h("div", { class: "model-facts" }, ...lines),
      button,
    );
  }

  /** @param {Model} model */
  #removeButton(model) {
    const onclick = async () => {
      await removeFiles(ownFiles(model, this.models));
      await forgetTexts(model.space_id);
      const what = `The files of ${model.name}, and what it made of labels`;
      await this.draw(); // before the message: what it says must be seen at once
      fill(this.message, `${what}, are removed from this device.`);
    };
    return h("button", { type: "button", class: "plain", onclick }, "Remove from this device");
  }
}

/**
 * Return the files of a model that no other model names.
 * @param {Model} model
 * @param {Model[]} models
 */
function ownFiles(model, models) {
  const others = new Set(models.filter((one) => one !== model).flatMap(hashesOf));
  return filesOf(model).filter((file) => !others.has(file.sha256));
}

/** @param {Model} model */
function hashesOf(model) {
  return filesOf(model).map((file) => file.sha256);
}
