// The camera page: names what a camera, a photograph, a video or a screen shows.

import { mountEditor } from "../labels/editor.js";
import { Steady } from "../inference/zero_shot.js";
import { textTowerDownload } from "../models/consent.js";
import { Namer } from "../models/namer.js";
import { isOfPicture, pictureMessage } from "../models/picture_error.js";
import { Starter } from "../models/starter.js";
import { writeCsv } from "../shared/csv.js";
import { byId, fill, h } from "../shared/dom.js";
import { messageOf } from "../shared/errors.js";
import { saveFile } from "../shared/files.js";
import { say, startShell } from "../shared/shell.js";
import { load, save } from "../shared/storage.js";
import { SeekSlider, ZoomSlider, listenToKeys, press, showDialog } from "./controls.js";
import { drawCover } from "./covers.js";
import { Figures } from "./figures.js";
import { Picture } from "./picture.js";
import { ResultsView } from "./results_view.js";
import { tableOf } from "./rows.js";
import { CameraSource, isAllowed, listCameras } from "./sources/camera.js";
import { takeDrops } from "./sources/drops.js";
import { SourceMenu } from "./sources/menu.js";
import { PhotoSource } from "./sources/photo_file.js";
import { ScreenSource } from "./sources/screen.js";
import { VideoFileSource } from "./sources/video_file.js";
import { Stage } from "./stage.js";
import { keepAwake } from "./wake_lock.js";

/** @import { Wanted } from "./sources/camera.js" */

const { info } = await startShell();

/** @type {{embedding: Float32Array, final: boolean} | null} what was encoded last */
let last = null;
/** @type {import("./sources/moving.js").Source | null} what `last` is of, or will be */
let shown = null;
let hasNone = false; // the picture that is shown cannot be encoded
const steady = new Steady();
const results = new ResultsView();
const canvas = /** @type {HTMLCanvasElement} */ (byId("frozen"));
const picture = new Picture(canvas, new Figures(), {
  onState: () => drawPicture(),
  onEmbedding: (embedding, final) => {
    starter.drawNotes();
    last = { embedding: final ? embedding : steady.next(embedding, performance.now()), final };
    drawResults();
  },
  onError: (error) => {
    if (!isOfPicture(error)) return starter.fail(error);
    say(pictureMessage(error));
    hasNone = true;
    drawResults();
  },
});
const stage = new Stage(picture);
const zoom = new ZoomSlider();
const seek = new SeekSlider();
const namer = new Namer(
  {
    onChange: () => {
      // Not at every frame: its button must stay while people press it.
      fill(byId("results-note"), ...labelsNote());
      drawResults();
    },
    ...textTowerDownload,
    onCut: (prompts) => editor.setCut(prompts),
  },
  info,
);
const starter = new Starter(info, {
  onState: () => drawPicture(),
  onModel: (model) => {
    editor.setModel(model);
    namer.setModel(model);
  },
  onEncoder: (encoder) => {
    last = null;
    steady.reset(); // embeddings of two models have no mean
    picture.setEncoder(encoder);
  },
});
const menu = new SourceMenu({
  onCamera: (deviceId) => void useCamera({ ...wanted(), deviceId }),
  onFile: (file) => void useFile(file),
  onScreen: () => void picture.open(() => ScreenSource.open((problem) => picture.lost(problem))),
});
const editor = await mountEditor(byId("labels"), {
  page: "camera",
  onChange: (choice) => namer.setChoice(choice),
});

/** Which camera people used last. */
function wanted() {
  return load("camera.wanted", /** @type {Wanted} */ ({ deviceId: null, facing: "environment" }));
}

/** @param {Wanted} which */
async function useCamera(which) {
  save("camera.wanted", which);
  stage.resetMirror();
  steady.reset();
  await picture.open(() => CameraSource.open(which, (problem) => picture.lost(problem)));
}

/** @param {File} file */
async function useFile(file) {
  say("");
  if (file.type.startsWith("video/")) {
    await picture.open(() => VideoFileSource.open(file));
    return;
  }
  try {
    await picture.open(() => PhotoSource.open(file), { keep: true });
  } catch (error) {
    say(messageOf(error));
  }
}

/** Use the other camera: the one that faces the other way, or the next one. */
async function flip() {
  const { source } = picture;
  if (!(source instanceof CameraSource)) return;
  const { facing, deviceId } = source;
  if (facing !== null) {
    await useCamera({ deviceId: null, facing: facing === "user" ? "environment" : "user" });
    return;
  }
  const cameras = await listCameras();
  const at = cameras.findIndex((one) => one.deviceId === deviceId);
  const next = cameras[(at + 1) % cameras.length];
  if (next !== undefined) await useCamera({ deviceId: next.deviceId, facing: "environment" });
}

async function toggleTorch() {
  const { source } = picture;
  if (!(source instanceof CameraSource) || !source.hasTorch) return;
  if (!(await source.setTorch(!source.torch))) say("The lamp cannot be switched now.");
  drawPicture();
}

