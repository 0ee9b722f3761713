// Text as the tokenizer wants it: what `pocketclip.tokenizer.clean` does before the byte pairs.
//
// The file tokenizer.json lowers case and collapses white space. Python repairs texts before that,
// and so do these functions: quotation marks and full-width forms that phones type, ligatures,
// common HTML entities, and characters that cannot be seen. Only Python repairs text that was
// decoded with the wrong encoding ("cafÃ©"), and knows the rarer names of entities.

/** The longest text that is read, in UTF-16 units: a row of 77 tokens is far shorter. */
export const MAX_TEXT = 4096;

const PLAIN = /^[\x20-\x25\x27-\x7e]*$/;
const TERMINAL = /\x1b\[[\d;]*[a-zA-Z]/g;
const LIGATURES = /[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb04\ufb06]/g;
const FULL_WIDTH = /[\uff01-\uffee]/g;
const SINGLE_QUOTES = /[\u02bc\u2018-\u201b]/g;
const DOUBLE_QUOTES = /[\u201c-\u201f]/g;
const LINE_BREAKS = /\r\n|[\r\u2028\u2029]/g;
const LONE_SURROGATES = /\p{Surrogate}/gu;
const UNSEEN = /[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;
const WINDOWS = /[\x80-\x9f]/g;
/** What the control characters from U+0080 on mean in Windows' encoding of Western texts. */
const WINDOWS_TEXT = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ";
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-zA-Z]{2,6}));/g;
/** @type {Record<string, string>} */
const NAMED = {
  ...{ amp: "&", AMP: "&", apos: "'", lt: "<", LT: "<", gt: ">", GT: ">", quot: '"', QUOT: '"' },
  ...{ copy: "©", deg: "°", euro: "€", hellip: "…", nbsp: " ", reg: "®" },
  ...{ ldquo: '"', rdquo: '"', lsquo: "'", rsquo: "'", mdash: "—", ndash: "–" },
};
const MARKS = /<(?:start|end)_of_text>/gi;
/** The combining iota: CLIP's pattern of words skips it as if it were a space. */
const SKIPPED = /[\u0345\x85]/g;

/**
 * Return a text without what would give other tokens than in Python.
 * @param {string} text
 * @returns {string} of the first `MAX_TEXT` units
 */
export function cleanText(text) {
  let out = text.length > MAX_TEXT ? beginningOf(text) : text;
  if (PLAIN.test(out)) return lowerMarks(out);
  if (!out.includes("<")) out = unescapeHtml(out);
  out = out
    .replace(TERMINAL, "")
    .replace(WINDOWS, windowsText)
    .replace(LIGATURES, (one) => one.normalize("NFKC"))
    .replaceAll("\ufb05", "\u017ft")
    .replace(FULL_WIDTH, (one) => one.normalize("NFKC"))
    .replace(SINGLE_QUOTES, "'")
    .replace(DOUBLE_QUOTES, '"')
    .replace(LINE_BREAKS, "\n")
    .replace(LONE_SURROGATES, "\ufffd")
    .replace(UNSEEN, "")
    .normalize("NFC");
  return lowerMarks(unescapeHtml(unescapeHtml(out)).replace(SKIPPED, " "));
}

/**
 * Return a text in which marks of the start and the end are as the tokenizer knows them.
 * @param {string} text
 */
function lowerMarks(text) {
  return text.replace(MARKS, (mark) => mark.toLowerCase());
}

/**
 * Return the beginning of a text, without half of a character.
 * @param {string} text
 */
function beginningOf(text) {
  return text.slice(0, MAX_TEXT).replace(/[\ud800-\udbff]$/, "");
}

/** @param {string} text */
function unescapeHtml(text) {
  return text.replace(ENTITY, (whole, decimal, hex, name) => {
    if (name !== undefined) return Object.hasOwn(NAMED, name) ? NAMED[name] : whole;
    return characterOf(decimal === undefined ? parseInt(hex, 16) : parseInt(decimal, 10));
  });
}

/**
 * Return the character that an entity names by its number.
 * @param {number} code
 */
function characterOf(code) {
  if (code === 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return "\ufffd";
  return String.fromCodePoint(code).replace(WINDOWS, windowsText);
}

/**
 * Return what a control character means in Windows.
 * @param {string} one
 */
function windowsText(one) {
  return WINDOWS_TEXT[one.charCodeAt(0) - 0x80];
}
