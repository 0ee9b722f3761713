// Names pictures by the labels that people have chosen: turns embeddings into results.

import { isAbort } from "../shared/api.js";
import { countOf } from "../shared/dom.js";
import { messageOf } from "../shared/errors.js";
import { ConsentRefused, TextEncoder } from "../inference/text_encoder.js";
import { buildClassifier, scores } from "../inference/zero_shot.js";
import { promptsOfList } from "../labels/label_list.js";
import { rankSet } from "../labels/label_set.js";

/** @import { Model } from "../inference/models.js" */
/** @typedef {{label: string, texts: string[]}} Group a label and its prompts */

/**
 * What people have chosen in the editor of labels: see labels/editor.js.
 * @typedef {{kind: "list", list: import("../labels/label_list.js").LabelList}
 *   | {kind: "set", name: string, set: import("../labels/label_set.js").LabelSet}} LabelChoice
 */

/**
 * `idle`: there is no model yet. `ready`: pictures are named. `empty`: there are no labels. `working`: labels are encoded.
 * `refused`: people did not want the download that some labels need; the others are used.
 * `problem`: an error.
 * @typedef {"idle" | "ready" | "empty" | "working" | "refused" | "problem"} NamerState
 */

/**
 * @typedef {object} Handlers
 * @property {(isOther: boolean) => void} onChange the state is another one; isOther: pictures are
 *   named otherwise than before, so that results are other ones too
 * @property {(bytes: number) => Promise<boolean>} onConsent asks for a download of the text tower
 * @property {(loaded: number, total: number) => void} onProgress of that download, in bytes
 * @property {(prompts: string[]) => void} onCut these prompts were too long, and cut
 */

const PATIENCE = 250; // ms without another change, while people write

export class Namer {
  /** @type {NamerState} */ state = "idle";
  /** What is wrong, in the states `refused` and `problem`; how far it is, in `working`. */
  message = "";
  /** @type {Model | null} */ #model = null;
  /** @type {LabelChoice | null} */ #choice = null;
  /** @type {Promise<TextEncoder> | null} */ #texts = null;
  /** @type {((embedding: Float32Array) => import("./scored.js").Scored) | null} */ #score = null;
  /** What pages have named pictures by, as far as they were told. */
  #told = this.#score;
  /** @type {AbortController | null} */ #work = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** Whether people have refused the download; they are asked again only if they want it. */
  #refused = false;

  /**
   * @param {Handlers} handlers
   * @param {any} info what the server's `/info` says; null without one
   */
  constructor(handlers, info) {
    this.handlers = handlers;
    this.info = info;
  }

  /**
   * Name by another model.
   * @param {Model} model
   */
  setModel(model) {
    const other = model.id !== this.#model?.id || model.space_id !== this.#model?.space_id;
    this.#model = model;
    if (!other) return;
    void this.#texts?.then((texts) => texts.close()).catch(() => undefined);
    this.#texts = null;
    this.#score = null;
    this.#refused = false;
    this.#update();
  }

  /**
   * Name by other labels.
   * @param {LabelChoice} choice
   */
  setChoice(choice) {
    const first = this.#choice === null;
    this.#choice = choice;
    clearTimeout(this.#timer);
    if (first) this.#update();
    else this.#timer = setTimeout(() => this.#update(), PATIENCE);
  }

  /** Try again what was refused or failed. */
  retry() {
    this.#refused = false;
    this.#update();
  }

  /**
   * Return what the labels say of a picture; null: they are not ready.
   * @param {Float32Array} embedding
   */
  name(embedding) {
    return this.#score?.(embedding) ?? null;
  }

  #update() {
    this.#work?.abort();
    const work = (this.#work = new AbortController());
    const model = this.#model;
    const choice = this.#choice;
    if (model === null || choice === null) return;
    if (choice.kind === "set") {
      const { set } = choice;
      this.#score = (embedding) => rankSet(set, embedding);
      this.#set("ready");
    } else if (choice.list.labels.length === 0) {
      this.#score = null;
      this.#set("empty");
    } else {
      this.#set("working");
      this.#encode(model, choice.list, work.signal).catch((error) => {
        if (work.signal.aborted || isAbort(error)) return;
        this.#score = null;
        this.#set("problem", messageOf(error));
      });
    }
  }

  /**
   * @param {Model} model
   * @param {import("../labels/label_list.js").LabelList} list
   * @param {AbortSignal} signal
   */
  async #encode(model, list, signal) {
    this.#texts ??= TextEncoder.open(model, { server: this.info !== null, info: this.info });
    const texts = await this.#texts;
    const { onConsent, onProgress, onCut } = this.handlers;
    let groups = promptsOfList(list);
    let left = 0;
    let found;
    try {
      found = await texts.encode(promptsIn(groups), {
        onConsent: async (bytes) => !this.#refused && (await onConsent(bytes)),
        onProgress,
        onEncoded: (done, total) => this.#set("working", `${done} of ${total}`),
        signal,
      });
    } catch (error) {
      if (!(error instanceof ConsentRefused)) throw error;
      this.#refused = true;
      const known = await knownOf(groups, texts, signal);
      left = groups.length - known.length;
      groups = known;
      found = await texts.encode(promptsIn(groups), { signal });
    }
    const background = await texts.background(list.labels, { signal });
    signal.throwIfAborted();
    const classifier = buildClassifier(groups, found.embeddings);
    this.#score =
      groups.length === 0
        ? null
        : (embedding) => scores(embedding, classifier, model.logit_scale, { background });
    onCut(found.cut);
    if (left === 0) this.#set("ready");
    else
      this.#set(
        "refused",
        `${countOf(left, "label")} left out: the model's text part is not here.`,
      );
  }

  /**
   * @param {NamerState} state
   * @param {string} [message]
   */
  #set(state, message = "") {
    this.state = state;
    this.message = message;
    const isOther = this.#score !== this.#told;
    this.#told = this.#score;
    this.handlers.onChange(isOther);
  }
}

/**
 * @param {readonly Group[]} groups
 */
function promptsIn(groups) {
  return groups.flatMap((group) => group.texts);
}

/**
 * Return the labels whose prompts can be encoded without a download.
 * @param {readonly Group[]} groups
 * @param {TextEncoder} texts
 * @param {AbortSignal} signal
 */
async function knownOf(groups, texts, signal) {
  const known = [];
  for (const group of groups) {
    try {
      await texts.encode(group.texts, { signal });
      known.push(group);
    } catch (error) {
      if (!(error instanceof ConsentRefused)) throw error;
    }
  }
  return known;
}
