// The prompt around the labels: a line that shows it, and fields that change it.

import { countOf, fill, h } from "../shared/dom.js";
import { LIMITS, LabelError, splitTemplate } from "./label_list.js";

/** @typedef {import("./editor.js").Editor} Editor */

export class PromptView {
  /** @param {Editor} editor */
  constructor(editor) {
    this.editor = editor;
    const { id } = editor;
    this.button = h("button", {
      type: "button",
      class: "prompt",
      "aria-expanded": "false",
      "aria-controls": `${id}-prompt`,
      onclick: () => this.toggle(),
    });
    this.prefix = this.field("prefix", "No prefix");
    this.suffix = this.field("suffix", "No suffix");
    this.templates = h("textarea", {
      id: `${id}-templates`,
      rows: 4,
      autocapitalize: "none",
      spellcheck: "false",
      placeholder: "a photo of a {}.\na drawing of a {}.",
      "aria-describedby": `${id}-templates-help`,
      onchange: () =>
        this.apply({
          templates: this.templates.value.split(/\r\n|[\r\n]/).filter((one) => one.trim() !== ""),
        }),
    });
    this.error = h("p", { class: "error", role: "alert" });
    this.fields = h(
      "div",
      { id: `${id}-prompt`, class: "panel prompt-fields", hidden: true },
      h(
        "div",
        { class: "prompt-pair" },
        labelled(
          "Before the label",
          this.prefix,
          "The beginning of the text that the model reads.",
        ),
        labelled("After the label", this.suffix, "Its end. Both may be empty."),
      ),
      h(
        "details",
        {},
        h("summary", {}, "Several templates"),
        h("label", { for: `${id}-templates` }, "One template a line"),
        this.templates,
        h(
          "p",
          { class: "help", id: `${id}-templates-help` },
          "Write {} where the label belongs. The model reads all of them, and the mean counts. They stand in place of what is before and after the label.",
        ),
      ),
      this.error,
      h("button", { type: "button", onclick: () => this.toggle() }, "Done"),
    );
    this.element = h("div", {}, this.button, this.fields);
  }

  /**
   * @param {"prefix" | "suffix"} name
   * @param {string} placeholder
   */
  field(name, placeholder) {
    const input = h("input", {
      id: `${this.editor.id}-${name}`,
      placeholder,
      maxlength: LIMITS.affix,
      autocapitalize: "none",
      autocomplete: "off",
      enterkeyhint: "done",
      oninput: () => this.show({ [name]: input.value }),
      onchange: () => this.apply({ [name]: input.value }),
    });
    return input;
  }

  toggle() {
    this.fields.hidden = !this.fields.hidden;
    this.button.setAttribute("aria-expanded", String(!this.fields.hidden));
    if (this.fields.hidden) this.button.focus();
    else this.prefix.focus();
  }

  /** @param {{prefix?: string, suffix?: string, templates?: string[]}} changes */
  apply(changes) {
    try {
      fill(this.error);
      this.editor.setPrompt(changes);
    } catch (error) {
      if (!(error instanceof LabelError)) throw error;
      fill(this.error, error.message);
    }
  }

  render() {
    const { prefix, suffix, templates } = this.editor.state.list;
    this.prefix.value = prefix;
    this.suffix.value = suffix;
    this.templates.value = templates.join("\n");
    fill(this.error);
    this.show({});
  }

  /**
   * Show the prompt, with what is typed now.
   * @param {{prefix?: string, suffix?: string}} typed
   */
  show(typed) {
    const list = { ...this.editor.state.list, ...typed };
    const [before, ...after] = splitTemplate(list.templates[0] ?? "");
    const slot = h("u", {}, "label");
    const parts =
      list.templates.length > 0
        ? [before, slot, after.join("label")]
        : [list.prefix && `${list.prefix} `, slot, list.suffix && ` ${list.suffix}`];
    const more = list.templates.length - 1;
    fill(
      this.button,
      h("span", { class: "prompt-name" }, "Prompt"),
      h("span", { class: "prompt-text" }, h("bdi", {}, ...parts)),
      more > 0 && h("span", { class: "dim" }, `and ${countOf(more, "more template")}`),
      h("span", { class: "prompt-edit", "aria-hidden": "true" }, "✎"),
      h("span", { class: "visually-hidden" }, "Edit"),
    );
  }
}

/**
 * @param {string} text
 * @param {HTMLElement} input
 * @param {string} help
 */
function labelled(text, input, help) {
  const id = `${input.id}-help`;
  input.setAttribute("aria-describedby", id);
  return h(
    "div",
    { class: "field" },
    h("label", { for: input.id }, text),
    input,
    h("p", { class: "help", id }, help),
  );
}
