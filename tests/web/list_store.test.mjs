import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { makeList } from "../../src/pocketclip/web/app/labels/label_list.js";
import {
  currentOf,
  distinctName,
  forgetAll,
  forgetList,
  freeName,
  keepCurrent,
  keepList,
  keepLists,
  ownList,
  ownLists,
  renameList,
} from "../../src/pocketclip/web/app/labels/list_store.js";
import { save } from "../../src/pocketclip/web/app/shared/storage.js";

const fruit = makeList({ name: "Fruit", labels: ["pear"] });
const tools = makeList({ name: "Tools", labels: ["saw"] });
const names = () => ownLists().map((one) => one.name);

beforeEach(() => {
  forgetAll();
  keepList(fruit);
  keepList(tools);
});

test("a list is kept in place of one with the same name, without case", () => {
  keepList({ ...fruit, name: "FRUIT", labels: ["fig"] });
  assert.deepEqual(names(), ["FRUIT", "Tools"]);
  assert.deepEqual(ownList("fruit")?.labels, ["fig"]);
});

test("a list is deleted, and comes back at its place", () => {
  const position = forgetList("fruit");
  assert.deepEqual(names(), ["Tools"]);
  keepList(fruit, position);
  assert.deepEqual(names(), ["Fruit", "Tools"]);
});

test("several lists are kept, or none of them", () => {
  const many = Array.from({ length: 198 }, (_, n) => makeList({ name: `List ${n}` }));
  assert.throws(() => keepLists([...many, makeList({ name: "One more" })]), /you have 2: delete/);
  assert.deepEqual(names(), ["Fruit", "Tools"]);
  keepLists(many);
  assert.equal(names().length, 200);
  keepLists([{ ...fruit, labels: ["fig"] }]); // in place of one that is there
  assert.deepEqual(ownList("fruit")?.labels, ["fig"]);
});

test("names are taken once, by presets too", () => {
  assert.throws(() => freeName("tools", []), /There is a list “tools” already/);
  assert.throws(() => freeName("Desk Items", ["Desk items"]), /already/);
  assert.throws(() => freeName("  ", []), /needs a name/);
  assert.equal(freeName("TOOLS", [], "Tools"), "TOOLS");
  assert.equal(renameList("Fruit", " Plants "), "Plants");
  assert.deepEqual(names(), ["Plants", "Tools"]);
  assert.equal(distinctName("tools", ["tools (2)"]), "tools (3)");
  assert.equal(distinctName("new", []), "new");
});

test("damaged lists are left out, and the others stay", () => {
  for (const stored of ["text", 5, null, { length: 1 }]) {
    save("labels.own", stored);
    assert.deepEqual(ownLists(), []);
  }
  save("labels.own", [fruit, null, { name: "x", labels: [1] }, { ...tools, html: "" }, tools]);
  assert.deepEqual(names(), ["Fruit", "Tools"]);
});

test("what a page had chosen comes back, without what is damaged", () => {
  keepCurrent("camera", { list: fruit, base: "Fruit", set: null });
  assert.deepEqual(currentOf("camera"), { list: fruit, base: "Fruit", set: null });
  assert.equal(currentOf("classify"), null);
  save("labels.current.camera", { list: { labels: "x" }, base: 7, set: {} });
  assert.deepEqual(currentOf("camera"), { list: null, base: null, set: null });
});
