// The start page: where to go, and what the server has.

import { missing } from "../shared/capabilities.js";
import { byId, countOf, fill, h } from "../shared/dom.js";
import { offlineState } from "../shared/offline.js";
import { startShell } from "../shared/shell.js";

void showDevice();
const { info } = await startShell({ needsServer: true });
if (info !== null) showFacts(info);

/** Say what this browser lacks, and whether the pages open without a network. */
async function showDevice() {
  const sentences = missing()
    .filter((one) => one.name !== "serviceWorker")
    .map((one) => one.sentence);
  const { sentence } = await offlineState();
  fill(
    byId("device"),
    [...sentences, sentence].map((text) => h("li", {}, text)),
  );
}

/** @param {any} info */
function showFacts(info) {
  const { license, library } = info;
  const facts = [
    ["Model", info.model],
    ["Licence of the weights", license.name ?? "not known: ask whoever made the model"],
    [
      "Library",
      library === null ? "none" : `${library.name}, ${countOf(library.photos, "photograph")}`,
    ],
    ["Label sets", info.label_sets.map((/** @type {any} */ one) => one.name).join(", ") || "none"],
    ["Protocols", info.protocols.join(", ")],
    ["Embedding space", info.space_id],
    ["Version", info.version],
  ];
  const license_link =
    license.url !== null && /^https?:\/\//.test(license.url)
      ? h("a", { href: license.url, rel: "noreferrer" }, license.name ?? "its page")
      : null;
  fill(
    byId("facts"),
    facts.flatMap(([name, value]) => [
      h("dt", {}, name),
      h("dd", {}, name?.startsWith("Licence") && license_link ? license_link : value),
    ]),
  );
}
