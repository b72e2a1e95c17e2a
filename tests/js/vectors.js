/** vectors.json, which tests/js/vectors.py writes. */

import { readFileSync } from "node:fs";

export const FOLDER = process.env.VECTORS ?? new URL("../../demo/js/vectors", import.meta.url).pathname;

function read() {
  try {
    return JSON.parse(readFileSync(`${FOLDER}/vectors.json`, "utf8"));
  } catch (error) {
    throw new Error(`${FOLDER}/vectors.json cannot be read (${error.message}): make test-js writes it`);
  }
}

export const VECTORS = read();

/** The cases of a precision that have one of the names. */
export function cases(precision, ...names) {
  return VECTORS.generate[precision].filter(({ name }) => names.length === 0 || names.includes(name));
}
