// The labels of a list as chips, and the field that adds more.

import { countOf, fill, h } from "../shared/dom.js";
import { LabelError } from "./label_list.js";

/** @typedef {import("./editor.js").Editor} Editor */

export class LabelsView {
  /** @param {Editor} editor */
  constructor(editor) {
    this.editor = editor;
    const { id } = editor;
    this.count = h("h3", { class: "labels-count", id: `${id}-count` });
    this.sort = h(
      "button",
      { type: "button", class: "plain", onclick: () => editor.sort() },
      "Sort A–Z",
    );
    this.chips = h("ul", {
      class: "chips label-chips",
      role: "list",
      "aria-labelledby": `${id}-count`,
    });
    this.empty = h(
      "p",
      { class: "dim small" },
      "No labels yet: write one, or paste several lines.",
    );
    this.input = h("input", {
      id: `${id}-add`,
      placeholder: "Add a label",
      autocapitalize: "none",
      autocomplete: "off",
      enterkeyhint: "done",
      onpaste: (/** @type {ClipboardEvent} */ event) => this.paste(event),
      oninput: () => this.input.removeAttribute("aria-invalid"),
    });
    this.element = h(
      "div",
      {},
      h(
        "form",
        { class: "row label-add", onsubmit: (/** @type {Event} */ event) => this.submit(event) },
        h("label", { class: "visually-hidden", for: `${id}-add` }, "Add a label"),
        h("div", { class: "grow" }, this.input),
        h("button", {}, "Add"),
      ),
      h("div", { class: "labels-head" }, this.count, this.sort),
      this.empty,
      this.chips,
    );
  }

  focus() {
    this.input.focus();
  }

  /** @param {Event} event */
  submit(event) {
    event.preventDefault();
    const refused = this.editor.add([this.input.value]);
    if (refused.length > 0) this.input.setAttribute("aria-invalid", "true");
    else this.input.value = "";
    this.input.focus();
  }

  /**
   * Several lines are several labels; what is refused stays in the field only where it is one.
   * @param {ClipboardEvent} event
   */
  paste(event) {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    const lines = text.split(/\r\n|[\r\n\u2028\u2029]/).filter((line) => line.trim() !== "");
    if (lines.length < 2) return;
    event.preventDefault();
    this.editor.add(lines);
  }

  render() {
    const { labels } = this.editor.state.list;
    fill(this.count, countOf(labels.length, "label"));
    this.sort.hidden = labels.length < 2;
    this.empty.hidden = labels.length > 0;
    fill(this.chips, ...labels.map((label, position) => this.chip(label, position)));
  }

  /**
   * @param {string} label
   * @param {number} position
   */
  chip(label, position) {
    const remove = () => {
      this.editor.remove(label);
      this.focusChip(position);
    };
    const name = h(
      "button",
      {
        type: "button",
        class: "chip-name",
        "aria-label": `${label}, rename`,
        onclick: () => this.edit(label, position),
      },
      h("bdi", {}, label),
    );
    return h(
      "li",
      {
        class: "chip",
        onkeydown: (/** @type {KeyboardEvent} */ event) => {
          if (event.key !== "Delete" || event.target instanceof HTMLInputElement) return;
          event.preventDefault();
          remove();
        },
      },
      name,
      h(
        "button",
        {
          type: "button",
          class: "chip-remove",
          "aria-label": `Remove ${label}`,
          onclick: remove,
        },
        "×",
      ),
    );
  }

  /**
   * After a removal, go on at the label that has its place.
   * @param {number} position
   * @param {string} [part]
   */
  focusChip(position, part = ".chip-remove") {
    const chip = this.chips.children[Math.min(position, this.chips.children.length - 1)];
    const button = chip?.querySelector(part);
    if (button instanceof HTMLElement) button.focus();
    else this.focus();
  }

  /**
   * Put a field in place of a chip.
   * @param {string} label
   * @param {number} position
   */
  edit(label, position) {
    const chip = this.chips.children[position];
    if (chip === undefined) return;
    let ended = false;
    /** @param {boolean} isKept */
    const end = (isKept) => {
      if (ended) return;
      try {
        if (isKept) this.editor.rename(label, input.value);
      } catch (error) {
        if (!(error instanceof LabelError)) throw error;
        this.editor.tell(error.message);
        input.setAttribute("aria-invalid", "true");
        return;
      }
      ended = true;
      const hasFocus = chip.contains(document.activeElement);
      this.render();
      if (hasFocus) this.focusChip(position, ".chip-name");
    };
    const input = h("input", {
      value: label,
      "aria-label": `Another text for ${label}`,
      autocapitalize: "none",
      autocomplete: "off",
      enterkeyhint: "done",
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Enter") end(true);
        else if (event.key === "Escape") end(false);
        else return;
        event.preventDefault();
        event.stopPropagation();
      },
      onblur: () => {
        end(true);
        if (!ended) end(false); // refused: it stays as it was, and the message says why
      },
    });
    fill(chip, input);
    input.focus();
    input.select();
  }
}
