import assert from "node:assert/strict";
import { test } from "node:test";

import { collectFiles } from "../../src/pocketclip/web/app/classify/collect.js";
import {
  arranged,
  groupsOf,
  hasFormula,
  resultOf,
  tableOf,
} from "../../src/pocketclip/web/app/classify/results.js";
import { writeCsv } from "../../src/pocketclip/web/app/shared/csv.js";

/** @typedef {import("../../src/pocketclip/web/app/classify/results.js").Item} Item */
/** @typedef {import("../../src/pocketclip/web/app/models/scored.js").Scored} Scored */

/**
 * @param {[string, number, number | null][]} ranked
 * @param {boolean} [none]
 * @returns {Scored}
 */
function scored(ranked, none = false) {
  return {
    ranked: ranked.map(([label, probability, cosine]) => ({ label, probability, cosine })),
    none,
    noneProbability: none ? 0.5 : 0.01,
  };
}

let ids = 0;
/**
 * @param {string} path
 * @param {Scored | null} answer
 * @param {Partial<Item>} [more]
 * @returns {Item & {answer: Scored | null}}
 */
function item(path, answer, more = {}) {
  return {
    id: ++ids,
    file: new File([""], path),
    path,
    state: answer === null ? "waiting" : "done",
    why: "",
    embedding: answer === null ? null : new Float32Array(1),
    result: answer === null ? null : resultOf(answer),
    answer,
    ...more,
  };
}

const pear = scored([
  ["pear", 0.9, 0.3],
  ["fig", 0.08, 0.2],
  ["<b>", 0.01, 0.1],
  ["kiwi", 0.005, 0.05],
]);
const fig = scored([
  ["fig", 0.6, 0.4],
  ["pear", 0.4, 0.39],
]);
const none = scored(
  [
    ["apple", 0.3, 0.1],
    ["pear", 0.2, 0.09],
  ],
  true,
);
const items = [
  item("b 10.jpg", pear),
  item("b 9.jpg", fig),
  item("waits.jpg", null),
  item("a.jpg", none),
  item("bad.jpg", null, { state: "failed", why: "It is no picture." }),
  item("c.jpg", pear),
];
const paths = (/** @type {readonly Item[]} */ some) => some.map((one) => one.path);

test("of a result the first labels are kept", () => {
  assert.equal(resultOf(pear).top.length, 3);
  assert.equal(resultOf({ ranked: pear.ranked, none: false }).noneProbability, null);
});

test("images are counted by their label, most first, and those without label last", () => {
  assert.deepEqual(
    groupsOf(items).map(({ name, count }) => [name, count]),
    [
      ["pear", 2],
      ["fig", 1],
      ["None of these", 1],
      ["Not read", 1],
      ["No result yet", 1],
    ],
  );
  const named = item("x", scored([["None of these", 1, 0.3]]));
  assert.equal(new Set(groupsOf([...items, named]).map((one) => one.key)).size, 6);
});

test("images are ordered and filtered; those without result come last", () => {
  assert.deepEqual(paths(arranged(items, "added", null)), paths(items));
  assert.deepEqual(paths(arranged(items, "name", null)).slice(0, 4), [
    "a.jpg",
    "b 9.jpg",
    "b 10.jpg",
    "bad.jpg",
  ]);
  assert.deepEqual(paths(arranged(items, "probability", null)), [
    "b 10.jpg",
    "c.jpg",
    "b 9.jpg",
    "a.jpg",
    "waits.jpg",
    "bad.jpg",
  ]);
  assert.equal(paths(arranged(items, "cosine", null))[0], "b 9.jpg");
  assert.deepEqual(paths(arranged(items, "label", null)).slice(0, 4), [
    "b 9.jpg",
    "b 10.jpg",
    "c.jpg",
    "a.jpg",
  ]);
  assert.deepEqual(paths(arranged(items, "added", "label pear")), ["b 10.jpg", "c.jpg"]);
  assert.deepEqual(paths(arranged(items, "added", "none")), ["a.jpg"]);
});

test("the table has every label, and names that are no formulas", () => {
  const some = [item("=1+1.jpg", fig), item('say "a", b.png', none), items[4]];
  let at = 0;
  const rows = tableOf(some, ["pear", "fig"], () => some[at++].answer ?? null);
  assert.equal(
    writeCsv(rows),
    [
      "file,label,probability,cosine,none,none probability,error,probability of pear,probability of fig",
      "./=1+1.jpg,fig,0.600000,0.400000,no,0.010000,,0.400000,0.600000",
      '"say ""a"", b.png",apple,0.300000,0.100000,yes,0.500000,,0.200000,',
      "bad.jpg,,,,,,It is no picture.,,",
      "",
    ].join("\r\n"),
  );
  assert.equal(hasFormula(rows), false);
  assert.equal(hasFormula([["-0.5", "+1"]]), false);
  assert.equal(hasFormula([["a", "=HYPERLINK(1)"]]), true);
});

test("of files only images are taken, and no hidden ones", () => {
  const file = (/** @type {string} */ name, type = "") => new File([""], name, { type });
  const { images, others } = collectFiles([
    file("a.jpg", "image/jpeg"),
    file("b.HEIC"),
    file("c.txt", "text/plain"),
    file(".d.jpg", "image/jpeg"),
    file("<img src=x onerror=alert(1)>.jpg"),
  ]);
  assert.deepEqual(
    images.map((one) => one.path),
    ["a.jpg", "b.HEIC", "<img src=x onerror=alert(1)>.jpg"],
  );
  assert.equal(others, 1);
});
