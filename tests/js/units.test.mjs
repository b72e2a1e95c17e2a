/** Pieces by themselves: no package, no browser. */

import assert from "node:assert/strict";
import { mkdtemp, mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Detokenizer } from "../../runtime/js/src/detokenizer.js";
import { InputError, PackageError } from "../../runtime/js/src/errors.js";
import { Settings } from "../../runtime/js/src/generation.js";
import { checkInputs } from "../../runtime/js/src/inputs.js";
import { readTensor } from "../../runtime/js/src/onnx-file.js";
import { load } from "../../runtime/js/src/package.js";
import { Session } from "../../runtime/js/src/session.js";
import { candidates, chosen, compare } from "../../runtime/js/src/replay.js";
import * as sampling from "../../runtime/js/src/sampling.js";
import { tensor, toNumbers } from "../../runtime/js/src/tensors.js";

const spec = (name, dtype, axes, more = {}) => ({ name, dtype, axes, kind: "value", low: 0, high: null, default: null, along: null, ...more });
const SIGNATURE = {
  inputs: [
    spec("input_ids", "int64", ["batch_size", "length"], { high: 11 }),
    spec("attention_mask", "int64", ["batch_size", "total"], { kind: "mask", default: 1 }),
    spec("past", "float32", ["batch_size", "held", 3]),
  ],
  outputs: [],
  axes: { batch_size: [1, null], length: [1, 7], held: [0, null], total: [1, null] },
  sums: { total: ["held", "length"] },
};

const ids = tensor("int64", [1, 2, 3, 4, 5, 10], [2, 3]);
const past = tensor("float32", Array(2 * 5 * 3).fill(0), [2, 5, 3]);

test("what may be left out is filled in with its default, as large as the sum of its axes", () => {
  const { attention_mask: mask } = checkInputs(SIGNATURE, { input_ids: ids, past });
  assert.deepEqual([mask.type, mask.dims, mask.data.every((x) => x === 1n)], ["int64", [2, 8], true]);
});

test("a mask of another dtype becomes the graph's", () => {
  const mask = tensor("bool", Array.from({ length: 16 }, (_, i) => i % 2), [2, 8]);
  const { attention_mask: made } = checkInputs(SIGNATURE, { input_ids: ids, past, attention_mask: mask });
  assert.equal(made.type, "int64");
  assert.deepEqual([...made.data.slice(0, 3)], [0n, 1n, 0n]);
});

for (const [what, inputs, message] of [
  ["a name that there is not", { input_ids: ids, past, other: ids }, "there is no input other; there are input_ids, attention_mask, past"],
  ["a missing input", { input_ids: ids }, "the input past is missing; it is float32 (batch_size, held, 3)"],
  ["another dtype", { input_ids: tensor("int32", [1], [1, 1]), past }, "input_ids has dtype int32; it is int64 (batch_size, length)"],
  ["another rank", { input_ids: tensor("int64", [1], [1]), past }, "input_ids has 1 axes, (1); it is int64 (batch_size, length)"],
  ["an axis that is too long", { input_ids: tensor("int64", Array(8).fill(0), [1, 8]), past }, "input_ids has length 8; this model takes 7 at most: truncate or split"],
  ["an axis that is too short", { input_ids: tensor("int64", [], [1, 0]), past }, "input_ids has shape (1, 0): length is 0, the least is 1"],
  ["a fixed axis of another size", { input_ids: ids, past: tensor("float32", Array(8).fill(0), [2, 1, 4]) }, "past has shape (2, 1, 4); it is float32 (batch_size, held, 3)"],
  ["two sizes of one axis", { input_ids: tensor("int64", [1], [1, 1]), past }, "past has batch_size 2, but an earlier input has 1"],
  ["an id out of range", { input_ids: tensor("int64", [11], [1, 1]), past: tensor("float32", [], [1, 0, 3]) }, "input_ids holds values from 11 to 11; they go from 0 to 10"],
  ["a mask of other numbers", { input_ids: ids, past, attention_mask: tensor("float32", Array(16).fill(0.5), [2, 8]) }, "attention_mask holds values other than 0 and 1; 1 means that a key takes part"],
  ["an axis that is no sum", { input_ids: ids, past, attention_mask: tensor("int64", Array(14).fill(1), [2, 7]) }, "total is 7; held 5 + length 3 is 8"],
  ["no tensor", { input_ids: [1, 2], past }, "input_ids is no tensor; pass tensor(dtype, values, dims), int64 (batch_size, length)"],
]) {
  test(`refused in one line: ${what}`, () => {
    assert.throws(() => checkInputs(SIGNATURE, inputs), (error) => error instanceof InputError && error.message === message);
  });
}

