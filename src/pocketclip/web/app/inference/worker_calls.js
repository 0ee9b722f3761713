// Calls of functions in a worker: one message there, one back.
//
// In the worker, `answerCalls({name: async (values) => ...})`.

import { messageOf } from "../shared/errors.js";
import { InferenceError } from "./errors.js";

/** @import { InferenceErrorCode } from "./errors.js" */

const STOPPED = 5000; // milliseconds: a timer that is later than this was stopped

/** A worker that has ended, or does not answer: it must be started again. */
export class WorkerFailure extends Error {}

/** A worker, and the calls that it has not answered yet. */
export class WorkerCalls {
  /** @param {URL} url of a module of the site */
  constructor(url) {
    this.worker = new Worker(url, { type: "module" });
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
    this.pending = new Map();
    /** @type {WorkerFailure | null} */
    this.failure = null;
    this.next = 0;
    this.worker.addEventListener("message", ({ data }) => this.#receive(data));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      this.fail(event.message || "its script could not be loaded");
    });
    this.worker.addEventListener("messageerror", () => this.fail("a message was damaged"));
  }

  /**
   * Call a function of the worker.
   * @param {string} name
   * @param {Record<string, unknown>} values
   * @param {{transfer?: Transferable[], seconds: number}} options how long it may take; a worker that
   *   takes longer is ended
   * @returns {Promise<any>}
   * @throws {WorkerFailure}
   * @throws {InferenceError} of the function; or an Error
   */
  call(name, values, { transfer = [], seconds }) {
    return new Promise((resolve, reject) => {
      if (this.failure !== null) throw this.failure;
      const id = this.next++;
      this.worker.postMessage({ id, name, values }, transfer);
      const late = () => this.fail(`it did not answer for ${seconds} seconds`);
      const stop = after(1000 * seconds, late);
      this.pending.set(id, {
        resolve: (value) => (stop(), resolve(value)),
        reject: (error) => (stop(), reject(error)),
      });
    });
  }

  /** @param {{id: number, value?: unknown, error?: string, code?: InferenceErrorCode, lost?: string}} answer */
  #receive({ id, value, error, code, lost }) {
    if (lost !== undefined) return this.fail(lost);
    const call = this.pending.get(id);
    this.pending.delete(id);
    if (error === undefined) call?.resolve(value);
    else call?.reject(code === undefined ? new Error(error) : new InferenceError(code, error));
  }

  /**
   * End the worker, which gives back all of its memory; calls that it has not answered fail.
   * @param {string} reason
   */
  fail(reason) {
    this.failure ??= new WorkerFailure(reason);
    this.worker.terminate();
    for (const { reject } of this.pending.values()) reject(this.failure);
    this.pending.clear();
  }
}

/**
 * Call a function after a time in which the page ran: a phone that was locked stops timers and
 * workers alike.
 * @param {number} milliseconds
 * @param {() => void} work
 * @returns {() => void} call it to prevent that
 */
function after(milliseconds, work) {
  let due = 0;
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  const begin = () => {
    due = Date.now() + milliseconds;
    timer = setTimeout(() => (Date.now() - due > STOPPED ? begin() : work()), milliseconds);
  };
  begin();
  return () => clearTimeout(timer);
}

/**
 * In a worker: answer the calls, one after another.
 * @param {Record<string, (values: any) => Promise<{value: unknown, transfer?: Transferable[]}>>} functions
 */
export function answerCalls(functions) {
  let earlier = Promise.resolve();
  self.addEventListener("message", ({ data: { id, name, values } }) => {
    earlier = earlier.then(async () => {
      try {
        const { value, transfer = [] } = await functions[name](values);
        self.postMessage({ id, value }, { transfer });
      } catch (error) {
        const code = error instanceof InferenceError ? error.code : undefined;
        const message = messageOf(error);
        self.postMessage({ id, error: message, code });
      }
    });
  });
}
