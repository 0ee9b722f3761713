// What a browser lacks is said in one sentence each, with what to do.

import assert from "node:assert/strict";
import { test } from "node:test";

import { problemsOf } from "../../src/pocketclip/web/app/shared/capability_texts.js";

const everything = {
  secure: true,
  camera: true,
  webgpu: true,
  threads: true,
  cache: true,
  subtle: true,
  serviceWorker: true,
  inflate: true,
  ios: false,
};
const nothing = Object.fromEntries(Object.keys(everything).map((name) => [name, false]));

test("a browser that can do everything has no problem", () => {
  assert.deepEqual(problemsOf(everything, { server: true }), []);
});

test("over plain http, each sentence says what to do", () => {
  const plain = { ...everything, ...nothing, inflate: true };
  const found = problemsOf(plain, { server: true });
  const names = found.map((one) => one.name);
  assert.deepEqual(names, ["camera", "cache", "webgpu", "threads", "serviceWorker"]);
  for (const { sentence } of found) {
    assert.match(sentence, /start the server with --tls and open its https address/);
    assert.match(sentence, /^[A-Z].*\.$/);
  }
  for (const { sentence } of problemsOf(plain, { server: false })) {
    assert.match(sentence, /open this page over https/);
    assert.doesNotMatch(sentence, /--tls/);
  }
});

test("over https nobody is told to use https", () => {
  const old = { ...everything, ...nothing, secure: true };
  const found = problemsOf(old, { server: true });
  assert.equal(found.length, 6);
  for (const { sentence } of found) assert.doesNotMatch(sentence, /https/);
});

test("on iOS one thread is right, and no problem", () => {
  const phone = { ...everything, ios: true, threads: false };
  assert.deepEqual(problemsOf(phone, { server: true }), []);
});
