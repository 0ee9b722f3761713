import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { DamagedError, readWhole } from "../../src/pocketclip/web/app/inference/read_whole.js";
import { Sha256, sha256 } from "../../src/pocketclip/web/app/inference/sha256.js";
import { cosine, percentile, Recent } from "../../src/pocketclip/web/app/inference/stats.js";
import { WorkerCalls, WorkerFailure } from "../../src/pocketclip/web/app/inference/worker_calls.js";

/** @param {Uint8Array} bytes */
const expected = (bytes) => createHash("sha256").update(bytes).digest("hex");

/**
 * @param {Uint8Array} bytes
 * @param {number} [piece]
 */
const streamOf = (bytes, piece = 7) =>
  /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (
    new ReadableStream({
      start(controller) {
        for (let i = 0; i < bytes.length; i += piece) {
          controller.enqueue(new Uint8Array(bytes.subarray(i, i + piece)));
        }
        controller.close();
      },
    })
  );

test("SHA-256 equals Node's at every length around the borders of blocks", async () => {
  for (let length = 0; length <= 200; length++) {
    const bytes = new Uint8Array(randomBytes(length));
    assert.equal(new Sha256().update(bytes).hex(), expected(bytes));
    for (const piece of [1, 55, 63, 64, 65]) {
      const hash = new Sha256();
      for (let i = 0; i < length; i += piece) hash.update(bytes.subarray(i, i + piece));
      assert.equal(hash.hex(), expected(bytes), `${length} bytes in pieces of ${piece}`);
    }
  }
  const large = new Uint8Array(randomBytes((1 << 23) + 13)); // more than is hashed at once
  assert.equal(await sha256(large, { subtle: null }), expected(large));
  assert.equal(await sha256(large), expected(large));
});

test("a download is inflated, and found out by its content", async () => {
  const bytes = new Uint8Array(randomBytes(1000));
  const packed = gzipSync(bytes);
  const promised = { bytes: bytes.length, gzip: true };
  /** @type {[number, boolean][]} */
  const seen = [];
  const read = await readWhole(streamOf(packed), promised, (...far) => seen.push(far));
  assert.deepEqual(read, bytes);
  assert.deepEqual(seen.at(-1), [packed.length, true]);
  // The host declared the compression itself, and the browser has inflated it.
  assert.deepEqual(await readWhole(streamOf(bytes), promised), bytes);
  assert.deepEqual(await readWhole(streamOf(packed, 1), promised), bytes);
});

test("a download that is not what was promised is refused while it is read", async () => {
  const bomb = gzipSync(new Uint8Array(1 << 24));
  const whole = gzipSync(randomBytes(5000));
  for (const [data, bytes] of /** @type {[Uint8Array, number][]} */ ([
    [bomb, 1000],
    [whole, 5001],
    [whole, 4999],
    [whole.subarray(0, 3000), 5000],
    [new Uint8Array([...whole.subarray(0, 2000), ...randomBytes(2000)]), 5000],
    [new Uint8Array(0), 5000],
    [new Uint8Array([0x1f]), 5000],
    [new Uint8Array(4000), 5000],
  ])) {
    await assert.rejects(readWhole(streamOf(data, 512), { bytes, gzip: true }), DamagedError);
  }
  await assert.rejects(readWhole(streamOf(whole), { bytes: 5000, gzip: false }), DamagedError);
});

test("a connection that breaks is not the content's fault", async () => {
  const packed = gzipSync(randomBytes(5000));
  const broken = new TypeError("network error");
  let sent = false;
  const stream = new ReadableStream({
    pull(controller) {
      if (sent) controller.error(broken);
      else controller.enqueue(new Uint8Array(packed.subarray(0, 3000)));
      sent = true;
    },
  });
  await assert.rejects(readWhole(stream, { bytes: 5000, gzip: true }), (e) => e === broken);
});

test("figures over the newest values", () => {
  const recent = new Recent(4);
  assert.ok(Number.isNaN(recent.median));
  for (const value of [100, 4, 1, 3, 2]) recent.add(value);
  assert.equal(recent.median, 2.5);
  assert.equal(percentile([1, 2, 3, 4, 5], 95), 4.8);
  assert.equal(cosine([1, 0], [2, 0]), 1);
  assert.ok(Number.isNaN(cosine([1], [1, 2])));
});

class FakeWorker extends EventTarget {
  ended = false;
  postMessage() {}
  terminate() {
    this.ended = true;
  }

  /** @param {unknown} data */
  answer(data) {
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
  }
}

/** @param {import("node:test").TestContext} context */
function fakeCalls(context) {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const before = globalThis.Worker;
  globalThis.Worker = /** @type {any} */ (FakeWorker);
  context.after(() => (globalThis.Worker = before));
  const calls = new WorkerCalls(new URL("file:///worker.js"));
  return { calls, worker: /** @type {FakeWorker} */ (/** @type {unknown} */ (calls.worker)) };
}

test("a worker that does not answer is ended, and all its calls fail", async (context) => {
  const { calls, worker } = fakeCalls(context);
  const first = calls.call("a", {}, { seconds: 10 });
  const second = calls.call("b", {}, { seconds: 30 });
  worker.answer({ id: 0, value: 5 });
  assert.equal(await first, 5);
  context.mock.timers.tick(29_999);
  assert.equal(worker.ended, false);
  context.mock.timers.tick(1);
  assert.equal(worker.ended, true);
  await assert.rejects(second, WorkerFailure);
  await assert.rejects(calls.call("c", {}, { seconds: 1 }), /did not answer for 30 seconds/);
});

test("a worker that was stopped with its page gets its time again", async (context) => {
  const { calls, worker } = fakeCalls(context);
  const call = calls.call("a", {}, { seconds: 10 });
  context.mock.timers.setTime(3_600_000); // the phone is unlocked, and its timers go on
  context.mock.timers.tick(10_000);
  worker.answer({ id: 0, error: "no picture", code: "bad_image" });
  await assert.rejects(call, { name: "InferenceError", code: "bad_image" });
  assert.equal(worker.ended, false);
});
