import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Steady,
  backgroundFor,
  buildClassifier,
  emphasis,
  scores,
} from "../../src/pocketclip/web/app/inference/zero_shot.js";
import { jsonOf, skip } from "./cases.mjs";

/**
 * @param {readonly number[]} a
 * @param {readonly number[]} b
 */
function mostApart(a, b) {
  assert.equal(a.length, b.length);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
}

/** @param {...number} values */
const vector = (...values) => Float32Array.from(values);

/**
 * Return a classifier of labels with one embedding each.
 * @param {Record<string, Float32Array>} rows
 */
function classifierOf(rows) {
  const groups = Object.keys(rows).map((label) => ({ label, texts: [label] }));
  return buildClassifier(groups, Object.values(rows));
}

test("classifiers, order and probabilities are those of Python", { skip }, () => {
  for (const one of jsonOf("zero_shot", "zero_shot.json")) {
    const groups = one.labels.map((/** @type {string} */ label) => {
      return { label, texts: new Array(one.prompts).fill(label) };
    });
    const texts = one.texts.map((/** @type {number[]} */ row) => Float32Array.from(row));
    const classifier = buildClassifier(groups, texts);
    classifier.rows.forEach((row, i) => {
      assert.ok(mostApart([...row], one.classifier[i]) < 1e-7);
    });
    one.images.forEach((/** @type {number[]} */ image, /** @type {number} */ i) => {
      const { ranked } = scores(Float32Array.from(image), classifier, one.scale);
      /** @type {[string, number][]} */
      const expected = one.ranked[i];
      assert.deepEqual(
        ranked.map(({ label }) => label),
        expected.map(([label]) => label),
      );
      const probabilities = ranked.map(({ probability }) => probability);
      assert.ok(
        mostApart(
          probabilities,
          expected.map(([, p]) => p),
        ) < 1e-6,
      );
    });
  }
});

test("equal labels keep their order", () => {
  const row = vector(1, 0);
  const { ranked } = scores(row, classifierOf({ b: row, a: row, c: row }), 100);
  assert.deepEqual(
    ranked.map(({ label }) => label),
    ["b", "a", "c"],
  );
  assert.ok(Math.abs(ranked[2].probability - 1 / 3) < 1e-12);
});

test("none of these takes part as one label, with the background prompt that fits best", () => {
  const classifier = classifierOf({ cup: vector(1, 0, 0), pen: vector(0, 1, 0) });
  const background = [vector(0, 0, 1), vector(0.6, 0, 0.8)];
  const some = scores(vector(1, 0, 0), classifier, 2, { background });
  assert.equal(some.none, false);
  assert.ok(Math.abs(/** @type {number} */ (some.noneCosine) - 0.6) < 1e-6);
  const sum = Math.exp(2) + Math.exp(0) + Math.exp(1.2);
  assert.ok(mostApart([some.ranked[0].probability], [Math.exp(2) / sum]) < 1e-6);
  assert.ok(mostApart([Number(some.noneProbability)], [Math.exp(1.2) / sum]) < 1e-6);
  const none = scores(vector(0, 0, 1), classifier, 2, { background });
  assert.equal(none.none, true);
  assert.ok(Number(none.noneProbability) > none.ranked[0].probability);
});

test("without background prompts there is no such thing as none of these", () => {
  const classifier = classifierOf({ cup: vector(1, 0) });
  for (const background of [null, []]) {
    const found = scores(vector(0, 1), classifier, 100, { background });
    assert.equal(found.none, false);
    assert.equal(found.noneProbability, null);
    assert.equal(found.ranked[0].probability, 1);
  }
});

test("no labels give no scores", () => {
  assert.deepEqual(scores(vector(1, 0), classifierOf({}), 100).ranked, []);
});

test("a background prompt that names a label is left out", () => {
  const texts = ["a photo", "a typewriter", "an x-ray of a hand", "a boxing match"];
  assert.deepEqual(backgroundFor(["Typewriters", "the cat"], texts, texts), [
    "a photo",
    "an x-ray of a hand",
    "a boxing match",
  ]);
  assert.deepEqual(backgroundFor(["left hand"], texts, [1, 2, 3, 4]), [1, 2, 4]);
  assert.deepEqual(backgroundFor(["glass"], ["a stained glass window", "a gla"], [1, 2]), [2]);
});

test("what does not fit together, or is no number, is refused", () => {
  const classifier = classifierOf({ cup: vector(1, 0) });
  assert.throws(() => scores(vector(1, 0, 0), classifier, 100), /different models/);
  assert.throws(() => scores(vector(NaN, 0), classifier, 100), /not finite/);
  assert.throws(() => classifierOf({ cup: vector(0, 0) }), /of "cup" is zero/);
  assert.throws(() => classifierOf({ cup: vector(NaN, 0) }), /of "cup" is zero or not finite/);
  assert.throws(() => buildClassifier([{ label: "a", texts: ["a", "b"] }], []), /for 2 prompts/);
});

test("bold is what fits well and nearly best, and nothing if it is none of the labels", () => {
  assert.deepEqual(emphasis(0.3, 0.3), { bold: true, level: 1 });
  assert.equal(emphasis(0.286, 0.3).bold, true);
  assert.equal(emphasis(0.284, 0.3).bold, false);
  assert.equal(emphasis(0.219, 0.219).bold, false);
  assert.equal(emphasis(0.3, 0.3, true).bold, false);
  assert.equal(emphasis(0.1, 0.3).level, 0);
  assert.equal(emphasis(0.185, 0.3).level, 0.5);
});

test("frames are averaged by time", () => {
  const steady = new Steady(0.25);
  const [a, b] = [vector(1, 0), vector(0, 1)];
  assert.equal(steady.next(a, 1000), a);
  const mixed = steady.next(b, 1250);
  const weight = 1 - Math.exp(-1);
  const length = Math.hypot(1 - weight, weight);
  assert.ok(mostApart([...mixed], [(1 - weight) / length, weight / length]) < 1e-6);
  assert.ok(steady.next(b, 9000)[1] > 0.999999);
  steady.reset();
  assert.equal(steady.next(a, 9001), a);
  assert.equal(new Steady(0).next(b, 0), b);
  const other = vector(1, 0, 0);
  assert.equal(steady.next(other, 9002), other);
});