function drawPicture() {
  const { state, source, video } = picture;
  const camera = source instanceof CameraSource ? source : null;
  stage.draw();
  zoom.show(state === "live" ? camera : null);
  seek.show(source?.kind === "video" ? video : null);
  byId("torch-button").hidden = camera === null || !camera.hasTorch;
  press(byId("torch-button"), camera?.torch ?? false);
  void listCameras().then((cameras) => {
    byId("flip-button").hidden = !(picture.source instanceof CameraSource) || cameras.length < 2;
  });
  keepAwake(state === "live");
  const isSeen = /^(live|frozen|still|ended)$/.test(state);
  if (!isSeen || source !== shown) {
    last = null; // No picture stands beside the result of another one.
    steady.reset();
  }
  if (source !== shown) hasNone = false;
  shown = source;
  drawCover(stage, starter, picture.problem, {
    start: () => {
      void starter.start();
      void useCamera(wanted());
    },
    goOn: () => void picture.togglePause(),
    retry: () => void picture.retry(),
    menu: () => byId("source-button").click(),
    photo: () => menu.pick("photo"),
    snapshot: () => menu.pick("snapshot"),
  });
  drawModelCard();
  drawResults();
}

/** Ask for the start of the model where a picture is there before it. */
function drawModelCard() {
  const card = byId("model-card");
  const { facts } = starter;
  card.hidden = picture.state === "empty" || starter.state !== "asks" || facts === null;
  if (card.hidden || facts === null) return fill(card);
  const start = () => void starter.start();
  fill(
    card,
    facts.details,
    h("button", { type: "button", class: "primary", onclick: start }, facts.label),
  );
}

function drawResults() {
  const scored = last === null ? null : namer.name(last.embedding);
  if (scored !== null && last !== null) results.show(scored, { final: last.final });
  else results.clear(hint());
}

/**
 * Return what is to be said of the labels, above the results.
 * @returns {(string | Node)[]}
 */
function labelsNote() {
  const again = (/** @type {string} */ text) =>
    h("button", { type: "button", class: "plain", onclick: () => namer.retry() }, text);
  if (namer.state === "refused") return [namer.message, " ", again("Download it")];
  if (namer.state === "problem") return [namer.message, " ", again("Try again")];
  if (namer.state === "working" && namer.message !== "") {
    return [`The labels are being prepared: ${namer.message}.`];
  }
  return [];
}

/** Return what stands in place of results. */
function hint() {
  if (namer.state === "empty") return "Add labels below: they are listed here, the best first.";
  if (starter.state === "loading") return "The model is loading.";
  if (picture.source === null || starter.state !== "ready") {
    return "What fits the picture is listed here, the best first.";
  }
  if (namer.state === "working") return "The labels are being prepared.";
  if (hasNone) return "There is no result for this picture: choose another one.";
  return "The first picture is on its way.";
}

byId("source-button").addEventListener("click", () => {
  const { source } = picture;
  void menu.open(source instanceof CameraSource ? source.deviceId : null);
});
byId("results-save").addEventListener("click", () => {
  saveFile("results.csv", writeCsv(tableOf(results.rows)), "text/csv");
});
const help = /** @type {HTMLDialogElement} */ (byId("help-dialog"));
/** @type {[string, () => void][]} */
const buttons = [
  ["mirror-button", () => stage.toggleMirror()],
  ["freeze-button", () => void picture.toggleFreeze()],
  ["pause-button", () => void picture.togglePause()],
  ["torch-button", () => void toggleTorch()],
  ["flip-button", () => void flip()],
  ["help-button", () => void showDialog(help)],
];
for (const [id, run] of buttons) byId(id).addEventListener("click", run);
listenToKeys([
  {
    key: " ",
    shown: "Space",
    does: "Freeze this frame, or go on",
    run: () => void picture.toggleFreeze(),
  },
  { key: "p", shown: "P", does: "Pause, or go on", run: () => void picture.togglePause() },
  { key: "f", shown: "F", does: "Other camera", run: () => void flip() },
  { key: "m", shown: "M", does: "Mirror the picture", run: () => stage.toggleMirror() },
  { key: "t", shown: "T", does: "Lamp", run: () => void toggleTorch() },
  { key: "+", shown: "+", does: "Zoom in", run: () => zoom.move(1) },
  { key: "-", shown: "−", does: "Zoom out", run: () => zoom.move(-1) },
  { key: "o", shown: "O", does: "Open a photograph", run: () => menu.pick("photo") },
  {
    key: "s",
    shown: "S",
    does: "Choose what is looked at",
    run: () => byId("source-button").click(),
  },
  { key: "?", shown: "?", does: "This list", run: () => void showDialog(help) },
]);
takeDrops((file) => void useFile(file));

await starter.begin();
const starts = starter.state === "loading" || starter.state === "ready";
if (starts && (await isAllowed()) && picture.state === "empty") await useCamera(wanted());
