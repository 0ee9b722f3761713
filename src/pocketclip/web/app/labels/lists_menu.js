// The lists to choose from, and what can be done with a whole list.

import { countOf, fill, h } from "../shared/dom.js";
import { askForText } from "../shared/dialog.js";
import { fileStem, saveFile } from "../shared/files.js";
import { LabelError, keyOf, quoted } from "./label_list.js";
import { MAX_SET_FILE, isLabelSet, parseLabelSet } from "./label_set.js";
import { MAX_FILE, decodeText, readLists, writeLists } from "./list_file.js";
import {
  distinctName,
  forgetAll,
  forgetList,
  freeName,
  keepList,
  keepLists,
  ownLists,
  renameList,
} from "./list_store.js";
import { explained } from "./label_texts.js";
import { showLink } from "./link_dialog.js";

/** @typedef {import("./editor.js").Editor} Editor */
/** @typedef {import("./label_list.js").LabelList} LabelList */

const JSON_TYPE = "application/json";

export class ListsMenu {
  /** @param {Editor} editor */
  constructor(editor) {
    this.editor = editor;
    this.lists = h("div", { class: "label-lists", role: "group", "aria-label": "Lists of labels" });
    this.changed = h("div", { class: "row labels-changed" });
    this.picker = h("input", {
      type: "file",
      hidden: true,
      multiple: true,
      accept: ".json,.txt,.csv,.tsv,text/plain,text/csv,application/json",
      "aria-label": "Files with labels",
      onchange: async () => {
        const files = [...(this.picker.files ?? [])];
        this.picker.value = "";
        await this.import(files);
      },
    });
    this.more = h("div", { class: "row" });
    this.share = button("Share…", () => this.shareLink());
    this.tools = h(
      "div",
      { class: "labels-tools" },
      this.picker,
      h("details", {}, h("summary", {}, "Share, import and more"), this.more),
    );
  }

  render() {
    this.renderLists();
    this.renderChanged();
    this.renderMore();
  }

  renderLists() {
    const { editor } = this;
    const { state } = editor;
    const own = ownLists();
    const isChosen = (/** @type {string} */ name) =>
      state.set === null && state.base !== null && keyOf(state.base) === keyOf(name);
    fill(
      this.lists,
      ...[...editor.presets, ...own].map((list) =>
        choiceButton(list.name, isChosen(list.name), () => editor.use(list, list.name)),
      ),
      ...(state.set === null && editor.stored === null
        ? [choiceButton(state.list.name, true, () => {})]
        : []),
      ...editor.offers.all.map((offered) =>
        choiceButton(
          offered.name,
          state.set?.name === offered.name,
          () => void editor.offers.use(offered),
          "fitted",
        ),
      ),
      ...(state.set !== null && !editor.offers.all.some((one) => one.name === state.set?.name)
        ? [choiceButton(state.set.name, true, () => {}, "fitted")]
        : []),
    );
  }

  renderChanged() {
    const { editor } = this;
    const { list, base, set } = editor.state;
    const isOwn = base !== null && !editor.reserved.includes(base);
    this.changed.hidden = set !== null || !editor.isChanged;
    fill(
      this.changed,
      h("span", { class: "grow dim small" }, base === null ? "Not kept yet" : "Changed"),
      isOwn && button("Save", () => this.keep(list, `Saved ${quoted(list.name)}.`)),
      button("Save as…", () => this.saveAs()),
      editor.stored !== null && button("Reset", () => this.reset()),
    );
  }

  renderMore() {
    const { editor } = this;
    const { list, base, set } = editor.state;
    const isOwn = set === null && base !== null && !editor.reserved.includes(base);
    const own = ownLists();
    fill(
      this.more,
      set === null && list.labels.length > 0 && this.share,
      button("Import…", () => this.picker.click()),
      set === null && button("Export this list", () => this.export([list], list.name)),
      own.length > 0 &&
        button(`Export ${countOf(own.length, "own list")}`, () => this.export(own, "label lists")),
      set === null && !editor.isChanged && button("Save a copy…", () => this.saveAs()),
      isOwn && button("Rename this list…", () => this.rename()),
      set === null &&
        list.labels.length > 0 &&
        button("Remove all labels", () => editor.removeAll()),
      isOwn && button("Delete this list", () => this.delete(), "danger"),
      own.length > 1 && button("Delete all own lists", () => this.deleteAll(), "danger"),
    );
  }

  reset() {
    const { stored } = this.editor;
    if (stored !== null) {
      this.editor.change(
        { ...this.editor.state, list: stored },
        `${quoted(stored.name)} is as it was.`,
      );
    }
  }

  /**
   * Keep a list under its name, and use it.
   * @param {LabelList} list
   * @param {string} message
   */
  keep(list, message) {
    const { editor } = this;
    const earlier = ownLists().find((one) => keyOf(one.name) === keyOf(list.name));
    void editor.attempt(() => {
      keepList(list);
      editor.change({ list, base: list.name, set: null }, message, {
        undo: () => (earlier === undefined ? forgetList(list.name) : keepList(earlier)),
      });
    });
  }

