// The classify page: many images, and the labels that fit them.

import { mountEditor } from "../labels/editor.js";
import { textTowerDownload } from "../models/consent.js";
import { Namer } from "../models/namer.js";
import { Starter } from "../models/starter.js";
import { byId, fill, h } from "../shared/dom.js";
import { startShell } from "../shared/shell.js";
import { collectDrop, collectFiles } from "./collect.js";
import { Page } from "./page.js";

const { info } = await startShell();

const namer = new Namer(
  {
    onChange: (isOther) => {
      drawHint();
      page.setReady(namer.state !== "working");
      if (isOther) void page.scoreAll();
    },
    ...textTowerDownload,
    onCut: (prompts) => editor.setCut(prompts),
  },
  info,
);
const page = new Page({
  score: (embedding) => namer.name(embedding),
  labels: () => {
    const { choice } = editor;
    return choice.kind === "set" ? choice.set.labels : choice.list.labels;
  },
  onError: (error) => starter.fail(error),
  onItems: () => drawModelCard(),
});
const starter = new Starter(info, {
  onState: () => {
    drawModelCard();
    if (starter.choice !== null) editor.setModel(starter.choice.model);
  },
  onEncoder: (encoder) => {
    if (encoder !== null) namer.setModel(encoder.model);
    page.setEncoder(encoder, encoder === null ? "" : embeddingFormOf(encoder));
  },
});
const editor = await mountEditor(byId("labels"), {
  page: "classify",
  onChange: (choice) => {
    page.setReady(false); // until the results are of these labels
    namer.setChoice(choice);
  },
});

/**
 * Return what tells embeddings of one form of a model from those of another.
 * @param {import("../models/starter.js").Encoder} encoder
 */
function embeddingFormOf(encoder) {
  const variant = encoder.runtime === "server" ? "" : encoder.variant.variant;
  return JSON.stringify([encoder.model.space_id, encoder.runtime, variant]);
}

/** Ask for the start of the model. */
function drawModelCard() {
  const card = byId("model-card");
  const { facts } = starter;
  card.hidden = starter.state !== "asks" || facts === null;
  if (card.hidden || facts === null) return fill(card);
  // One primary button: images first, then the model that reads them.
  const isNext = page.items.length > 0;
  byId("pick").classList.toggle("primary", !isNext);
  fill(
    card,
    facts.details,
    h(
      "button",
      {
        type: "button",
        class: isNext ? "primary" : "",
        onclick: () => {
          byId("pick").classList.add("primary");
          void starter.start();
        },
      },
      facts.label,
    ),
  );
}

/** Say why images have no labels. */
function drawHint() {
  const again = (/** @type {string} */ text) =>
    h("button", { type: "button", class: "plain", onclick: () => namer.retry() }, text);
  const hints = {
    empty: ["There are no labels: add some, and every image gets the one that fits best."],
    refused: [namer.message, " ", again("Download it")],
    problem: [namer.message, " ", again("Try again")],
    working: [`The labels are being prepared${namer.message && `: ${namer.message}`}.`],
    idle: [],
    ready: [],
  };
  const shown = hints[namer.state];
  byId("hint").hidden = shown.length === 0;
  fill(byId("hint"), ...shown);
}

/** @param {string} id */
function picker(id) {
  const input = /** @type {HTMLInputElement} */ (byId(id));
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])];
    input.value = "";
    page.add(collectFiles(files));
  });
  return input;
}

for (const [button, title] of [
  ["to-labels", "labels-title"],
  ["to-results", "results-title"],
]) {
  byId(String(button)).addEventListener("click", () => {
    byId(String(title)).scrollIntoView();
    byId(String(title)).focus({ preventScroll: true });
  });
}

const files = picker("file-input");
const folder = picker("folder-input");
byId("pick").addEventListener("click", () => files.click());
byId("pick-folder").addEventListener("click", () => folder.click());
byId("pick-folder").hidden = !("webkitdirectory" in folder);

document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  byId("drop").classList.add("drop-target");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) byId("drop").classList.remove("drop-target");
});
document.addEventListener("drop", (event) => {
  byId("drop").classList.remove("drop-target");
  if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  collectDrop(event.dataTransfer).then(
    (collection) => page.add(collection),
    (error) => page.tell(`The folder could not be read: ${error.message}`),
  );
});
document.addEventListener("paste", (event) => {
  const pasted = event.clipboardData?.files ?? [];
  if (event.defaultPrevented || pasted.length === 0) return;
  event.preventDefault();
  page.add(collectFiles(pasted));
});

page.draw();
await starter.begin();
