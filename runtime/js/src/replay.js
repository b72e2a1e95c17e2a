/** A package's golden vectors through any engine, as the runners' protocol has it: one record a comparison. */

import { openGraph } from "./engine.js";
import { IsoformerError, firstLine } from "./errors.js";
import { isCacheInt8, load, runsOn } from "./package.js";
import { count, toNumbers } from "./tensors.js";

/**
 * @typedef {import("./engine.js").Engine} Engine
 * @typedef {import("./engine.js").ProviderName} ProviderName
 * @typedef {import("./package.js").Package} Package
 * @typedef {import("./tensors.js").Tensor} Tensor
 *
 * @typedef {{
 *   runtime: string, version: string, provider: string, precision: string, graph: string, variant: string | null,
 *   check: string, case: string, output: string, values: number, error: number | null, bound: number, note: string,
 *   passed: boolean,
 * }} Comparison
 * @typedef {{ shape: number[], bound: number }} Expected
 * @typedef {{ package: Package, variant: string | null, precision: string, golden: Record<string, Record<string, Expected>> }} Candidate
 */

const CANONICAL = "canonical";

/**
 * Every comparison of the package, and the summary at the end.
 * @param {string | URL} place
 * @param {Engine} engine
 * @param {{ runtime: string, provider?: ProviderName, called?: string, variants?: readonly string[] }} options
 *   called: what the provider is called in the records. variants: names, `canonical` for the canonical file; none is all
 * @returns {AsyncGenerator<Comparison | { passed: boolean, cases: number, values: number, failures: string[] }>}
 * Throws PackageError for a broken package or an unknown variant.
 */
export async function* replay(place, engine, { runtime, provider = "cpu", called = provider, variants = [] }) {
  const summary = { passed: true, cases: 0, values: 0, failures: /** @type {string[]} */ ([]) };
  let compared = 0;
  for (const candidate of candidates(await load(place), variants, provider)) {
    const { package: package_, variant, precision } = candidate;
    const about = { runtime, version: engine.version, provider: called, precision, graph: package_.graph, variant, check: "golden" };
    for await (const comparison of run(candidate, engine, provider)) {
      const record = { ...about, ...comparison };
      compared += 1;
      summary.values += record.values;
      if (!record.passed) {
        const where = [variant ?? CANONICAL, record.case, record.output].join(", ");
        summary.failures.push(`${package_.graph}, ${where}: ${record.note || `${record.error} over ${record.bound}`}`);
      }
      yield record;
    }
    summary.cases += Object.keys(candidate.golden).length;
  }
  yield { ...summary, passed: compared > 0 && summary.failures.length === 0 };
}

/**
 * What can be replayed from vectors, with the data sets and bounds of each.
 * @param {Package} whole
 * @param {readonly string[]} wanted
 * @param {ProviderName} [provider] without variants that are wanted, WebGPU has one graph: the one made for it, if any
 * @returns {Candidate[]}
 */
export function candidates(whole, wanted, provider = "cpu") {
  const known = new Set([CANONICAL, ...Object.values(whole.graphs).flatMap((part) => Object.keys(part.variants))]);
  const unknown = wanted.filter((name) => !known.has(name));
  if (unknown.length) throw new IsoformerError(`${whole.path} has no variant ${unknown.join(", ")}; it has ${[...known].join(", ")}`);
  /** @type {Candidate[]} */
  const found = [];
  for (const part of Object.values(whole.graphs)) {
    const { golden, precision } = part.manifest;
    found.push({ package: part, variant: null, precision, golden });
    for (const [variant, records] of Object.entries(part.variants)) {
      if (!runsOn(records, provider) && !(provider === "webgpu" && wanted.includes(variant))) continue;
      if (isCacheInt8(records)) continue;
      const own = records.golden ?? (records.tolerances && bounded(golden, records.tolerances));
      if (own) found.push({ package: part, variant, precision: records.precision, golden: own });
    }
  }
  if (wanted.length > 0) return found.filter(({ variant }) => wanted.includes(variant ?? CANONICAL));
  return provider === "webgpu" ? found.filter(({ package: part, variant }) => variant === part.fastest(provider)) : found;
}

/**
 * The graph's data sets with a variant's own bounds.
 * @param {Record<string, Record<string, Expected>>} golden
 * @param {Record<string, { absolute: number }>} tolerances
 */
function bounded(golden, tolerances) {
  const one = (/** @type {Record<string, Expected>} */ outputs) =>
    Object.fromEntries(Object.entries(outputs).map(([name, said]) => [name, { ...said, bound: tolerances[name].absolute }]));
  return Object.fromEntries(Object.entries(golden).map(([set, outputs]) => [set, one(outputs)]));
}

