import assert from "node:assert/strict";
import { test } from "node:test";

import {
  LIMITS,
  LabelError,
  addLabels,
  checked,
  cleanText,
  keyOf,
  makeList,
  promptsOf,
  promptsOfList,
  removeLabel,
  renameLabel,
  sortLabels,
  withPrompt,
} from "../../src/pocketclip/web/app/labels/label_list.js";

const fruit = makeList({ name: "Fruit", prefix: "A photo of", labels: ["pear", "Fig"] });

test("a prompt has single blanks, with or without prefix and suffix", () => {
  assert.deepEqual(promptsOf(fruit, "pear"), ["A photo of pear"]);
  assert.deepEqual(promptsOf({ ...fruit, suffix: "on a table" }, "pear"), [
    "A photo of pear on a table",
  ]);
  assert.deepEqual(promptsOf({ ...fruit, prefix: "" }, "pear"), ["pear"]);
  assert.deepEqual(promptsOf({ ...fruit, prefix: "{} of" }, "{c}"), ["{} of {c}"]);
});

test("templates stand in place of prefix and suffix, as Python's prompts.py fills them", () => {
  const templates = ["a {}.", "{c} or {}", "{ {} }"];
  const list = withPrompt(fruit, { templates });
  assert.deepEqual(promptsOf(list, "x{}"), ["a x{}.", "x{} or x{}", "{ x{} }"]);
  assert.deepEqual(promptsOfList({ ...list, labels: ["a", "b"] })[1], {
    label: "b",
    texts: ["a b.", "b or b", "{ b }"],
  });
  assert.throws(() => withPrompt(fruit, { templates: ["a photo"] }), /has no \{\} for the label/);
});

test("labels are trimmed; empty ones and duplicates are refused, each with a sentence", () => {
  const { list, added, refused } = addLabels(fruit, [
    "  ripe   banana\u00a0",
    "",
    "\u200b",
    "FIG",
    "ripe banana",
    "caf\u00e9",
    "CAFE\u0301",
    "\uff50\uff45\uff41\uff52",
    "x".repeat(201),
  ]);
  assert.deepEqual(added, ["ripe banana", "café"]);
  assert.deepEqual(list.labels, ["pear", "Fig", "ripe banana", "café"]);
  assert.deepEqual(
    refused.map((one) => one.why),
    [
      "A label needs at least one character.",
      "A label needs at least one character.",
      "“FIG” is in the list already, as “Fig”.",
      "“ripe banana” is in the list already.",
      "“CAFÉ” is in the list already, as “café”.",
      "“ｐｅａｒ” is in the list already, as “pear”.",
      `“${"x".repeat(39)}…” has 201 characters; a label has at most 200.`,
    ].map((why) => (why.includes("CAFÉ") ? why.replace("É", "E\u0301") : why)),
  );
  assert.deepEqual(fruit.labels, ["pear", "Fig"], "the earlier list is as it was");
});

test("invisible characters are removed, and joiners of emoji and Persian stay", () => {
  assert.equal(cleanText("a\u202eb\u2066c\u0000\u200e\ufeff\u061cd"), "abcd");
  assert.equal(cleanText("a\tb\r\nc\u2028d\u0085e"), "a b c d e");
  assert.equal(cleanText("👩\u200d💻"), "👩\u200d💻");
  assert.equal(cleanText("می\u200cخواهم"), "می\u200cخواهم");
  assert.equal(cleanText("a\ud800b"), "a\ufffdb");
  assert.equal(keyOf("ΟΔΟΣ"), keyOf("οδος"));
  assert.notEqual(keyOf("Maße"), keyOf("Masse"));
});

test("there are limits on labels and prompts", () => {
  const many = Array.from({ length: LIMITS.labels }, (_, n) => `label ${n}`);
  const full = addLabels(makeList(), many);
  assert.equal(full.added.length, LIMITS.labels);
  assert.match(addLabels(full.list, ["one more"]).refused[0].why, /at most 1,000 labels/);
  const templates = Array.from({ length: 11 }, (_, n) => `${n} {}`);
  assert.throws(() => withPrompt(full.list, { templates }), /more than 10,000 prompts/);
  assert.throws(() => checked(makeList({ name: " " })), /needs a name/);
  assert.throws(() => checked(makeList({ prefix: "x".repeat(201) })), LabelError);
});

test("labels are renamed in place, removed, and sorted without case and by number", () => {
  assert.deepEqual(renameLabel(fruit, "pear", " Plum ").list.labels, ["Plum", "Fig"]);
  assert.deepEqual(renameLabel(fruit, "pear", "Pear").list.labels, ["Pear", "Fig"]);
  assert.throws(() => renameLabel(fruit, "pear", "fig"), /already, as “Fig”/);
  assert.throws(() => renameLabel(fruit, "pear", ""), /at least one/);
  assert.deepEqual(removeLabel(fruit, "pear").labels, ["Fig"]);
  const mixed = makeList({ labels: ["b", "C", "10", "a", "9", "Ä"] });
  assert.deepEqual(sortLabels(mixed, "en").labels, ["9", "10", "a", "Ä", "b", "C"]);
});

test("a list from elsewhere is cleaned, and says so", () => {
  assert.deepEqual(checked(fruit), { list: fruit, changed: false });
  const { list, changed } = checked({ ...fruit, labels: ["a\u202e", "b"] });
  assert.deepEqual(list.labels, ["a", "b"]);
  assert.ok(changed);
  assert.throws(() => checked({ ...fruit, labels: ["a", "A"] }), /already/);
});
