import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync } from "node:zlib";

import { LabelError, makeList } from "../../src/pocketclip/web/app/labels/label_list.js";
import {
  MAX_LINK,
  decodeLink,
  encodeLink,
} from "../../src/pocketclip/web/app/labels/share_link.js";
import { inflate } from "../../src/pocketclip/web/app/shared/inflate.js";

const list = makeList({
  name: "Fruit & más 🍐",
  prefix: "A photo of",
  suffix: "on a <b>table</b>",
  labels: ["pear", "<img src=x onerror=alert(1)>", "كمثرى"],
});
const plain = (/** @type {string} */ value) => `1${Buffer.from(value).toString("base64url")}`;
const packed = (/** @type {string} */ value) =>
  `2${deflateRawSync(Buffer.from(value)).toString("base64url")}`;
const json = (/** @type {unknown} */ value) => plain(JSON.stringify(value));

test("a list comes back as it was, deflated or not", async () => {
  for (const one of [
    list,
    makeList({ name: "x", labels: ["a"] }),
    makeList({ name: "t", templates: ["a {}", "b {c}"], labels: ["a"] }),
    makeList({ labels: Array.from({ length: 500 }, (_, n) => `label number ${n}`) }),
  ]) {
    const value = await encodeLink(one);
    assert.ok(value.length <= MAX_LINK);
    assert.match(value, /^[12][A-Za-z0-9_-]*$/);
    assert.deepEqual(decodeLink(value), { list: one, changed: false });
  }
});

test("without CompressionStream the link is longer, and every browser reads either", async () => {
  const original = globalThis.CompressionStream;
  try {
    Reflect.deleteProperty(globalThis, "CompressionStream");
    const value = await encodeLink(list);
    assert.equal(value[0], "1");
    assert.deepEqual(decodeLink(value).list, list);
  } finally {
    globalThis.CompressionStream = original;
  }
});

test("a list that is too long for a link is refused with a way out", async () => {
  const labels = Array.from({ length: 900 }, (_, n) => `${Math.sin(n)} ${Math.cos(n)}`);
  await assert.rejects(encodeLink(makeList({ labels })), /export it as a file/);
});

test("characters that cannot be seen are removed, and it says so", () => {
  const { list: read, changed } = decodeLink(json({ n: "a\u202eb", l: ["\u2066x\u0000", "y"] }));
  assert.deepEqual([read.name, read.labels, changed], ["ab", ["x", "y"], true]);
});

const damaged = /damaged: ask for the link again/;
for (const [what, value, message = damaged] of /** @type {[string, string, RegExp?][]} */ ([
  ["empty", ""],
  ["a version only", "1"],
  ["another version", `3${plain("{}").slice(1)}`],
  ["no base64", '1{"n":1}'],
  ["base64 of another alphabet", "1+/+/"],
  ["one character of base64", "1a"],
  ["blanks in base64", "1ab cd"],
  ["not UTF-8", `1${Buffer.from([0x22, 0xff, 0x22]).toString("base64url")}`],
  ["not JSON", plain("{n:1}")],
  ["a number", plain("1")],
  ["null", plain("null")],
  ["a text", plain('"abc"')],
  ["an array", plain('["a"]')],
  ["an unknown field", json({ n: "a", l: ["a"], x: 1 })],
  ["a long field name", json({ name: "a", l: ["a"] })],
  ["__proto__", plain('{"n":"a","l":["a"],"__proto__":{"labels":["b"]}}')],
  ["constructor", plain('{"n":"a","l":["a"],"constructor":"b"}')],
  ["toString", plain('{"n":"a","l":["a"],"toString":"b"}')],
  ["a name that is no text", json({ n: ["a"], l: ["a"] })],
  ["labels that are a text", json({ n: "a", l: "abc" })],
  ["labels that are an object", json({ n: "a", l: { 0: "a", length: 1 } })],
  ["a label that is a number", json({ n: "a", l: ["a", 1] })],
  ["a label that is null", json({ n: "a", l: [null] })],
  ["templates that are numbers", json({ n: "a", t: [1], l: ["a"] })],
  ["deep nesting", plain(`${"[".repeat(3000)}${"]".repeat(3000)}`)],
  ["deflate cut off", packed(JSON.stringify({ l: ["a".repeat(40)] })).slice(0, -4)],
  ["bytes after deflate", `${packed('{"l":["aaaa"]}')}AAAA`],
  ["no deflate", "2________"],
  ["a bomb of blanks", packed(" ".repeat(4_000_000))],
  ["a bomb of labels", packed(JSON.stringify({ l: ["a".repeat(4_000_000)] }))],
  ["a value that is too long", `1${"A".repeat(MAX_LINK)}`, /longer than a link may be/],
  ["no labels", json({ n: "a" }), /without labels/],
  ["no labels in the list", json({ n: "a", l: [] }), /without labels/],
  ["an empty label", json({ n: "a", l: ["\u200b"] }), /at least one character/],
  ["a label twice", json({ n: "a", l: ["a", "\uff21"] }), /in the list already/],
  ["a long label", json({ n: "a", l: ["x".repeat(201)] }), /at most 200/],
  ["a long name", json({ n: "x".repeat(61), l: ["a"] }), /at most 60 characters/],
  ["a long prefix", json({ n: "a", p: "x".repeat(201), l: ["a"] }), /more than 200 characters/],
  ["a template without place", json({ n: "a", t: ["a"], l: ["a"] }), /has no \{\}/],
  [
    "too many labels",
    packed(JSON.stringify({ l: Array.from({ length: 1001 }, (_, n) => `${n}`) })),
    /1,000 labels/,
  ],
  [
    "too many templates",
    packed(JSON.stringify({ t: Array(101).fill("{}"), l: ["a"] })),
    /at most 100 templates/,
  ],
])) {
  test(`a hostile link is refused with one sentence: ${what}`, () => {
    assert.throws(() => decodeLink(value), { name: "LabelError", message });
    assert.equal(Object.hasOwn(Object.prototype, "labels"), false);
  });
}

test("random values are refused, or give a list within the limits", () => {
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const good = packed(JSON.stringify({ n: "Fruit", l: ["pear", "fig", "apple", "banana"] }));
  for (let n = 0; n < 3000; n++) {
    const characters = [...good];
    for (let changes = 1 + Math.floor(random() * 3); changes > 0; changes--) {
      characters[1 + Math.floor(random() * (good.length - 1))] = "aZ09-_"[Math.floor(random() * 6)];
    }
    try {
      assert.ok(decodeLink(characters.join("")).list.labels.length >= 1);
    } catch (error) {
      assert.ok(error instanceof LabelError, String(error));
    }
  }
});

test("inflate gives what deflate was given, at every level", () => {
  let seed = 7;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (const length of [0, 1, 300, 70_000]) {
    for (const letters of [1, 4, 256]) {
      const data = Uint8Array.from({ length }, () => Math.floor(random() * letters));
      for (const options of [{ level: 0 }, { level: 1 }, { level: 9 }, { strategy: 4 }]) {
        const read = inflate(deflateRawSync(data, options), 70_000);
        assert.deepEqual(Buffer.from(read), Buffer.from(data));
      }
    }
  }
  assert.throws(() => inflate(deflateRawSync(new Uint8Array(101)), 100), RangeError);
});
