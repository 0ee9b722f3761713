import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Square,
  cropOf,
  toSquare,
  toTensor,
} from "../../src/pocketclip/web/app/inference/pixels.js";
import { bytesOf, jsonOf, skip } from "./cases.mjs";

/** @type {import("../../src/pocketclip/web/app/inference/pixels.js").Preprocess} */
const PLAIN = { size: 4, interpolation: "bilinear", mean: [0, 0, 0], std: [1, 1, 1] };

test("squares and tensors equal Python's to the bit", { skip }, () => {
  for (const one of jsonOf("pixels", "pixels.json")) {
    const { name, width, height } = one;
    const square = toSquare(bytesOf("pixels", `${name}.rgba`), width, height, one);
    const what = `${width} x ${height} to ${one.size}, ${one.interpolation}`;
    assert.deepEqual(new Uint8Array(square), bytesOf("pixels", `${name}.square`), what);
    const tensor = toTensor(square, one);
    const expected = bytesOf("pixels", `${name}.tensor`);
    assert.deepEqual(new Uint8Array(tensor.buffer), expected, what);
  }
});

test("strips of some columns give what the whole image gives", () => {
  for (const [width, height] of /** @type {const} */ ([
    [90, 40],
    [30, 130],
  ])) {
    const rgba = Uint8Array.from({ length: 4 * width * height }, (_, i) => (i * i) % 251);
    const whole = toSquare(rgba, width, height, PLAIN);
    const square = new Square(width, height, PLAIN);
    const { firstColumn, endColumn } = square;
    const wide = endColumn - firstColumn;
    for (let top = 0; top < height; top += 7) {
      const rows = Math.min(7, height - top);
      const strip = new Uint8Array(4 * wide * rows);
      for (let row = 0; row < rows; row++) {
        const from = 4 * ((top + row) * width + firstColumn);
        strip.set(rgba.subarray(from, from + 4 * wide), 4 * wide * row);
      }
      square.add(strip, top, firstColumn, wide);
    }
    assert.deepEqual(square.finish(), whole);
  }
});

test("the crop is in the middle, halves go to the even pixel", () => {
  assert.deepEqual(cropOf(640, 480, 256), { width: 341, height: 256, left: 42, top: 0 });
  assert.deepEqual(cropOf(480, 640, 256), { width: 256, height: 341, left: 0, top: 42 });
  assert.deepEqual(cropOf(67, 64, 64), { width: 67, height: 64, left: 2, top: 0 });
  assert.deepEqual(cropOf(10, 10, 4), { width: 4, height: 4, left: 0, top: 0 });
});

test("a tensor takes pixels with alpha, and is filled again", () => {
  const rgba = Uint8Array.from({ length: 64 }, (_, i) => i);
  const rgb = rgba.filter((_, i) => i % 4 !== 3);
  const out = new Float32Array(48);
  assert.equal(toTensor(rgba, PLAIN, out), out);
  assert.deepEqual(out, toTensor(rgb, PLAIN));
});

test("what is no image is refused", () => {
  assert.throws(() => toSquare(new Uint8Array(3), 1, 1, PLAIN), /no RGBA image of 1 x 1/);
  assert.throws(() => new Square(0, 5, PLAIN), /no pixels/);
  assert.throws(() => toTensor(new Uint8Array(5), PLAIN), /no image of side 4/);
});
