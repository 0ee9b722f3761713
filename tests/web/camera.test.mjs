// The pure modules of the camera page.

import assert from "node:assert/strict";
import test from "node:test";

import { Announcer } from "../../src/pocketclip/web/app/camera/announcer.js";
import { Figures } from "../../src/pocketclip/web/app/camera/figures.js";
import { startProblem, problemOf } from "../../src/pocketclip/web/app/camera/problems.js";
import { rowsOf, spoken, tableOf } from "../../src/pocketclip/web/app/camera/rows.js";
import { percent } from "../../src/pocketclip/web/app/models/scored.js";

test("rates are those of frames, and not of the encoder", () => {
  const figures = new Figures();
  assert.equal(figures.rate(0), null);
  assert.equal(figures.median, null);
  for (let i = 0; i < 40; i++) figures.addFrame(i, i * 33);
  for (let i = 0; i < 10; i++) figures.addResult(i < 9 ? 20 : 90, i * 130);
  assert.ok(Math.abs((figures.rate(1200) ?? 0) - 1000 / 130) < 1e-9);
  assert.ok(Math.abs((figures.sourceRate(1300) ?? 0) - 1000 / 33) < 1e-9);
  assert.equal(figures.median, 20);
  assert.ok((figures.p95 ?? 0) > 20);
  assert.equal(figures.frames, 10);
  assert.equal(figures.rate(9000), null); // nothing lately
  figures.interrupt();
  assert.equal(figures.rate(1200), null);
  assert.equal(figures.median, 20);
});

test("frames that were missed count as frames of the source", () => {
  const figures = new Figures();
  figures.addFrame(10, 0);
  figures.addFrame(40, 1000);
  assert.equal(figures.sourceRate(1000), 30);
  figures.addFrame(1, 1100); // another video
  assert.equal(figures.sourceRate(1100), null);
});

test("a label is spoken when it stays, and not too often", () => {
  const announcer = new Announcer();
  assert.equal(announcer.next("cup", 0), null);
  assert.equal(announcer.next("cup", 30), "cup");
  assert.equal(announcer.next("pen", 500), null);
  assert.equal(announcer.next("pen", 530), null); // too early
  assert.equal(announcer.next("pen", 2600), "pen");
  assert.equal(announcer.next("pen", 9000), null); // again the same
  assert.equal(announcer.next("cup", 9030), null); // flashes by
  assert.equal(announcer.next("pen", 9060), null);
  assert.equal(announcer.next("mug", 9090, { final: true }), "mug");
});

/** @param {[string, number, number | null][]} labels */
const ranked = (labels) =>
  labels.map(([label, probability, cosine]) => ({ label, probability, cosine }));

test("labels that fit are bold, and those close to the best", () => {
  const rows = rowsOf({
    ranked: ranked([
      ["cup", 0.6, 0.3],
      ["mug", 0.3, 0.29],
      ["pen", 0.1, 0.25],
    ]),
    none: false,
    noneProbability: 0.2,
  });
  assert.deepEqual(
    rows.map((row) => [row.label, row.bold]),
    [
      ["cup", true],
      ["mug", true],
      ["None of these", false],
      ["pen", false],
    ],
  );
  assert.equal(spoken(rows), "cup");
});

test("none of these comes first where it wins, and is alone bold", () => {
  const labels = ranked([["None of these", 0.4, 0.3]]);
  const rows = rowsOf({ ranked: labels, none: true, noneProbability: 0.6 });
  assert.deepEqual(
    rows.map((row) => [row.key, row.bold]),
    [
      ["none", true],
      ["label None of these", false],
    ],
  );
});

test("a label set has probabilities only", () => {
  const labels = ranked([
    ["kiwi", 0.9, null],
    ["fig", 0.1, null],
  ]);
  const rows = rowsOf({ ranked: labels, none: false });
  assert.deepEqual(
    rows.map((row) => row.bold),
    [true, false],
  );
  const [first] = rowsOf({ ranked: labels, none: true });
  assert.deepEqual([first?.label, first?.probability], ["None of these", null]);
  assert.deepEqual(tableOf(rows)[1], ["kiwi", "0.900000", ""]);
});

test("a weak label is spoken as one", () => {
  const rows = rowsOf({ ranked: ranked([["cup", 1, 0.1]]), none: false });
  assert.equal(spoken(rows), "Perhaps cup");
  assert.equal(spoken([]), "");
});

test("no probability is rounded to what it is not", () => {
  assert.equal(percent(1), "100 %");
  assert.equal(percent(0.9999), ">99 %");
  assert.equal(percent(0.42), "42 %");
  assert.equal(percent(0.0001), "<1 %");
  assert.equal(percent(0), "0 %");
});

test("every error of a camera has its sentence", () => {
  const codes = {
    NotAllowedError: "denied",
    NotFoundError: "none",
    OverconstrainedError: "none",
    NotReadableError: "busy",
    AbortError: "failed",
  };
  for (const [name, code] of Object.entries(codes)) {
    assert.equal(startProblem(new DOMException("no", name)).code, code);
  }
  assert.equal(startProblem("no error").code, "failed");
  for (const code of ["unplugged", "screen_ended", "not_image", "not_video"]) {
    assert.equal(problemOf(code).code, code);
    assert.match(problemOf(code).title, /\.$/);
  }
});
