// The search page's modules that need no page.

import assert from "node:assert/strict";
import test from "node:test";

import { HistoryEntries } from "../../src/pocketclip/web/app/search/history_entries.js";
import { columnsFor, GAP, moveBy, rowsNear } from "../../src/pocketclip/web/app/search/layout.js";
import {
  shownDuration,
  shownName,
  shownOffset,
  shownTime,
  splitName,
} from "../../src/pocketclip/web/app/search/photo_texts.js";
import * as query from "../../src/pocketclip/web/app/search/query_state.js";
import {
  emptyState,
  messageOf,
  remarksOf,
} from "../../src/pocketclip/web/app/search/result_texts.js";
import {
  countsText,
  rootsText,
  runText,
} from "../../src/pocketclip/web/app/search/status_texts.js";

/** @param {Partial<import("../../src/pocketclip/web/app/search/query_state.js").QueryState>} parts */
const queryOf = (parts) => ({ ...query.emptyQuery(), ...parts });

test("a narrow screen has three columns, a wide one six and more, and cells fill the width", () => {
  for (const width of [304, 480]) assert.equal(columnsFor(width).columns, 3);
  assert.equal(columnsFor(736).columns, 4);
  assert.ok(columnsFor(1248).columns >= 6);
  for (const width of [10, 304, 481, 736, 899, 900, 1248, 3800]) {
    const { columns, side } = columnsFor(width);
    assert.ok(Math.abs(columns * side + (columns - 1) * GAP - width) < 1e-6 || side === 1);
  }
});

test("only rows near what is seen are kept", () => {
  const view = { height: 800, rows: 33_334, pitch: 100 };
  assert.deepEqual(rowsNear({ ...view, top: -200 }), { begin: 0, end: 14 });
  assert.deepEqual(rowsNear({ ...view, top: 10_000 }), { begin: 92, end: 116 });
  assert.deepEqual(rowsNear({ ...view, top: 3_332_600 }), { begin: 33_318, end: 33_334 });
  assert.deepEqual(rowsNear({ ...view, top: 9e9 }), { begin: 33_334, end: 33_334 });
  assert.deepEqual(rowsNear({ ...view, top: 0, rows: 0 }), { begin: 0, end: 0 });
});

test("keys move within the grid and never out of it", () => {
  const grid = { count: 10, columns: 4, page: 2 }; // rows of 4, 4 and 2
  /** @type {[string, number, number][]} */
  const moves = [
    ["ArrowRight", 3, 4],
    ["ArrowRight", 9, 9],
    ["ArrowLeft", 0, 0],
    ["ArrowUp", 2, 2],
    ["ArrowDown", 1, 5],
    ["ArrowDown", 7, 9], // the last row is shorter
    ["ArrowDown", 9, 9],
    ["Home", 6, 4],
    ["End", 5, 7],
    ["End", 8, 9],
    ["PageDown", 1, 9],
    ["PageUp", 9, 1],
    ["PageUp", 5, 1],
  ];
  for (const [key, at, to] of moves) assert.equal(moveBy(key, at, grid), to, `${key} from ${at}`);
  assert.equal(moveBy("Home", 6, { ...grid, ctrl: true }), 0);
  assert.equal(moveBy("End", 6, { ...grid, ctrl: true }), 9);
  assert.equal(moveBy("a", 1, grid), null);
  assert.equal(moveBy("Home", 0, { ...grid, count: 0 }), null);
});

test("names are shown, whatever bytes they are", () => {
  assert.equal(shownName("caf\udce9 \ud83d\ude00 \ud800x"), "caf\\xe9 \ud83d\ude00 \ufffdx");
  assert.equal(shownName("a\nb\tc\rd"), "a\\nb\\tc\\rd");
  assert.deepEqual(splitName({ name: "Italy/Rome/a.jpg", root: "Pictures" }), {
    file: "a.jpg",
    folder: "Pictures/Italy/Rome",
  });
  assert.deepEqual(splitName({ name: "a.jpg", root: "Pictures" }), {
    file: "a.jpg",
    folder: "Pictures",
  });
});

test("times are those of the clock, whatever the zone here", () => {
  assert.equal(shownTime("2024-05-01T10:30:00"), "1 May 2024, 10:30");
  assert.equal(shownTime(null), "");
  assert.equal(shownTime("nonsense"), "nonsense");
  assert.equal(shownOffset(120), "UTC+02:00");
  assert.equal(shownOffset(-570), "UTC\u221209:30");
  assert.equal(shownDuration(0.2), "1 s");
  assert.equal(shownDuration(150), "3 min");
  assert.equal(shownDuration(7200), "2.0 h");
});

test("the body of a search has what was asked for, and nothing else", () => {
  assert.deepEqual(query.searchBody(queryOf({ text: " beach - people " }), { top: 5 }), {
    filters: {},
    top: 5,
    following: 0,
    query: "beach - people",
    literal: false,
  });
  /** @type {any[]} */
  const pictures = [
    { kind: "sent", name: "a", minus: false, vector: [1, 0], spaceId: "s" },
    { kind: "sent", name: "b", minus: true, vector: [0, 1], spaceId: "s" },
    { kind: "library", name: "c", minus: false, id: 3 },
    { kind: "library", name: "d", minus: true, id: 4 },
  ];
  const filters = { folder: "Italy", since: " 2024 ", until: "", camera: "" };
  assert.deepEqual(query.searchBody(queryOf({ pictures, filters }), { top: 1, following: 9 }), {
    filters: { in: ["Italy"], since: "2024" },
    top: 1,
    following: 9,
    vectors: [
      { vector: [1, 0], weight: 1 },
      { vector: [0, 1], weight: -1 },
    ],
    space_id: "s",
    like: [3],
    unlike: [4],
  });
});

