// What people read of a model before they start it: size, form and licence.

import { config, siteUrl } from "../shared/config.js";
import { formatBytes, h } from "../shared/dom.js";
import { formOf, licenceSentence, partsOf, startBytes } from "./model_facts.js";

/** @import { Choice } from "./choice.js" */
/** @import { Licence } from "../inference/models.js" */

/**
 * What people read before they start.
 * @typedef {object} StartFacts
 * @property {number} bytes that will travel; 0: it is on the device
 * @property {string} label of the button
 * @property {HTMLElement} details model, form, licence
 */

/**
 * Return what people have to know before the first download; nothing is downloaded for it.
 * @param {Choice} choice
 * @returns {Promise<StartFacts>}
 */
export async function startFacts(choice) {
  const { model } = choice;
  if (choice.kind === "server") {
    const text = `${model.name}, run by this server: pictures are sent to it. `;
    const details = h("p", { class: "start-facts" }, text, ...licenceWords(model.licence));
    return { bytes: 0, label: "Start", details };
  }
  const parts = partsOf(model, choice.runtime, config.vendor);
  const bytes = parts === null ? 0 : await startBytes(parts);
  const label = bytes > 0 ? `Start: download ${formatBytes(bytes)}` : "Start";
  const form = parts === null ? "" : `, ${formOf(parts.variant, choice.runtime)}`;
  const details = h(
    "p",
    { class: "start-facts" },
    `${model.name}${form}. `,
    ...licenceWords(model.licence),
  );
  return { bytes, label, details };
}

/**
 * Return what people have to know of a licence before they start.
 * @param {Licence} licence
 */
export function licenceWords(licence) {
  const isLimited = licence.restricted || licence.name === null;
  return ["Licence: ", ...licenceLinks(licence), ". ", isLimited && licenceSentence(licence)];
}

/**
 * Return the name of a licence, as a link, and a link to its text.
 * @param {Licence} licence
 * @returns {(Node | string)[]}
 */
export function licenceLinks({ name, url, text }) {
  const outside = { target: "_blank", rel: "noreferrer" };
  const known = name ?? "not known";
  const page = url !== null && /^https?:\/\//.test(url) ? url : null;
  const own = text === null ? null : siteUrl(text);
  const first = page ?? own;
  /** @type {(Node | string)[]} */
  const links = [first === null ? known : h("a", { href: first, ...outside }, known)];
  if (page !== null && own !== null)
    links.push(" (", h("a", { href: own, ...outside }, "text"), ")");
  return links;
}
