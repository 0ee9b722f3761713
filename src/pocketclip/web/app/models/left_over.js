// Files on the device that the site does not list any more: of models that were replaced.

import { config } from "../shared/config.js";
import { listKept } from "../inference/files.js";
import { filesOf } from "../inference/models.js";

/**
 * Return the files that nothing of the site names.
 * @param {readonly import("../inference/models.js").Model[]} models all of the site
 */
export async function listLeftOver(models) {
  const named = models.flatMap((model) => [
    ...filesOf(model),
    ...(model.presets ? [model.presets] : []),
    ...(model.label_sets ?? []).map((one) => one.file),
  ]);
  const runtimes = Object.values(config.vendor?.files ?? {});
  return (await listKept([...named, ...runtimes])).others;
}
