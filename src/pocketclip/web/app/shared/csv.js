// CSV as RFC 4180 has it.

/**
 * Return the text of rows, whose lines end with CRLF.
 * @param {(string | number)[][]} rows
 * @param {"," | "\t"} [separator]
 */
export function writeCsv(rows, separator = ",") {
  return rows.map((row) => `${row.map(cell).join(separator)}\r\n`).join("");
}

/** @param {string | number} value */
function cell(value) {
  const text = String(value);
  return /[",\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Return the rows of a text. Cells are separated by commas; or by semicolons or tabs, where the
 * first line has no comma.
 * @param {string} text
 * @returns {string[][]} without empty lines
 * @throws {SyntaxError} a quoted cell does not end
 */
export function readCsv(text) {
  const separator = separatorOf(text);
  /** @type {string[][]} */
  const rows = [];
  /** @type {string[]} */
  let row = [];
  let value = "";
  let quotedCell = false;
  let wasQuoted = false;
  const endRow = () => {
    row.push(value);
    if (row.length > 1 || row[0] !== "" || wasQuoted) rows.push(row);
    row = [];
    value = "";
    wasQuoted = false;
  };
  for (let at = 0; at < text.length; at++) {
    const one = text[at];
    if (quotedCell) {
      if (one !== '"') value += one;
      else if (text[at + 1] === '"') value += text[at++];
      else quotedCell = false;
    } else if (one === '"' && value === "") {
      quotedCell = true;
      wasQuoted = true;
    } else if (one === separator) {
      row.push(value);
      value = "";
    } else if (one === "\n" || one === "\r") {
      if (one === "\r" && text[at + 1] === "\n") at++;
      endRow();
    } else {
      value += one;
    }
  }
  if (quotedCell) throw new SyntaxError("a quoted cell does not end");
  if (value !== "" || row.length > 0 || wasQuoted) endRow();
  return rows;
}

/** @param {string} text */
function separatorOf(text) {
  const line = (/^[^\r\n]*/.exec(text) ?? [""])[0].replace(/"(?:[^"]|"")*"?/g, "");
  return [",", ";", "\t"].find((one) => line.includes(one)) ?? ",";
}
