import assert from "node:assert/strict";
import { test } from "node:test";

import { makeList } from "../../src/pocketclip/web/app/labels/label_list.js";
import {
  decodeText,
  readLists,
  writeLists,
} from "../../src/pocketclip/web/app/labels/list_file.js";
import { readCsv, writeCsv } from "../../src/pocketclip/web/app/shared/csv.js";

const lists = [
  makeList({ name: "Fruit", prefix: "A photo of", labels: ["pear", '"fig", ripe'] }),
  makeList({ name: "Weather", templates: ["{} sky"], labels: ["clear"] }),
];

test("a file of ours comes back as it was", () => {
  assert.deepEqual(readLists(writeLists(lists), "all.json"), { lists, notes: [] });
});

test("plain text has one label a line", () => {
  const { lists: read, notes } = readLists("pear\r\n\r\n fig \nPEAR\n", "my fruit.txt");
  assert.deepEqual(read[0], makeList({ name: "my fruit", labels: ["pear", "fig"] }));
  assert.deepEqual(notes, ["“PEAR” is in the list already, as “pear”."]);
  const many = readLists(`${"a\n".repeat(6)}b`, "a.txt");
  assert.equal(many.notes.at(-1), "2 more labels could not be added.");
});

test("of CSV the first column counts, without its heading", () => {
  const text = 'Label,count\r\n"pear, green",1\r\n"a ""b""",2\r\n';
  assert.deepEqual(readLists(text, "a.csv").lists[0].labels, ["pear, green", 'a "b"']);
  assert.deepEqual(readLists("pear;1\nfig;2", "a.CSV").lists[0].labels, ["pear", "fig"]);
  assert.deepEqual(readLists("a b\tc\n", "a.tsv").lists[0].labels, ["a b"]);
  assert.throws(() => readLists('"a\nb', "a.csv"), /quoted cell that does not end/);
});

test("texts are read as UTF-8 or UTF-16", () => {
  const utf16 = new Uint8Array([0xff, 0xfe, 0xe9, 0x00]);
  assert.equal(decodeText(utf16, "a.txt"), "é");
  assert.equal(decodeText(new TextEncoder().encode("\ufeffé"), "a.txt"), "é");
  assert.throws(() => decodeText(new Uint8Array([0xe9, 0x20]), "a.txt"), /no text in UTF-8/);
});

for (const [what, text, message] of /** @type {[string, string, RegExp][]} */ ([
  ["not JSON", '{"format": ', /is damaged/],
  ["other JSON", '{"a": 1}', /not a file with lists/],
  ["an array", "[1, 2]", /not a file with lists/],
  ["another version", file({ version: 2 }), /has version 2/],
  ["a nested version", file({ version: { a: "\u202e" } }), /has version \[object Object\]/],
  ["no lists", file({ lists: [] }), /must have 1 to 200 lists/],
  ["lists that are a text", file({ lists: "abc" }), /must have 1 to 200 lists/],
  ["a list that is null", file({ lists: [null] }), /list 1: This is no list of labels/],
  ["an unknown field", file({ lists: [{ name: "a", html: "" }] }), /“html” is not known/],
  [
    "a field __proto__",
    '{"format":"pocketclip label lists","version":1,"lists":[{"name":"a","__proto__":{"labels":["x"]}}]}',
    /“__proto__” is not known/,
  ],
  ["labels that are numbers", file({ lists: [{ name: "a", labels: [1] }] }), /no list of texts/],
  ["a name that is a number", file({ lists: [{ name: 1 }] }), /“name” is no text/],
  ["no name", file({ lists: [{ labels: ["a"] }] }), /list 1: A list needs a name/],
  ["a label twice", file({ lists: [{ name: "a", labels: ["a", "A"] }] }), /list 1: “A” is in/],
  ["an empty text", "  \n", /has no labels/],
])) {
  test(`a file is refused: ${what}`, () => {
    assert.throws(() => readLists(text, "list"), { name: "LabelError", message });
  });
}

/**
 * Return a file of ours with other values.
 * @param {object} values
 */
function file(values) {
  return JSON.stringify({ format: "pocketclip label lists", version: 1, lists, ...values });
}

test("CSV is written and read as RFC 4180 has it", () => {
  const rows = [
    ["=1+1", 'a "b"', "c,d"],
    ["e\nf", "", "é"],
  ];
  const text = writeCsv(rows);
  assert.equal(text, '=1+1,"a ""b""","c,d"\r\n"e\nf",,é\r\n');
  assert.deepEqual(readCsv(text), rows);
  assert.deepEqual(readCsv('""\r\n\r\na'), [[""], ["a"]]);
});