test("a tensor of the wrong number of values is refused", () => {
  assert.throws(() => tensor("float32", [1, 2], [3]), /2 values do not fill the shape \(3\)/);
});

test("float16 numbers are widened", () => {
  const bits = Uint16Array.from([0x3c00, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x3555]);
  const [one, two, least, most, infinite, third] = toNumbers(tensor("float16", bits, [6]));
  assert.deepEqual([one, two, least, most, infinite], [1, -2, 2 ** -24, 65504, -Infinity]);
  assert.ok(Math.abs(third - 1 / 3) < 1e-4);
});

test("a TensorProto is read, and a broken one refused", () => {
  const name = [0x42, 1, 0x78]; // field 8, "x"
  const raw = [0x4a, 8, 0, 0, 128, 63, 0, 0, 0, 64]; // field 9, two float32
  const whole = Uint8Array.from([0x08, 2, 0x10, 1, ...name, ...raw]);
  const { type, dims, data, ...rest } = readTensor(whole, "a.pb");
  assert.deepEqual([type, dims, [...data], rest.name], ["float32", [2], [1, 2], "x"]);
  assert.throws(() => readTensor(whole.slice(0, -1), "a.pb"), /a.pb is cut short/);
  assert.throws(() => readTensor(Uint8Array.from([0x08, 3, 0x10, 1, ...raw]), "a.pb"), /holds 8 bytes, which is not a float32 tensor of shape \(3\)/);
  assert.throws(() => readTensor(Uint8Array.from([0x08, 2, 0x10, 8]), "a.pb"), /ONNX type 8, which is not supported/);
  assert.throws(() => readTensor(Uint8Array.from([0x0f]), "a.pb"), /not an ONNX file/);
});

async function folder(manifest) {
  const path = await mkdtemp(join(tmpdir(), "isoformer-"));
  if (manifest !== undefined) await writeFile(join(path, "isoformer.json"), JSON.stringify(manifest));
  await mkdir(join(path, "variants"));
  return path;
}

for (const [what, manifest, message] of [
  ["no manifest", undefined, /is not a package: isoformer.json cannot be read \(ENOENT\)/],
  ["no schema", {}, /it has no schema number/],
  ["a later schema", { schema: 2 }, /has schema 2; this isoformer reads 1: install its version/],
  ["lacking records", { schema: 1, files: {}, name: "x", task: null, golden: {} }, /lacks precision, signature/],
  ["a file out of the package", { schema: 1, files: { "../a": "" }, name: "x", task: null, golden: {}, precision: "float32", signature: {} }, /'..\/a' leads out of the package/],
  ["no graph", { schema: 1, files: {}, name: "x", task: null, golden: {}, precision: "float32", signature: {} }, /does not list model.onnx/],
]) {
  test(`no package: ${what}`, async () => {
    await assert.rejects(load(await folder(manifest)), (error) => error instanceof PackageError && message.test(error.message));
  });
}

test("a cache in 8 bits is Python's: refused in one line, and not replayed; the other variants stay", async () => {
  const variant = (precision, more = {}) => ({ path: `${precision}.onnx`, provider: "cpu", precision, cache: "shared", golden: {}, ...more });
  const variants = { "cpu-float32": variant("float32"), "cpu-int8": variant("int8", { cache_dtype: "int8" }) };
  const signature = { inputs: [], outputs: [], axes: {}, padding: [] };
  const package_ = await load(await folder({ schema: 1, files: { "model.onnx": "" }, name: "x", task: null, golden: {}, precision: "float32", preferred: "int8", signature, variants }));
  await assert.rejects(Session.fastest(package_), (error) => error instanceof PackageError && error.message === "cpu-int8 keeps keys and values in 8 bits, which Python alone does; take the precision float32");
  assert.equal(package_.fastest("cpu", "float32"), "cpu-float32");
  assert.deepEqual(candidates(package_, []).map((one) => one.variant), [null, "cpu-float32"]);
});

