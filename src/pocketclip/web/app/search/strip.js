// A row of small photographs, which are opened by a click.

import { siteUrl } from "../shared/config.js";
import { h } from "../shared/dom.js";

/**
 * Return one photograph of a row, and what stands below it.
 * @param {number} id
 * @param {{name: string, title?: string, onclick: () => void}} options
 * @param {...Node} below
 */
export function stripItem(id, { name, title = name, onclick }, ...below) {
  const picture = h("img", { src: siteUrl(`thumbnails/${id}`), alt: name, loading: "lazy" });
  const button = h("button", { type: "button", class: "photo loaded", title, onclick }, picture);
  return h("li", {}, button, ...below);
}
