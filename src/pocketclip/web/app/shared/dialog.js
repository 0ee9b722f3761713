// A dialog that asks for one answer.

import { h } from "./dom.js";
import { messageOf } from "./errors.js";

/**
 * @typedef {object} DialogButton
 * @property {string} text
 * @property {string} [value] what the dialog answers; without one it stays open
 * @property {string} [class]
 * @property {(event: Event) => unknown} [onclick]
 */

let count = 0;

/**
 * Show a dialog, and return the value of the button that closed it; null after Escape.
 *
 * Enter in a field presses the first button of class `primary`.
 * @param {string} title
 * @param {(Node | string | null | false)[]} content
 * @param {DialogButton[]} buttons
 * @param {(value: string) => boolean} [accept] false: the dialog stays open
 * @returns {Promise<string | null>}
 */
export function openDialog(title, content, buttons, accept = () => true) {
  const id = `dialog-title-${++count}`;
  return new Promise((resolve) => {
    /** @type {string | null} */
    let answer = null;
    /** @param {DialogButton} one */
    const button = (one) => {
      const isPrimary = one.class === "primary";
      /** @param {Event} event */
      const onclick = (event) => {
        one.onclick?.(event);
        if (one.value === undefined || isPrimary) return; // a primary one submits
        answer = one.value;
        dialog.close();
      };
      return h(
        "button",
        { type: isPrimary ? "submit" : "button", class: one.class, onclick },
        one.text,
      );
    };
    /** @param {SubmitEvent} event */
    const onsubmit = (event) => {
      event.preventDefault();
      const value = buttons.find((one) => one.class === "primary")?.value;
      if (value === undefined || !accept(value)) return;
      answer = value;
      dialog.close();
    };
    const dialog = h(
      "dialog",
      {
        "aria-labelledby": id,
        onclose: () => {
          dialog.remove();
          resolve(answer);
        },
      },
      h(
        "form",
        { onsubmit },
        h("h2", { id }, title),
        ...content,
        h("div", { class: "row dialog-buttons" }, buttons.map(button)),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * Ask for a text, and return what `check` makes of it; null: people gave up.
 * @param {string} title
 * @param {{label: string, value: string, button: string, check: (text: string) => string}} about
 *   `check` returns the text that is used, or throws an Error whose message is shown
 * @returns {Promise<string | null>}
 */
export async function askForText(title, { label, value, button, check }) {
  const id = `dialog-field-${count + 1}`;
  const help = h("p", { class: "help error", role: "alert", id: `${id}-help` });
  const input = h("input", { id, value, autocomplete: "off", "aria-describedby": help.id });
  /** @type {string | null} */
  let result = null;
  const accept = () => {
    try {
      result = check(input.value);
      return true;
    } catch (error) {
      help.textContent = messageOf(error);
      input.setAttribute("aria-invalid", "true");
      input.focus();
      return false;
    }
  };
  const field = h("div", { class: "field" }, h("label", { for: id }, label), input, help);
  const buttons = [
    { text: button, value: "yes", class: "primary" },
    { text: "Cancel", value: "no" },
  ];
  const answered = openDialog(title, [field], buttons, accept);
  input.select();
  return (await answered) === "yes" ? result : null;
}