test("a comparison passes within its bound, and never with NaN, another shape or nothing to compare", () => {
  const reference = tensor("float32", [1, 2, 3], [3]);
  const near = tensor("float32", [1, 2.25, 3], [3]);
  assert.deepEqual(compare([near, reference], 0.25), { values: 3, error: 0.25, note: "", passed: true });
  assert.equal(compare([near, reference], 0.24).passed, false);
  assert.deepEqual(compare([tensor("float32", [1, NaN, 3], [3]), reference], 9).error, null);
  assert.equal(compare([tensor("float32", [1, 2, 3], [1, 3]), reference], 9).passed, false);
  assert.equal(compare([tensor("float32", [], [0]), tensor("float32", [], [0])], 9).passed, false);
});

test("an output of places is compared by what it chose", () => {
  const scores = tensor("float32", [5, 7, 6, 1, 2, 3], [2, 3]);
  const at = (...places) => [...chosen(tensor("int64", places, [2, 2]), scores).data];
  assert.deepEqual(at(1, 2, 0, 2), [7, 6, 1, 3]);
  assert.deepEqual(at(1, 1, 3, 2), [7, NaN, NaN, 3]);
});

const LOGITS = Float64Array.from([2, 1, 0, -1, 3]);

test("processors leave out what they should", () => {
  const left = (processor) => [...processor([4, 4], LOGITS)].map(Number.isFinite);
  assert.deepEqual(left(sampling.topK(2)), [true, false, false, false, true]);
  assert.deepEqual(left(sampling.topP(0.7)), [true, false, false, false, true]); // .64 and .23 of the whole
  assert.deepEqual(left(sampling.topP(0.6)), [false, false, false, false, true]);
  assert.deepEqual(left(sampling.minP(0.2)), [true, false, false, false, true]);
  assert.deepEqual(left(sampling.suppress([0, 4])), [false, true, true, true, false]);
  assert.deepEqual([...sampling.repetitionPenalty(2)([3, 4], LOGITS)], [2, 1, 0, -2, 1.5]);
  assert.deepEqual([...sampling.force(1, 2)([9, 9], LOGITS)], [-Infinity, 0, -Infinity, -Infinity, -Infinity]);
  assert.deepEqual([...sampling.temperature(0.5)([], LOGITS)], [-2, -4, -6, -8, 0]);
});

test("the largest logit must be a finite number", () => {
  assert.throws(() => sampling.apply([sampling.suppress([0])], [1], Float64Array.from([1, -Infinity])), /no next token can be chosen behind 1 tokens/);
  assert.throws(() => sampling.apply([], [], Float64Array.from([1, NaN])), /the largest logit is NaN/);
});

for (const [given, message] of [
  [{ maxTokens: 0 }, "maxTokens is 0; it must be at least 1"],
  [{ topP: 0 }, "topP is 0; it must be above 0 and at most 1"],
  [{ temperature: -1 }, "temperature is -1; it must be 0 (the likeliest token) or a positive number"],
  [{ beams: 2, topK: 3 }, "beams is 2, and a beam search draws nothing: drop temperature, topK, …"],
]) {
  test(`settings refuse ${JSON.stringify(given)}`, () => {
    assert.throws(() => new Settings(given), (error) => error instanceof InputError && error.message === message);
  });
}

test("settings refuse a name that is not known", () => {
  assert.throws(() => new Settings({ max_tokens: 3 }), /there is no setting max_tokens; there are maxTokens/);
});

/** Bytes as tokens, as a byte-level tokenizer has them. */
const BYTES = { decode: (tokens) => new TextDecoder().decode(Uint8Array.from(tokens)) };
const bytes = (text) => [...new TextEncoder().encode(text)];

test("half a character is not shown, and nothing of a stop string", () => {
  const detokenizer = new Detokenizer(BYTES, { context: bytes("a "), stop: ["END"] });
  assert.equal(detokenizer.settled(bytes("né").slice(0, 2)), "n");
  assert.equal(detokenizer.settled(bytes("né")), "né");
  assert.equal(detokenizer.settled(bytes("so EN")), "so ");
  assert.equal(detokenizer.text(bytes("so ENDED")), "so ");
  assert.equal(detokenizer.stopped(bytes("so END")), true);
  assert.throws(() => new Detokenizer(BYTES, { stop: [""] }), InputError);
});
