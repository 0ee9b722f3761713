// The cameras of the device.

import { cameraProblem } from "../../shared/capabilities.js";
import { SourceError, problemOf, startProblem } from "../problems.js";
import { clear, newVideo, playStream, stopTracks } from "./moving.js";

/** @typedef {"environment" | "user"} Facing */

/**
 * @typedef {object} Wanted
 * @property {string | null} deviceId one camera; null: any that faces so
 * @property {Facing} facing
 */

/**
 * What cameras can do beyond the types of TypeScript.
 * @typedef {MediaTrackCapabilities & {torch?: boolean, zoom?: {min: number, max: number, step?: number}}} Abilities
 */

/**
 * @typedef {object} Zoom
 * @property {number} min
 * @property {number} max
 * @property {number} step
 * @property {number} value
 */

/** Pictures of a camera. */
export class CameraSource {
  kind = /** @type {const} */ ("camera");
  /** @type {MediaStream | null} */ #stream = null;
  #generation = 0;

  /**
   * @param {Wanted} wanted
   * @param {import("./moving.js").WhenLost} whenLost
   */
  constructor(wanted, whenLost) {
    this.element = newVideo();
    this.wanted = wanted;
    this.whenLost = whenLost;
    this.torch = false;
  }

  /**
   * Start a camera; the browser may ask people for it.
   * @param {Wanted} wanted
   * @param {import("./moving.js").WhenLost} whenLost
   * @throws {SourceError}
   */
  static async open(wanted, whenLost) {
    const source = new CameraSource(wanted, whenLost);
    try {
      await source.resume();
    } catch (error) {
      source.stop(); // The camera may run although its first frame never came.
      throw error;
    }
    return source;
  }

  async resume() {
    if (this.#stream !== null) return;
    const generation = ++this.#generation;
    const stream = await request(this.wanted);
    if (generation !== this.#generation) {
      stopTracks(stream);
      return;
    }
    this.#stream = stream;
    const [track] = stream.getVideoTracks();
    track?.addEventListener("ended", () => {
      if (this.#stream === stream) this.whenLost(problemOf("unplugged"));
    });
    this.torch = false;
    await playStream(this.element, stream);
  }

  async suspend() {
    this.#generation += 1;
    const stream = this.#stream;
    this.#stream = null;
    stopTracks(stream);
  }

  stop() {
    void this.suspend();
    clear(this.element);
  }

  /** @returns {MediaStreamTrack | null} */
  get #track() {
    return this.#stream?.getVideoTracks()[0] ?? null;
  }

  /** Which camera this is; null: the browser does not say. */
  get deviceId() {
    return this.#track?.getSettings().deviceId ?? null;
  }

  /** @returns {Facing | null} null: the browser does not say, as of most cameras of laptops */
  get facing() {
    const facing = this.#track?.getSettings().facingMode;
    return facing === "user" || facing === "environment" ? facing : null;
  }

  // A camera that does not say where it looks is one of a laptop, which looks at people.
  get mirrors() {
    return this.facing === "user" || (this.facing === null && !isHandheld());
  }

  /** @returns {Abilities} */
  get #abilities() {
    // Firefox has no getCapabilities.
    return /** @type {Abilities} */ (this.#track?.getCapabilities?.() ?? {});
  }

  get hasTorch() {
    return this.#abilities.torch === true;
  }

  /** @returns {Zoom | null} null: the camera cannot zoom */
  get zoom() {
    const { zoom } = this.#abilities;
    if (zoom === undefined || !(zoom.max > zoom.min)) return null;
    const settings = /** @type {{zoom?: number}} */ (this.#track?.getSettings() ?? {});
    return {
      min: zoom.min,
      max: zoom.max,
      step: zoom.step || (zoom.max - zoom.min) / 100,
      value: settings.zoom ?? zoom.min,
    };
  }

  /**
   * Switch the lamp.
   * @param {boolean} on
   * @returns {Promise<boolean>} whether it is as wanted now
   */
  async setTorch(on) {
    const done = await this.#apply({ torch: on });
    if (done) this.torch = on;
    return done;
  }

  /** @param {number} value */
  async setZoom(value) {
    return await this.#apply({ zoom: value });
  }

  /** @param {Record<string, unknown>} constraint */
  async #apply(constraint) {
    try {
      const advanced = /** @type {MediaTrackConstraintSet[]} */ ([constraint]);
      await this.#track?.applyConstraints({ advanced });
      return this.#track !== null;
    } catch {
      return false; // The device says that it can, and cannot now.
    }
  }
}

/**
 * Ask for a camera.
 * @param {Wanted} wanted
 * @throws {SourceError}
 */
async function request({ deviceId, facing }) {
  const why = cameraProblem();
  if (why !== null) throw new SourceError({ ...problemOf("absent"), advice: why });
  /** @type {MediaTrackConstraints} */
  const size = { width: { ideal: 1280 }, height: { ideal: 720 } };
  const any = { ...size, facingMode: { ideal: facing } };
  try {
    if (deviceId === null) return await get(any);
    return await get({ ...size, deviceId: { exact: deviceId } });
  } catch (error) {
    // The camera of last time is not there, or has another id now.
    const gone = error instanceof DOMException && error.name === "OverconstrainedError";
    if (deviceId === null || !gone) throw new SourceError(startProblem(error));
  }
  try {
    return await get(any);
  } catch (error) {
    throw new SourceError(startProblem(error));
  }
}

/** @param {MediaTrackConstraints} video */
function get(video) {
  return navigator.mediaDevices.getUserMedia({ video, audio: false });
}

/**
 * Return the cameras; their names are there once one of them is allowed.
 * @returns {Promise<{deviceId: string, label: string}[]>}
 */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => null)) ?? [];
  return devices
    .filter((one) => one.kind === "videoinput" && one.deviceId !== "")
    .map((one, at) => ({ deviceId: one.deviceId, label: one.label || `Camera ${at + 1}` }));
}

/** Return whether the browser would give a camera without asking; false where it does not say. */
export async function isAllowed() {
  try {
    const name = /** @type {PermissionName} */ ("camera");
    return (await navigator.permissions.query({ name })).state === "granted";
  } catch {
    return false;
  }
}

/** Return whether the device is held in a hand. */
function isHandheld() {
  return matchMedia("(pointer: coarse)").matches;
}