test("what the history holds is read with care", () => {
  assert.deepEqual(query.readQuery(undefined), query.emptyQuery());
  assert.deepEqual(query.readQuery({ text: 7, pictures: "x", filters: null }), query.emptyQuery());
  const kept = queryOf({
    text: "a",
    literal: true,
    pictures: [{ kind: "library", name: "c", minus: true, id: 3 }],
    filters: { folder: "f", since: "1", until: "2", camera: "c" },
  });
  assert.deepEqual(query.readQuery(structuredClone(kept)), kept);
  const damaged = { pictures: [{ kind: "sent" }, { kind: "library", id: "1" }, null] };
  assert.deepEqual(query.readQuery(damaged).pictures, []);
});

test("two queries are the same if they give the same answer", () => {
  assert.ok(query.isSame(queryOf({ text: "a" }), queryOf({ text: " a " })));
  assert.ok(query.isSame(queryOf({ literal: true }), queryOf({ literal: false })));
  assert.ok(!query.isSame(queryOf({ text: "a", literal: true }), queryOf({ text: "a" })));
  assert.ok(query.isBrowsing(queryOf({ text: "  " })));
});

test("a sign without a space is noticed", () => {
  assert.equal(query.doubtfulSign(queryOf({ text: "beach -people" })), "-people");
  for (const text of ["beach - people", "t-shirt", "-5 degrees", "x-ray -5"]) {
    assert.equal(query.doubtfulSign(queryOf({ text })), null);
  }
  assert.equal(query.doubtfulSign(queryOf({ text: "beach -people", literal: true })), null);
});

test("people are told what an answer leaves out", () => {
  const answer = { removed: { absent: 0, since: 6 }, gone: 1, away: 0, unencoded: 2 };
  const said = remarksOf(answer);
  assert.equal(said.length, 3);
  assert.equal(said[0], "6 photographs are older.");
  assert.match(said[1] ?? "", /^1 better photograph left out/);
});

/** @type {any} */
const LIBRARY = {
  photos: 12,
  files: 14,
  encoded: 12,
  unencoded: 3,
  roots: [{ name: "Pictures", files: 14, away: true }],
  run: null,
};
/** @type {any} */
const RUN = {
  outcome: "running",
  stage: "reading 40 files",
  done: 10,
  total: 40,
  encoded: 9,
  failed: 1,
  rate: 2.5,
  seconds_left: 12,
  started: "2026-11-28T22:10:00Z",
  updated: "2026-11-28T22:10:56Z",
};

test("an empty grid says what to do", () => {
  const browse = queryOf({});
  assert.match(emptyState(browse, { ...LIBRARY, photos: 0 }).command ?? "", /^pocketclip index/);
  assert.equal(emptyState(browse, { ...LIBRARY, photos: 0, run: RUN }).command, null);
  const filtered = queryOf({ filters: { folder: "x", since: "", until: "", camera: "" } });
  assert.ok(emptyState(filtered, LIBRARY).canClear);
  const unencoded = emptyState(queryOf({ text: "a" }), { ...LIBRARY, encoded: 0 });
  assert.equal(unencoded.title, "Not searchable yet");
});

test("a run of indexing is told with its rate, its failures and its end", () => {
  assert.equal(
    runText(RUN),
    "Indexing: 10 of 40 files, 2.5 per second, about 12 s left, 1 file could not be read.",
  );
  assert.equal(runText({ ...RUN, total: 0, failed: 0 }), "Indexing: reading 40 files.");
  assert.equal(
    runText({ ...RUN, outcome: "done", failed: 0 }),
    "Last indexed: 28 Nov 2026, 22:10 UTC, 9 new.",
  );
  assert.match(runText({ ...RUN, outcome: "killed" }), /cut off.*Run pocketclip index again/);
  assert.equal(countsText(LIBRARY), "12, 2 copies, 3 not searchable yet");
  assert.equal(rootsText(LIBRARY), "Pictures (not there now)");
});

test("what the server says to programs is said to people of this page", () => {
  const error = new Error('Part 1 is empty; or send it with "literal": true.');
  assert.equal(
    messageOf(error),
    "Part 1 is empty; or choose “Take + and - as they are written” under “Filters”.",
  );
});

test("a browser that counts changes of its history is asked again, and nothing fails", (it) => {
  it.mock.timers.enable({ apis: ["setTimeout"] });
  const kept = /** @type {any} */ ({ state: null, count: 0, refuses: false });
  kept.pushState = kept.replaceState = (/** @type {any} */ state) => {
    if (kept.refuses) throw new DOMException("too many", "SecurityError");
    kept.state = state;
    kept.count += 1;
  };
  Object.assign(globalThis, { history: kept });
  let scroll = 0;
  const query = queryOf({ text: "sea" });
  const entries = new HistoryEntries(() => ({ query, view: "photographs", scroll, open: 0 }));
  entries.push({ query, view: "photographs", scroll, open: 7, isStep: true });
  for (scroll = 1; scroll < 200; scroll += 1) entries.saveSoon();
  assert.equal(kept.count, 1);
  it.mock.timers.tick(500);
  assert.deepEqual([kept.count, kept.state.scroll, kept.state.isStep], [2, 200, true]);
  kept.refuses = true;
  scroll = 300;
  entries.save();
  it.mock.timers.tick(5000);
  kept.refuses = false;
  it.mock.timers.tick(5000);
  assert.deepEqual([kept.count, kept.state.scroll], [3, 300]);
  entries.saveSoon();
  entries.cancel();
  entries.saveNow();
  assert.equal(kept.count, 3);
  kept.pushState = () => assert.fail("another fault");
  assert.throws(() => entries.push(kept.state), /another fault/);
});