  async saveAs() {
    const { list } = this.editor.state;
    const name = await askForText("Save this list", {
      label: "Name",
      value: distinctName(list.name, this.editor.reserved),
      button: "Save",
      check: (text) => freeName(text, this.editor.reserved),
    });
    if (name !== null) this.keep({ ...list, name }, `Saved ${quoted(name)}.`);
  }

  async rename() {
    const { editor } = this;
    const { state } = editor;
    if (state.base === null) return;
    const before = state.base;
    const name = await askForText("Rename this list", {
      label: "Name",
      value: before,
      button: "Rename",
      check: (text) => freeName(text, editor.reserved, before),
    });
    if (name === null || name === before) return;
    await editor.attempt(() => {
      renameList(before, name, editor.reserved);
      editor.change(
        { ...state, list: { ...state.list, name }, base: name },
        `${quoted(before)} is ${quoted(name)} now.`,
        { undo: () => renameList(name, before) },
      );
    });
  }

  delete() {
    const { editor } = this;
    const { base } = editor.state;
    const stored = editor.stored;
    const first = editor.presets[0];
    if (base === null || stored === null || first === undefined) return;
    const position = forgetList(base);
    editor.change({ list: first, base: first.name, set: null }, `Deleted ${quoted(base)}.`, {
      undo: () => keepList(stored, position),
    });
  }

  deleteAll() {
    const { editor } = this;
    const own = ownLists();
    const first = editor.presets[0];
    if (first === undefined) return;
    forgetAll();
    const message = `Deleted ${countOf(own.length, "own list")}.`;
    editor.change({ list: first, base: first.name, set: null }, message, {
      undo: () => keepLists(own),
    });
  }

  /**
   * @param {LabelList[]} lists
   * @param {string} name
   */
  export(lists, name) {
    saveFile(`${fileStem(name)}.json`, writeLists(lists), JSON_TYPE);
    this.editor.tell(`Exported ${countOf(lists.length, "list")}.`);
  }

  shareLink() {
    return this.editor.attempt(() => showLink(this.editor.state.list));
  }

  /**
   * Read files with lists or a label set; a file that cannot be read is named.
   * @param {File[]} files
   */
  async import(files) {
    const { editor } = this;
    const wrong = [];
    for (const file of files) {
      try {
        await this.importFile(file);
      } catch (error) {
        wrong.push(explained(error));
      }
    }
    if (wrong.length === 0) return;
    const isAny = wrong.length < files.length;
    const told = isAny ? [editor.message.textContent, ...wrong] : wrong;
    editor.tell(told.join(" "), isAny ? editor.undo : null);
  }

  /** @param {File} file */
  async importFile(file) {
    const { editor } = this;
    const isJson = /\.json$/i.test(file.name);
    if (file.size > (isJson ? MAX_SET_FILE : MAX_FILE)) {
      throw new LabelError(`${quoted(file.name)} is too large for a list of labels.`);
    }
    const text = decodeText(new Uint8Array(await file.arrayBuffer()), file.name);
    if (isLabelSet(text)) {
      editor.useSet(file.name.replace(/\.json$/i, ""), parseLabelSet(text, file.name));
      return;
    }
    if (file.size > MAX_FILE) {
      throw new LabelError(`${quoted(file.name)} is too large for a list of labels.`);
    }
    const { lists, notes } = readLists(text, file.name);
    /** @type {string[]} */
    const names = [];
    const named = lists.map((list) => {
      const name = distinctName(list.name, [...editor.reserved, ...names]);
      names.push(name);
      return { ...list, name };
    });
    const last = named.at(-1);
    if (last === undefined) return;
    keepLists(named);
    const what = names.length === 1 ? quoted(last.name) : countOf(names.length, "list");
    editor.use(last, last.name, [`Imported ${what}.`, ...notes].join(" "), () => {
      for (const name of names) forgetList(name);
    });
  }

  /**
   * Take files that are dropped on an element; images are left to the page.
   * @param {HTMLElement} element
   */
  takeDrops(element) {
    const hasFiles = (/** @type {DragEvent} */ event) =>
      event.dataTransfer?.types.includes("Files") ?? false;
    element.addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    element.addEventListener("drop", (event) => {
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length === 0 || files.some((one) => /^(image|video)\//.test(one.type))) return;
      event.preventDefault();
      event.stopPropagation();
      void this.import(files);
    });
  }
}

/**
 * @param {string} text
 * @param {() => unknown} onclick
 * @param {string} [name] class
 */
function button(text, onclick, name) {
  return h("button", { type: "button", class: name, onclick }, text);
}

/**
 * @param {string} name
 * @param {boolean} isChosen
 * @param {() => void} onclick
 * @param {string} [tag]
 */
function choiceButton(name, isChosen, onclick, tag) {
  return h(
    "button",
    { type: "button", "aria-pressed": String(isChosen), onclick },
    h("bdi", {}, name),
    tag && h("span", { class: "tag" }, tag),
  );
}
