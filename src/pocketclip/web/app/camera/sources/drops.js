// Images and videos that are dropped on the page, or pasted.

import { byId } from "../../shared/dom.js";
import { fileIn } from "./photo_file.js";

/**
 * Call a function with every image or video that is dropped or pasted. Other files are left to the
 * editor of labels; a browser must not leave the page for them.
 * @param {(file: File) => void} onFile
 */
export function takeDrops(onFile) {
  const stage = byId("stage");
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    stage.classList.add("drop-target");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("drop-target");
  });
  document.addEventListener("drop", (event) => {
    stage.classList.remove("drop-target");
    if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    const file = fileIn(event.dataTransfer);
    if (file !== null) onFile(file);
  });
  document.addEventListener("paste", (event) => {
    const file = fileIn(event.clipboardData);
    if (event.defaultPrevented || file === null) return;
    event.preventDefault();
    onFile(file);
  });
}
