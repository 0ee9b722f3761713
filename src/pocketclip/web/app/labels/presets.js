// The presets of labels, from the one file that whoever embeds them reads too.

/** @typedef {import("./label_list.js").LabelList} LabelList */

/**
 * Return the presets.
 * @returns {Promise<LabelList[]>}
 */
export async function loadPresets() {
  const answer = await fetch(new URL("presets.json", import.meta.url));
  if (!answer.ok) throw new Error(`The presets cannot be read (${answer.status}).`);
  return (await answer.json()).presets;
}
