import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";

import { MAX_TEXT, cleanText } from "../../src/pocketclip/web/app/inference/clean_text.js";
import { Tokens } from "../../src/pocketclip/web/app/inference/tokens.js";
import { jsonOf, skip } from "./cases.mjs";

const library = new URL("../../src/pocketclip/web/vendor/tokenizers.min.mjs", import.meta.url);
const without = skip || (existsSync(library) ? false : "the package was built without npm");

/** @param {number} length */
async function openTokens(length = 77) {
  return new Tokens(await import(library.href), jsonOf("tokens", "tokenizer.json"), length);
}

test("ids are those of Python, cut and padded", { skip: without }, async () => {
  const tokens = await openTokens();
  const cases = jsonOf("tokens", "tokens.json");
  assert.ok(cases.length > 500);
  const differ = cases.filter((/** @type {any} */ { text, ids, cut }) => {
    const rows = tokens.rows([text]);
    return ids.some((/** @type {number} */ id, /** @type {number} */ i) => {
      return id !== Number(rows.ids[i]) || rows.cut[0] !== cut;
    });
  });
  assert.deepEqual(
    differ.map((/** @type {any} */ { text }) => text.slice(0, 200)),
    [],
  );
});

test("rows of several texts stand one behind the other", { skip: without }, async () => {
  const tokens = await openTokens(5);
  const { ids, cut } = tokens.rows(["", "a dog", "a dog and a cat"]);
  assert.deepEqual([...ids].map(Number), [
    ...[49406, 49407, 0, 0, 0],
    ...[49406, 320, 1929, 49407, 0],
    ...[49406, 320, 1929, 537, 49407],
  ]);
  assert.deepEqual(cut, [false, false, true]);
});

test("a hostile text is not read to its end", { skip: without, timeout: 20_000 }, async () => {
  const tokens = await openTokens();
  for (const text of ["a".repeat(1e6), "&".repeat(1e6), "\ufb01’ ".repeat(3e5), "🎉".repeat(5e5)]) {
    assert.deepEqual(tokens.rows([text]).cut, [true]);
  }
});

test("another tokenizer is refused", { skip: without }, async () => {
  await assert.rejects(openTokens(2), /export it again/);
});

test("texts are cleaned as Python does", () => {
  assert.equal(cleanText("It’s “A” &amp;amp; B"), 'It\'s "A" & B');
  assert.equal(cleanText("ＡＢＣ　ﬁ"), "ABC\u3000fi");
  assert.equal(cleanText("a\u0000b\u0093c"), 'ab"c');
  assert.equal(cleanText("\ud83d"), "\ufffd");
  assert.equal(cleanText("&constructor; &#1114112;"), "&constructor; \ufffd");
  assert.equal(cleanText("x".repeat(MAX_TEXT - 1) + "🎉").length, MAX_TEXT - 1);
});
