/** What the two runners have in common: their arguments, lines on standard output, the exit status. */

import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { InputError, IsoformerError } from "./errors.js";

/** The folder of package.json. */
export const HOME = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * Runs a runner: JSON lines on standard output, exit status 0 all passed, 1 a mismatch, 2 it could not be done.
 * @param {string} name of the script
 * @param {readonly string[]} providers that it has; the first is the default
 * @param {(options: { place: string, variants: string[], provider: string }, write: (record: any) => void) => Promise<void>} run
 */
export async function main(name, providers, run) {
  let passed = false;
  try {
    const usage = `node ${name} PACKAGE [--variant NAME]... [--provider ${providers.join("|")}]`;
    await run(readArguments(usage, providers), (record) => {
      process.stdout.write(`${JSON.stringify(record)}\n`);
      passed = record.passed;
    });
    process.exitCode = passed ? 0 : 1;
  } catch (error) {
    if (!(error instanceof IsoformerError) && !isMissing(error)) throw error;
    process.stderr.write(`isoformer: ${isMissing(error) ? missing(error) : /** @type {Error} */ (error).message}\n`);
    process.exitCode = 2;
  }
}

/**
 * @param {string} usage
 * @param {readonly string[]} providers
 */
function readArguments(usage, providers) {
  /** @type {any} */
  const options = { variant: { type: "string", multiple: true, default: [] }, provider: { type: "string", default: providers[0] } };
  let parsed;
  try {
    parsed = parseArgs({ options, allowPositionals: true });
  } catch (error) {
    throw new InputError(`${/** @type {Error} */ (error).message.split(/[.\n]/)[0]}: ${usage}`);
  }
  const { values, positionals } = /** @type {any} */ (parsed);
  if (positionals.length !== 1) throw new InputError(`give one package: ${usage}`);
  if (!providers.includes(values.provider)) throw new InputError(`provider ${values.provider} is not one of ${providers.join(", ")}`);
  return { place: positionals[0], variants: values.variant, provider: values.provider };
}

/** @param {any} error */
function isMissing(error) {
  return error?.code === "ERR_MODULE_NOT_FOUND" || error?.cause?.code === "ERR_MODULE_NOT_FOUND";
}

/** @param {any} error */
function missing(error) {
  const name = /'([^']+)'/.exec((error.cause ?? error).message)?.[1] ?? "an npm package";
  return `${name} is not installed: npm ci --ignore-scripts --prefix ${HOME}`;
}

/**
 * The version of an npm package as package.json pins it.
 * @param {string} name
 */
export function pinned(name) {
  const { dependencies, devDependencies } = JSON.parse(readFileSync(`${HOME}/package.json`, "utf8"));
  return (dependencies[name] ?? devDependencies[name]).replace(/^[^\d]*/, "");
}
