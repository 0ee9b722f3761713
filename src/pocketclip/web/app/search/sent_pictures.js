// Pictures from this device as parts of a query: the server makes an embedding of each, once.

import { formatBytes } from "../shared/dom.js";
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
  const reader = new FileReader();
  const done = new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(new Error("This file cannot be read."));
  });
  reader.readAsDataURL(file);
  await done;
  // The server looks at the bytes; a type that it does not know would be refused.
  return String(reader.result).replace(/^data:[^,]*,/, "data:image/jpeg;base64,");
}

/**
 * @param {Blob} file
 * @returns {Promise<string | null>}
 */
async function makeThumbnail(file) {
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const side = Math.min(bitmap.width, bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = THUMBNAIL;
    canvas
      .getContext("2d")
      ?.drawImage(
        bitmap,
        (bitmap.width - side) / 2,
        (bitmap.height - side) / 2,
        side,
        side,
        0,
        0,
        THUMBNAIL,
        THUMBNAIL,
      );
    bitmap.close();
    return canvas.toDataURL("image/jpeg", 0.8);
  } catch {
    return null; // such as HEIC, which the server reads
  }
}
