// What the sources share whose pictures move in a video element.

import { SourceError, problemOf } from "../problems.js";

/**
 * A source of pictures. `camera`, `screen` and `video` move; `photo` is one still picture.
 * @typedef {object} Source
 * @property {"camera" | "screen" | "video" | "photo"} kind
 * @property {HTMLVideoElement | HTMLImageElement} element which shows it, of its own
 * @property {boolean} mirrors whether people expect a mirror
 * @property {() => Promise<void>} suspend let go of the device while nobody looks
 * @property {() => Promise<void>} resume take it up again
 * @property {() => void} stop let go of everything, for good
 */

/**
 * Called when a source ends by itself.
 * @callback WhenLost
 * @param {import("../problems.js").Problem} problem
 */

/** Return a video element that plays within a page, without sound. */
export function newVideo() {
  const video = document.createElement("video");
  video.playsInline = true;
  video.muted = true;
  return video;
}

/**
 * Play a stream, and return when its first frame is there.
 * @param {HTMLVideoElement} video
 * @param {MediaStream} stream
 */
export async function playStream(video, stream) {
  video.srcObject = stream;
  await playing(video, "failed");
}

/**
 * Play what a video element has, and return when its first frame is there.
 * @param {HTMLVideoElement} video
 * @param {string} code of the problem if it cannot be played
 */
export async function playing(video, code) {
  const ready = new Promise((resolve, reject) => {
    if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA && video.videoWidth > 0) {
      resolve(undefined);
      return;
    }
    video.addEventListener("loadeddata", () => resolve(undefined), { once: true });
    video.addEventListener("error", () => reject(new SourceError(problemOf(code))), { once: true });
  });
  // Playing is refused while the page is hidden, and interrupted when the source changes.
  const started = video.play().catch((error) => {
    if (error.name === "NotSupportedError") throw new SourceError(problemOf(code));
  });
  await Promise.all([ready, started]);
  if (video.videoWidth === 0) throw new SourceError(problemOf(code));
}

/**
 * Stop the tracks of a stream, so that the device is free and its light goes out.
 * @param {MediaStream | null} stream
 */
export function stopTracks(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

/**
 * Leave a video element empty.
 * @param {HTMLVideoElement} video
 */
export function clear(video) {
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
  video.load();
}
