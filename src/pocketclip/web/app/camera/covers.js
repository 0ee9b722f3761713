// What stands at the place of the picture while there is none.

import { cameraProblem } from "../shared/capabilities.js";

/** @import { Stage, CoverButton } from "./stage.js" */
/** @import { Starter } from "../models/starter.js" */
/** @import { Problem } from "./problems.js" */

/**
 * @typedef {object} Actions
 * @property {() => void} start the model, if it does not run, and the camera
 * @property {() => void} goOn after a pause
 * @property {() => void} retry
 * @property {() => void} menu choose what is looked at
 * @property {() => void} photo choose a file
 * @property {() => void} snapshot take a photograph with the device's own camera
 */

/**
 * Cover the place of the picture, or leave it free.
 * @param {Stage} stage
 * @param {Starter} starter
 * @param {Problem | null} problem of the source
 * @param {Actions} actions
 */
export function drawCover(stage, starter, problem, actions) {
  const { state, source } = stage.picture;
  if (state === "starting") {
    if (source !== null && source.kind !== "camera") return stage.hideCover();
    const text = "The browser may ask whether it is allowed.";
    stage.showCover({ title: "Starting", text, busy: true, buttons: photoButtons(actions, false) });
  } else if (state === "paused" && source?.kind === "camera") {
    const buttons = [{ text: "Continue", run: actions.goOn, primary: true }];
    stage.showCover({ title: "Paused", text: "The camera is off.", buttons });
  } else if (state === "problem" && problem !== null) {
    const again = { text: "Try again", run: actions.retry, primary: true };
    const buttons = problem.retry
      ? [again, ...photoButtons(actions, false)]
      : photoButtons(actions, true);
    stage.showCover({ title: problem.title, text: problem.advice, buttons });
  } else if (state === "empty") {
    drawStart(stage, starter, actions);
  } else {
    stage.hideCover();
  }
}

/**
 * @param {Stage} stage
 * @param {Starter} starter
 * @param {Actions} actions
 */
function drawStart(stage, starter, actions) {
  if (starter.state === "none") {
    if (starter.facts === null && starter.lack === "") return stage.hideCover();
    stage.showCover({ title: "There is no model here", text: starter.lack });
    return;
  }
  const asks = starter.state === "asks" ? starter.facts : null;
  const text =
    starter.choice?.kind === "server"
      ? `${starter.lack} The server's model is used: pictures are sent to it.`.trim()
      : "It runs on this device: no picture leaves it.";
  const why = cameraProblem();
  if (why !== null) {
    const buttons = photoButtons(actions, true);
    stage.showCover({ title: "Name what a photograph shows", text: why, buttons });
    return;
  }
  const bytes = asks?.bytes ?? 0;
  const label = asks !== null && bytes > 0 ? asks.label : "Start the camera";
  const buttons = [
    { text: label, run: actions.start, primary: true },
    { text: "Photograph, video or screen", run: actions.menu },
  ];
  const more = asks?.details ?? null;
  stage.showCover({ title: "Name what the camera sees", text, buttons, more });
}

/**
 * @param {Actions} actions
 * @param {boolean} first whether this is what people should do
 * @returns {CoverButton[]}
 */
function photoButtons({ photo, snapshot }, first) {
  const choose = { text: "Choose a photograph", run: photo };
  // On desktops `capture` is ignored, and both open the same dialog.
  if (!matchMedia("(pointer: coarse)").matches) return [{ ...choose, primary: first }];
  return [{ text: "Take a photograph", run: snapshot, primary: first }, choose];
}
