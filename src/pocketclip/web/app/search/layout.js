// Where the photographs of a long grid stand: which rows are near what is seen.

export const GAP = 4;
const NARROW = 480; // up to this width there are three columns
const CELL = 150; // px, at least; larger on wide screens
const WIDE = 900;
const WIDE_CELL = 176;

/**
 * Return the number of columns, and the side of a cell in px.
 * @param {number} width of the grid in px
 */
export function columnsFor(width) {
  const least = width < WIDE ? CELL : WIDE_CELL;
  const columns = width <= NARROW ? 3 : Math.max(3, Math.floor((width + GAP) / (least + GAP)));
  const side = Math.max(1, (width - GAP * (columns - 1)) / columns);
  return { columns, side };
}

/**
 * Return the first and the last row, exclusive, that are near what is seen.
 * @param {{top: number, height: number, rows: number, pitch: number, margin?: number}} view `top`
 *   and `height`: of what is seen, from the grid's top; `pitch`: from row to row; `margin`: heights
 *   of what is seen that are kept above and below. In px.
 */
export function rowsNear({ top, height, rows, pitch, margin = 1 }) {
  const first = Math.floor((top - margin * height) / pitch);
  const last = Math.ceil((top + (1 + margin) * height) / pitch);
  const begin = Math.min(Math.max(0, first), rows);
  return { begin, end: Math.min(Math.max(begin, last), rows) };
}

/**
 * Return where a key leads to in a grid.
 * @param {string} key as of a KeyboardEvent
 * @param {number} at the cell
 * @param {{count: number, columns: number, page: number, ctrl?: boolean}} grid `page`: rows that are seen
 * @returns {number | null} null: it is no key of a grid
 */
export function moveBy(key, at, { count, columns, page, ctrl = false }) {
  const column = at % columns;
  /** @type {Record<string, number>} */
  const moves = {
    ArrowLeft: at - 1,
    ArrowRight: at + 1,
    ArrowUp: at - columns,
    ArrowDown: at + columns,
    Home: ctrl ? 0 : at - column,
    End: ctrl ? count - 1 : at - column + columns - 1,
    PageUp: at - columns * Math.max(1, page),
    PageDown: at + columns * Math.max(1, page),
  };
  const to = moves[key];
  if (to === undefined || count === 0) return null;
  if (to < 0) return key === "PageUp" ? column : at;
  // From above a last row that is shorter, down leads to its end.
  const below = Math.floor(at / columns) < Math.floor((count - 1) / columns);
  if (to >= count) return below || key === "End" ? count - 1 : at;
  return to;
}
