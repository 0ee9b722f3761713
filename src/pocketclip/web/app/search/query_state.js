// What a search is: the text, the pictures, the filters. Plain data, kept in the history's entries.

/**
 * A picture that photographs should be like, or unlike: one that was sent, as its embedding, or one
 * of the library.
 * @typedef {object} Picture
 * @property {"sent" | "library"} kind
 * @property {string} name for people
 * @property {boolean} minus to avoid
 * @property {number[]} [vector] of a picture that was sent
 * @property {string} [spaceId] of the vector
 * @property {string | null} [thumbnail] a data: URL; null: the browser cannot show it
 * @property {number} [id] of a photograph of the library
 */

/**
 * @typedef {object} FilterState
 * @property {string} folder
 * @property {string} since
 * @property {string} until
 * @property {string} camera
 */

/**
 * @typedef {object} QueryState
 * @property {string} text
 * @property {boolean} literal take the text as one, whatever signs are in it
 * @property {Picture[]} pictures
 * @property {FilterState} filters
 */

/** The number of hits that come with everything that is known of them. */
export const TOP = 100;
/** The number of photographs that are named after them. */
export const FOLLOWING = 100_000;

/** @returns {QueryState} */
export function emptyQuery() {
  return {
    text: "",
    literal: false,
    pictures: [],
    filters: { folder: "", since: "", until: "", camera: "" },
  };
}

/**
 * Return a query from what the history holds, which may be of an older version.
 * @param {any} stored
 * @returns {QueryState}
 */
export function readQuery(stored) {
  const query = emptyQuery();
  if (typeof stored?.text === "string") query.text = stored.text;
  query.literal = stored?.literal === true;
  if (Array.isArray(stored?.pictures)) query.pictures = stored.pictures.filter(isPicture);
  for (const name of /** @type {(keyof FilterState)[]} */ (Object.keys(query.filters))) {
    const value = stored?.filters?.[name];
    if (typeof value === "string") query.filters[name] = value;
  }
  return query;
}

/**
 * @param {any} one
 * @returns {one is Picture}
 */
function isPicture(one) {
  if (one?.kind === "library") return Number.isSafeInteger(one.id);
  return one?.kind === "sent" && Array.isArray(one.vector) && typeof one.spaceId === "string";
}

/**
 * Return whether there is nothing to look for: then all photographs are shown.
 * @param {QueryState} query
 */
export function isBrowsing(query) {
  return query.text.trim() === "" && query.pictures.length === 0;
}

/**
 * Return how many filters are set.
 * @param {QueryState} query
 */
export function countFilters(query) {
  return Object.values(query.filters).filter((value) => value.trim() !== "").length;
}

/**
 * Return the filters of a request.
 * @param {QueryState} query
 */
export function filtersOf(query) {
  const { folder, since, until, camera } = query.filters;
  /** @type {Record<string, unknown>} */
  const filters = {};
  if (folder) filters.in = [folder];
  if (since.trim()) filters.since = since.trim();
  if (until.trim()) filters.until = until.trim();
  if (camera.trim()) filters.camera = camera.trim();
  return filters;
}

/**
 * Return the body of a request to `/search`.
 * @param {QueryState} query
 * @param {{top: number, following?: number}} options
 */
export function searchBody(query, { top, following = 0 }) {
  /** @type {Record<string, unknown>} */
  const body = { filters: filtersOf(query), top, following };
  if (query.text.trim()) {
    body.query = query.text.trim();
    body.literal = query.literal;
  }
  const sent = query.pictures.filter((one) => one.kind === "sent");
  if (sent.length) {
    body.vectors = sent.map((one) => ({ vector: one.vector, weight: one.minus ? -1 : 1 }));
    body.space_id = sent[0]?.spaceId;
  }
  const known = query.pictures.filter((one) => one.kind === "library");
  const like = known.filter((one) => !one.minus).map((one) => one.id);
  const unlike = known.filter((one) => one.minus).map((one) => one.id);
  if (like.length) body.like = like;
  if (unlike.length) body.unlike = unlike;
  return body;
}

/**
 * Return whether two queries give the same answer.
 * @param {QueryState} first
 * @param {QueryState} second
 */
export function isSame(first, second) {
  return key(first) === key(second);
}

/**
 * Return whether a query is another one with more or fewer letters: one entry of the history is
 * enough for what is typed in one go.
 * @param {QueryState} before
 * @param {QueryState} after
 */
export function isTypedOn(before, after) {
  const [first, second] = [before.text.trim(), after.text.trim()];
  if (first === "" || second === "" || !isSame({ ...before, text: "" }, { ...after, text: "" })) {
    return false;
  }
  return first.startsWith(second) || second.startsWith(first);
}

/** @param {QueryState} query */
function key(query) {
  return JSON.stringify([
    query.text.trim(),
    query.literal && query.text.trim() !== "",
    query.pictures.map((one) => [one.kind, one.id, one.minus, one.vector]),
    filtersOf(query),
  ]);
}

/**
 * Return a word such as `-people`, which was perhaps meant to be avoided: a sign has spaces around.
 * @param {QueryState} query
 * @returns {string | null}
 */
export function doubtfulSign(query) {
  if (query.literal) return null;
  return /\s(-[\p{L}_][\p{L}\p{N}_-]*)/u.exec(query.text)?.[1] ?? null;
}
