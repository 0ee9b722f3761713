// Finds what Python computed for the tests of modules: see module_cases.py.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const folder = process.env["POCKETCLIP_CASES"] ?? "";

/**
 * Why tests against Python are skipped, or false: pytest makes the cases.
 * @type {string | false}
 */
export const skip = existsSync(folder) ? false : "run by pytest, which makes the cases";

/**
 * Return the bytes of a file.
 * @param {...string} path below the folder of cases
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function bytesOf(...path) {
  return new Uint8Array(readFileSync(join(folder, ...path)));
}

/**
 * Return the JSON in a file.
 * @param {...string} path below the folder of cases
 * @returns {any}
 */
export function jsonOf(...path) {
  return JSON.parse(readFileSync(join(folder, ...path), "utf-8"));
}
