// Images from people: files, folders, drops and the clipboard.

/**
 * A file, and its path below the folder that was chosen.
 * @typedef {{file: File, path: string}} Collected
 */

/**
 * @typedef {object} Collection
 * @property {Collected[]} images
 * @property {number} others how many files were no images
 */

const IMAGE = /\.(jpe?g|jfif|png|webp|gif|bmp|avif|hei[cf]|tiff?)$/i;
const MOST_FILES = 20_000; // of a folder; more is a mistake

/**
 * Return the images among files.
 * @param {Iterable<File>} files
 * @returns {Collection}
 */
export function collectFiles(files) {
  return sorted([...files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
}

/**
 * Return the images of a drop, those in folders too.
 * @param {DataTransfer} transfer
 * @returns {Promise<Collection>}
 */
export async function collectDrop(transfer) {
  // Both lists are empty after the event, so they are read before the first wait.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return collectFiles(files);
  /** @type {Collected[]} */
  const found = [];
  for (const entry of entries) if (entry !== null) await walk(entry, found);
  return sorted(found);
}

/**
 * @param {FileSystemEntry} entry
 * @param {Collected[]} found
 */
async function walk(entry, found) {
  if (found.length >= MOST_FILES || isHidden(entry.name)) return;
  if (entry.isFile) {
    const read = /** @type {FileSystemFileEntry} */ (entry);
    const file = /** @type {File} */ (
      await new Promise((resolve, reject) => read.file(resolve, reject))
    );
    found.push({ file, path: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) {
    const some = /** @type {FileSystemEntry[]} */ (
      await new Promise((resolve, reject) => reader.readEntries(resolve, reject))
    );
    if (some.length === 0) return;
    for (const one of some) await walk(one, found);
  }
}

/** @param {string} name */
function isHidden(name) {
  return name.startsWith(".") || name === "@eaDir" || name === "__MACOSX";
}

/**
 * @param {Collected[]} found
 * @returns {Collection}
 */
function sorted(found) {
  const seen = found.filter(({ path }) => !path.split("/").some(isHidden));
  const images = seen.filter(
    ({ file, path }) => file.type.startsWith("image/") || IMAGE.test(path),
  );
  return { images, others: seen.length - images.length };
}
