// What is said of a photograph: its name, its time, its size. Names are foreign bytes.

/**
 * What the server says of a photograph.
 * @typedef {object} PhotoFacts
 * @property {number} id
 * @property {string} name the path below `root`, with slashes
 * @property {string} root
 * @property {string | null} time
 * @property {"camera" | "file" | null} time_from
 * @property {number | null} time_offset_minutes
 * @property {string | null} camera
 * @property {number | null} width
 * @property {number | null} height
 * @property {string | null} format
 * @property {number} bytes
 * @property {boolean} changed
 * @property {number} copies
 * @property {{name: string, root: string}[]} [other_files]
 */

/**
 * Return a name in one line: line ends, and bytes that are not UTF-8, which the server sends as lone
 * surrogates, are escaped, as `\n` and `\xff`.
 * @param {string} name
 */
export function shownName(name) {
  const line = name.replace(/[\t\n\r]/g, (one) => ({ "\t": "\\t", "\n": "\\n" })[one] ?? "\\r");
  // Pairs of surrogates are one character, and stay.
  return line.replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, (one) => {
    if (one.length === 2) return one;
    const code = one.charCodeAt(0);
    return code >= 0xdc80 && code <= 0xdcff ? `\\x${(code - 0xdc00).toString(16)}` : "\ufffd";
  });
}

/**
 * Return the last part of a path, and what is before it.
 * @param {{name: string, root: string}} photo
 */
export function splitName({ name, root }) {
  const at = name.lastIndexOf("/");
  const folder = at < 0 ? root : `${root}/${name.slice(0, at)}`;
  return { file: shownName(name.slice(at + 1)), folder: shownName(folder) };
}

/**
 * Return what a clock showed, for people; "" if that is unknown.
 * @param {string | null} time without a zone
 */
export function shownTime(time) {
  if (!time) return "";
  const date = new Date(`${time}Z`);
  if (Number.isNaN(date.getTime())) return time;
  return date.toLocaleString("en-GB", {
    timeZone: "UTC",
    day: "numeric",
    month: "short",
    year: "numeric",
    hour: "2-digit",
    minute: "2-digit",
  });
}

/**
 * Return an offset from UTC, such as `UTC+02:00`.
 * @param {number} minutes
 */
export function shownOffset(minutes) {
  const size = Math.abs(minutes);
  const parts = [Math.floor(size / 60), size % 60].map((one) => String(one).padStart(2, "0"));
  return `UTC${minutes < 0 ? "\u2212" : "+"}${parts.join(":")}`;
}

/**
 * Return seconds for people.
 * @param {number} seconds
 */
export function shownDuration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
