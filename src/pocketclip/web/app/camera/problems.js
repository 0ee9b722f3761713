// Why there is no picture, in one sentence, and what to do.

/**
 * @typedef {object} Problem
 * @property {string} code
 * @property {string} title what is wrong
 * @property {string} advice what to do
 * @property {boolean} retry whether trying again can help
 */

/** An error of a source of pictures, with its words for people. */
export class SourceError extends Error {
  /** @param {Problem} problem */
  constructor(problem) {
    super(`${problem.title} ${problem.advice}`);
    this.name = "SourceError";
    this.problem = problem;
  }
}

/** @type {Record<string, [string, string, boolean]>} */
const CAMERA = {
  // The advice depends on the browser and the site: see shared/capabilities.js.
  absent: ["There can be no live camera here.", "", false],
  denied: [
    "The camera is not allowed for this page.",
    "Allow it in the address bar or in the settings of the browser, then try again.",
    true,
  ],
  none: ["There is no camera.", "Connect one and try again, or choose a photograph.", true],
  busy: ["Another program uses the camera.", "Close the program, then try again.", true],
  unplugged: [
    "The camera is gone.",
    "Connect it again and try again, or choose a photograph.",
    true,
  ],
  failed: ["The camera does not start.", "Try again, or choose a photograph.", true],
};

/** @type {Record<string, [string, string, boolean]>} */
const OTHERS = {
  screen_denied: [
    "The screen is not shared.",
    "Choose a screen, a window or a tab and allow it, or use another source.",
    true,
  ],
  screen_ended: [
    "The screen is not shared any more.",
    "Share it again, or use another source.",
    true,
  ],
  not_image: [
    "This file is no photograph that the browser can open.",
    "Choose a JPEG, PNG or WebP file.",
    false,
  ],
  not_video: [
    "This file is no video that the browser can play.",
    "Choose an MP4 or WebM file.",
    false,
  ],
};

/**
 * Return the problem of a code.
 * @param {string} code
 * @returns {Problem}
 */
export function problemOf(code) {
  const [title, advice, retry] = CAMERA[code] ?? OTHERS[code] ?? /** @type {any} */ (CAMERA.failed);
  return { code, title, advice, retry };
}

/**
 * Return why the camera does not start.
 * @param {unknown} error of getUserMedia
 * @returns {Problem}
 */
export function startProblem(error) {
  const name = error instanceof Error || error instanceof DOMException ? error.name : "";
  switch (name) {
    case "NotAllowedError":
    case "PermissionDeniedError":
    case "SecurityError":
      return problemOf("denied");
    case "NotFoundError":
    case "DevicesNotFoundError":
    case "OverconstrainedError":
      return problemOf("none");
    case "NotReadableError":
    case "TrackStartError":
      return problemOf("busy");
    default:
      return problemOf("failed");
  }
}
