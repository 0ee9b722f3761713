// The editor of labels: which list, its prompt, and its labels; or a label set.
//
//     const editor = await mountEditor(element, { page: "camera", onChange(choice) {} });
//
// Every change keeps what was before, so that it can be undone until the next one.

import { countOf, fill, h } from "../shared/dom.js";
import {
  addLabels,
  makeList,
  quoted,
  removeLabel,
  renameLabel,
  sameContent,
  sortLabels,
  withPrompt,
} from "./label_list.js";
import { describeCut, describeSet, explained } from "./label_texts.js";
import { checkSpace } from "./label_set.js";
import { refusedNotes } from "./list_file.js";
import { currentOf, keepCurrent, ownList, whenChangedElsewhere } from "./list_store.js";
import { ListsMenu } from "./lists_menu.js";
import { LabelsView } from "./labels_view.js";
import { loadPresets } from "./presets.js";
import { PromptView } from "./prompt_view.js";
import { receiveLinks } from "./link_dialog.js";
import { SetOffers } from "./set_offers.js";

/** @typedef {import("./label_list.js").LabelList} LabelList */
/** @typedef {import("./label_set.js").LabelSet} LabelSet */
/** @typedef {import("./offered_sets.js").SiteSet} SiteSet */

/**
 * What a page uses: a list, or a label set.
 * @typedef {{kind: "list", list: LabelList} | {kind: "set", name: string, set: LabelSet}} Choice
 */

/**
 * @typedef {object} State
 * @property {LabelList} list that is edited, also while a label set is used
 * @property {string | null} base the name of the stored list or preset that it was
 * @property {{name: string, set: LabelSet} | null} set that is used
 */

/**
 * @typedef {object} SpaceOf
 * @property {string} space_id
 * @property {number} embed_dim
 * @property {string} name
 */

/**
 * @typedef {object} EditorOptions
 * @property {string} page under which the device keeps what is chosen
 * @property {(choice: Choice) => void} onChange called at the end of mounting, and at every change
 */

/**
 * Put an editor into an element.
 * @param {HTMLElement} container
 * @param {EditorOptions} options
 * @returns {Promise<Editor>}
 */
export async function mountEditor(container, options) {
  const presets = await loadPresets();
  const editor = new Editor(container, options, presets);
  await editor.start();
  return editor;
}

let count = 0;

export class Editor {
  /**
   * @param {HTMLElement} container
   * @param {EditorOptions} options
   * @param {LabelList[]} presets
   */
  constructor(container, options, presets) {
    this.options = options;
    this.presets = presets;
    this.id = `labels-${++count}`;
    /** @type {State} */
    this.state = { list: presets[0] ?? makeList(), base: presets[0]?.name ?? null, set: null };
    this.offers = new SetOffers(this);
    /** @type {SpaceOf | null} */
    this.model = null;
    this.ended = new AbortController();
    /** @type {(() => void) | null} */
    this.undo = null;
    this.message = h("p", { class: "labels-message", role: "status" });
    this.undoButton = h(
      "button",
      { type: "button", class: "plain", hidden: true, onclick: () => this.undoLast() },
      "Undo",
    );
    this.cut = h("p", { class: "notice small", hidden: true });
    this.prompt = new PromptView(this);
    this.labels = new LabelsView(this);
    this.menu = new ListsMenu(this);
    this.about = h("p", { class: "labels-set" });
    this.listParts = h("div", {}, this.prompt.element, this.labels.element);
    fill(
      container,
      h(
        "section",
        { class: "labels", "aria-label": "Labels" },
        this.menu.lists,
        this.menu.changed,
        this.listParts,
        this.about,
        h("div", { class: "labels-told" }, this.message, this.undoButton),
        this.cut,
        this.menu.tools,
      ),
    );
    this.element = /** @type {HTMLElement} */ (container.firstElementChild);
    this.menu.takeDrops(this.element);
  }

  /** Show what was chosen last, and take a list from the address. */
  async start() {
    const last = currentOf(this.options.page);
    if (last?.list) this.state = { list: last.list, base: last.base, set: null };
    await this.offers.start(last?.set ?? null);
    this.render();
    await this.offers.useWanted();
    if (this.state.set === null) this.options.onChange(this.choice);
    // The menu alone: what people are typing stays.
    whenChangedElsewhere(() => this.menu.render(), this.ended.signal);
    receiveLinks(
      (list) => this.use(list, null, `The list ${quoted(list.name)} from the link is used.`),
      (message) => this.tell(message),
      this.ended.signal,
    );
  }

  /** End listening, and empty the element. */
  destroy() {
    this.ended.abort();
    this.element.remove();
  }

  /** @returns {Choice} */
  get choice() {
    const { list, set } = this.state;
    return set === null ? { kind: "list", list } : { kind: "set", ...set };
  }

  /** The stored list or preset that the list was; null: there is none. */
  get stored() {
    const { base } = this.state;
    if (base === null) return null;
    return this.presets.find((one) => one.name === base) ?? ownList(base);
  }

  /** Whether the list is another one than the stored one. */
  get isChanged() {
    const stored = this.stored;
    return stored === null || !sameContent(stored, this.state.list);
  }

