// Pictures from this device as parts of a query: the server makes an embedding of each, once.

import { dataUri } from "../shared/base64.js";
import { formatBytes } from "../shared/dom.js";
import { squareJpeg } from "../shared/square.js";
import { callPatiently } from "./client.js";

/** @typedef {import("./query_state.js").Picture} Picture */

const THUMBNAIL = 96; // px

/**
 * Return a picture as a part of a query: the file goes to the server as it is, so that it meets the
 * index through the same transform.
 * @param {File | Blob} file
 * @param {{spaceId: string, limit: number}} server the space of its library, and the bytes of a
 *   picture that it takes
 * @returns {Promise<Picture>}
 */
export async function embedPicture(file, { spaceId, limit }) {
  if (file.size > limit) {
    throw new Error(`This picture is larger than ${formatBytes(limit)}, which the server takes.`);
  }
  const [thumbnail, url] = await Promise.all([makeThumbnail(file), dataUrl(file)]);
  const body = { input: url, modality: "image" };
  const answer = await callPatiently("POST", "v1/embeddings", body);
  if (answer.space_id !== spaceId) {
    throw new Error("The server has another model now: reload the page.");
  }
  return {
    kind: "sent",
    name: file instanceof File && file.name ? file.name : "Picture",
    minus: false,
    vector: answer.data[0].embedding,
    spaceId,
    thumbnail,
  };
}

/**
 * Return the images among what was dropped, pasted or chosen.
 * @param {DataTransfer | FileList | null} given
 * @returns {File[]}
 */
export function imagesIn(given) {
  const files = given instanceof FileList ? given : given?.files;
  return [...(files ?? [])].filter(
    (file) => file.type.startsWith("image/") || /\.(hei[cf]|avif|jxl|tiff?|webp)$/i.test(file.name),
  );
}

/** @param {Blob} file */
async function dataUrl(file) {
  const uri = await dataUri(file).catch(() => {
    throw new Error("This file cannot be read.");
  });
  // The server looks at the bytes; a type that it does not know would be refused.
  return uri.replace(/^data:[^,]*,/, "data:image/jpeg;base64,");
}

/**
 * @param {Blob} file
 * @returns {Promise<string | null>}
 */
async function makeThumbnail(file) {
  try {
    return await dataUri(await squareJpeg(file, THUMBNAIL));
  } catch {
    return null; // such as HEIC, which the server reads
  }
}