/**
 * @param {Candidate} candidate
 * @param {Engine} engine
 * @param {ProviderName} provider
 * @returns {AsyncGenerator<Pick<Comparison, "case" | "output" | "values" | "error" | "bound" | "note" | "passed">>}
 */
async function* run({ package: package_, variant, golden }, engine, provider) {
  let session;
  try {
    session = await openGraph(engine, package_, { provider, variant, tuned: false });
  } catch (error) {
    if (!isComputation(error)) throw error;
    for (const name of Object.keys(golden)) yield failed(name, error);
    return;
  }
  const { Tensor } = engine.ort;
  const elsewhere = [...(engine.elsewhere?.(session) ?? [])].map((one) => one.join(" ")).join(", ");
  const where = elsewhere ? { elsewhere } : {};
  for (const [name, expected] of Object.entries(golden)) {
    const [inputs, references] = [await package_.vectors(name, "input"), await package_.vectors(name, "output")];
    const feeds = Object.fromEntries(
      Object.entries(inputs).map(([key, array]) => [key, new Tensor(/** @type {any} */ (array.type), /** @type {any} */ (array.data), array.dims)]),
    );
    let outputs;
    try {
      outputs = /** @type {Record<string, Tensor>} */ (/** @type {unknown} */ (await session.run(/** @type {any} */ (feeds), Object.keys(references))));
    } catch (error) {
      yield failed(name, error);
      continue;
    }
    for (const [output, reference] of Object.entries(references)) {
      if (!(output in expected)) continue;
      const { bound } = expected[output];
      const values = settled(package_, outputs, references, output);
      yield { case: name, output, bound, ...where, ...compare(values ?? [outputs[output], reference], bound) };
    }
  }
  await session.release();
}

/** @param {unknown} error whether the runtime, not the package on the disk, is at fault */
function isComputation(error) {
  return error instanceof IsoformerError && error.cause !== undefined;
}

/** @param {string} name @param {unknown} error */
function failed(name, error) {
  return { case: name, output: "run", values: 0, error: null, bound: 0, note: firstLine(error), passed: false };
}

/**
 * What an output of places chose, in the candidate and in the reference; null for any other output.
 * @param {Package} package_
 * @param {Record<string, Tensor>} outputs
 * @param {Record<string, Tensor>} references
 * @param {string} name
 * @returns {[Tensor, Tensor] | null}
 */
function settled(package_, outputs, references, name) {
  const spec = package_.signature.outputs.find((one) => one.name === name);
  if (spec?.kind !== "choices" || spec.along === null) return null;
  return [chosen(outputs[name], outputs[spec.along]), chosen(references[name], references[spec.along])];
}

/**
 * The values at `places` (…, k) on the last axis of `scores`; NaN for a place out of range or taken twice in a row.
 * @param {Tensor} places
 * @param {Tensor} scores
 * @returns {Tensor}
 */
export function chosen(places, scores) {
  const [width, size] = [places.dims.at(-1) ?? 1, scores.dims.at(-1) ?? 1];
  const values = toNumbers(scores);
  const taken = toNumbers(places);
  const data = taken.map((place, index) => {
    const row = Math.floor(index / width);
    const before = taken.subarray(row * width, index);
    return place < 0 || place >= size || before.includes(place) ? NaN : values[row * size + place];
  });
  return { type: "float64", dims: places.dims, data };
}

/**
 * The largest |candidate - reference|, in float64.
 * @param {[Tensor, Tensor]} arrays candidate and reference
 * @param {number} bound
 * @returns {{ values: number, error: number | null, note: string, passed: boolean }}
 */
export function compare([candidate, reference], bound) {
  if (String(candidate.dims) !== String(reference.dims)) {
    const note = `the shape is (${candidate.dims.join(", ")}), not (${reference.dims.join(", ")})`;
    return { values: 0, error: null, note, passed: false };
  }
  const [found, wanted] = [toNumbers(candidate), toNumbers(reference)];
  let error = 0;
  for (let i = 0; i < found.length; i += 1) {
    const off = Math.abs(found[i] - wanted[i]);
    if (!Number.isFinite(found[i]) || !Number.isFinite(off)) return { values: found.length, error: null, note: "a value is not finite", passed: false };
    if (off > error) error = off;
  }
  const values = count(reference.dims);
  return { values, error, note: "", passed: values > 0 && error <= bound };
}