  /** The names that no own list may have. */
  get reserved() {
    return this.presets.map((one) => one.name);
  }

  // ---- What the page tells

  /**
   * Say which model is used: a label set must be of its embedding space.
   * @param {(SpaceOf & {label_sets?: SiteSet[]}) | null} model
   */
  setModel(model) {
    this.model = model;
    this.offers.setSite(model?.label_sets ?? []);
    void this.offers.useWanted();
    const { set } = this.state;
    if (set !== null && model !== null) {
      try {
        checkSpace(set.set, model, set.name);
      } catch (error) {
        this.change({ ...this.state, set: null }, explained(error), { undo: false });
        return;
      }
    }
    this.menu.render();
  }

  /**
   * Show which prompts were too long for the model.
   * @param {string[]} prompts
   */
  setCut(prompts) {
    this.cut.hidden = prompts.length === 0;
    fill(this.cut, describeCut(prompts));
  }

  // ---- Changes

  /**
   * Show and keep another state, and tell the page.
   * @param {State} state
   * @param {string} message
   * @param {{undo?: boolean | (() => void)}} [options] false: it cannot be undone; a function: what
   *   has to be undone beside the state
   */
  change(state, message, { undo = true } = {}) {
    const before = this.state;
    this.state = state;
    this.offers.giveUp();
    const { list, base, set } = state;
    const kept = keepCurrent(this.options.page, { list, base, set: set?.name ?? null });
    const more = kept ? "" : " This browser keeps it until the page is closed only.";
    const back = () => {
      if (typeof undo === "function") undo();
      this.change(before, "Undone.", { undo: false });
    };
    this.tell(message + more, undo === false ? null : back);
    this.setCut([]);
    this.render();
    this.options.onChange(this.choice);
  }

  /**
   * Use a list.
   * @param {LabelList} list
   * @param {string | null} base the name under which it is stored
   * @param {string} [message]
   * @param {() => void} [undo] what has to be undone beside
   */
  use(list, base, message, undo) {
    const leaves = this.state.set === null && this.isChanged && this.state.list.labels.length > 0;
    const left = leaves ? ` Changes to ${quoted(this.state.list.name)} were left.` : "";
    this.change({ list, base, set: null }, (message ?? `${quoted(list.name)} is used.`) + left, {
      undo: undo ?? true,
    });
  }

  /**
   * Use a label set, if it fits the model.
   * @param {string} name
   * @param {LabelSet} set
   */
  useSet(name, set) {
    if (this.model !== null) checkSpace(set, this.model, name);
    this.change({ ...this.state, set: { name, set } }, `The label set ${quoted(name)} is used.`);
  }

  /**
   * Add labels, and tell which were refused.
   * @param {string[]} texts
   * @returns {string[]} those that were refused
   */
  add(texts) {
    const { list, added, refused } = addLabels(this.state.list, texts);
    const notes = refusedNotes(refused);
    if (added.length === 0) {
      this.tell(notes.join(" ") || "There is no label in this text.");
    } else {
      const what = added.length === 1 ? quoted(added[0] ?? "") : countOf(added.length, "label");
      this.change({ ...this.state, list }, [`Added ${what}.`, ...notes].join(" "));
    }
    return refused.map((one) => one.text);
  }

  /** @param {string} label */
  remove(label) {
    const list = removeLabel(this.state.list, label);
    this.change({ ...this.state, list }, `Removed ${quoted(label)}.`);
  }

  removeAll() {
    const list = { ...this.state.list, labels: [] };
    this.change({ ...this.state, list }, "Removed all labels.");
  }

  /**
   * @param {string} label
   * @param {string} text
   * @returns {string} the label as it is now
   */
  rename(label, text) {
    const renamed = renameLabel(this.state.list, label, text);
    if (renamed.label !== label) {
      const message = `${quoted(label)} is ${quoted(renamed.label)} now.`;
      this.change({ ...this.state, list: renamed.list }, message);
    }
    return renamed.label;
  }

  sort() {
    this.change({ ...this.state, list: sortLabels(this.state.list) }, "Sorted.");
  }

  /** @param {{prefix?: string, suffix?: string, templates?: string[]}} changes */
  setPrompt(changes) {
    const list = withPrompt(this.state.list, changes);
    if (!sameContent(list, this.state.list)) {
      this.change({ ...this.state, list }, "The prompt is changed.");
    }
  }

  // ---- Showing

  /**
   * Say something below the labels, to everybody.
   * @param {string} text
   * @param {(() => void) | null} [undo]
   */
  tell(text, undo = null) {
    fill(this.message, text);
    this.undo = undo;
    this.undoButton.hidden = undo === null;
  }

  undoLast() {
    const { undo } = this;
    if (undo !== null) void this.attempt(undo); // another tab may have changed the lists
    this.labels.focus();
  }

  /**
   * Do something that may be refused, and say why.
   * @param {() => unknown} action
   */
  async attempt(action) {
    try {
      await action();
    } catch (error) {
      this.tell(explained(error));
    }
  }

  render() {
    const { set } = this.state;
    this.listParts.hidden = set !== null;
    this.about.hidden = set === null;
    fill(this.about, set === null ? null : describeSet(set.set));
    this.menu.render();
    this.prompt.render();
    this.labels.render();
  }
}
