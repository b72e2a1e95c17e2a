/** Pieces by themselves: no package, no browser. */

import assert from "node:assert/strict";
import { mkdtemp, mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Decoder } from "../../runtime/js/src/binding.js";
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

/**
 * A session whose graph keeps each token as its key, 2 heads by 3 numbers, and whose logits are three sums over the places
 * of a row: of keys, of keys by their places, and of ones. runs: [batch, past tokens, new tokens] of each run.
 */
function summing({ aliased, dtype = "float32", sharedCache = true, fails = () => false }) {
  const runs = [];
  const cacheAxes = ["batch_size", 2, "past_length", 3];
  const signature = {
    inputs: [
      ...["input_ids", "attention_mask", "position_ids", "logits_positions"].map((name) => spec(name, "int64", ["batch_size", "length"])),
      spec("past_key_values.0.key", dtype, cacheAxes),
    ],
    outputs: [spec("logits", "float32", ["batch_size", "num_logits", 3]), spec("present.0.key", dtype, cacheAxes)],
  };
  async function compute(feeds, outputs) {
    const { input_ids: ids, attention_mask: mask, position_ids: positions, logits_positions: asked } = feeds;
    const { "past_key_values.0.key": past } = feeds;
    const [batch, width] = ids.dims;
    const ends = rows(mask).map((row) => row.filter(Boolean).length);
    const room = aliased ? past.dims[2] : mask.dims[1];
    const present = outputs["present.0.key"] ?? tensor(dtype, Array(batch * 2 * room * 3).fill(0), [batch, 2, room, 3]);
    assert.equal(present.data.buffer === past.data.buffer && present.data.byteOffset === past.data.byteOffset, aliased);
    runs.push([batch, mask.dims[1] - width, width]);
    if (fails(runs.length)) throw new Error("no memory");
    const at = (array, row, head, place) => ((row * 2 + head) * array.dims[2] + place) * 3;
    const logits = ends.flatMap((end, row) => {
      for (const head of [0, 1]) {
        if (!aliased) present.data.set(past.data.subarray(at(past, row, head, 0), at(past, row, head, past.dims[2])), at(present, row, head, 0));
        for (const column of [...Array(Number(asked.data[row]) + 1).keys()]) {
          const begin = at(present, row, head, Number(rows(positions)[row][column]));
          present.data.fill(Number(rows(ids)[row][column]) + head / 2, begin, begin + 3);
        }
      }
      const keys = Array.from({ length: end }, (_, place) => [0, 1].map((head) => present.data[at(present, row, head, place) + 2]));
      return [keys.reduce((sum, [key]) => sum + key, 0), keys.reduce((sum, [, key], place) => sum + (key * (place + 1)) / 64, 0), end];
    });
    return { logits: tensor("float32", logits, [batch, 1, 3]), "present.0.key": present };
  }
  return { runs, session: { signature, sharedCache, engine: { aliased }, package: { path: "x" }, compute } };
}

const rows = ({ data, dims: [count, size] }) => Array.from({ length: count }, (_, row) => [...data.subarray(row * size, (row + 1) * size)].map(Number));
const ramp = (length, from = 1) => Array.from({ length }, (_, place) => ((from + place) * 7) % 11);

/** What the graph answers to a sequence. */
function sums(tokens) {
  const places = tokens.reduce((sum, token, place) => sum + ((token + 1 / 2) * (place + 1)) / 64, 0);
  return [tokens.reduce((sum, token) => sum + token, 0), Math.fround(places), tokens.length];
}

for (const aliased of [true, false]) {
  const where = aliased ? "in place" : "not in place";

  test(`a long prompt goes through the graph in balanced pieces, ${where}`, async () => {
    const { session, runs } = summing({ aliased });
    const decoder = new Decoder(session);
    for (const [length, expected] of [
      [256, [[1, 0, 256]]],
      [257, [[1, 0, 128], [1, 128, 129]]],
      [523, [[1, 0, 174], [1, 174, 174], [1, 348, 175]]],
    ]) {
      const prompt = ramp(length, length);
      assert.deepEqual((await decoder.start([prompt])).logits.map((row) => [...row]), [sums(prompt)]);
      assert.deepEqual(runs.splice(0), expected);
    }
  });

  test(`what a prompt shares with the one before is not computed again, and the rest in pieces, ${where}`, async () => {
    const { session, runs } = summing({ aliased });
    const decoder = new Decoder(session);
    await decoder.start([ramp(13)]);
    const prompt = [...ramp(7), 10, ...ramp(293)];
    const { logits, reused } = await decoder.start([prompt]);
    assert.deepEqual([[...logits[0]], reused], [sums(prompt), 7]);
    assert.deepEqual(runs, [[1, 0, 13], [1, 7, 147], [1, 154, 147]]);
    assert.deepEqual([...(await decoder.append([[5]]))[0]], sums([...prompt, 5]));
  });

  test(`rows of a batch with a long prompt are computed one after the other, ${where}`, async () => {
    const { session, runs } = summing({ aliased });
    const decoder = new Decoder(session);
    const prompts = [ramp(5, 3), ramp(307, 2), ramp(257, 5)];
    assert.deepEqual((await decoder.start(prompts)).logits.map((row) => [...row]), prompts.map(sums));
    assert.deepEqual(runs.splice(0), [[1, 0, 5], [1, 0, 153], [1, 153, 154], [1, 0, 128], [1, 128, 129]]);
    const longer = prompts.map((prompt, row) => [...prompt, row + 8]);
    assert.deepEqual((await decoder.append([[8], [9], [10]])).map((row) => [...row]), longer.map(sums));
    assert.deepEqual(runs, [[3, 307, 1]]);
    assert.deepEqual(decoder.tokens, longer);
    decoder.take([2, 0]);
    assert.deepEqual((await decoder.append([[4], [6]])).map((row) => [...row]), [sums([...longer[2], 4]), sums([...longer[0], 6])]);
  });

  test(`a run that fails in the middle leaves what was there, ${where}`, async () => {
    const { session, runs } = summing({ aliased, fails: (number) => [3, 6].includes(number) });
    const decoder = new Decoder(session);
    const held = ramp(17);
    await decoder.start([held]);
    await assert.rejects(decoder.append([ramp(300)]), /no memory/);
    assert.deepEqual(decoder.tokens, [held]);
    assert.deepEqual([...(await decoder.append([[2]]))[0]], sums([...held, 2]));
    await assert.rejects(decoder.start([ramp(3), ramp(300)]), /no memory/);
    assert.deepEqual(decoder.tokens, []);
    assert.deepEqual([...(await decoder.start([held])).logits[0]], sums(held));
    assert.equal(runs.length, 7);
  });
}

for (const [what, more] of [["a cache that is not written in place", { sharedCache: false }], ["a cache of another dtype", { dtype: "int8" }]]) {
  test(`a long prompt stays whole: ${what}`, async () => {
    const { session, runs } = summing({ aliased: false, ...more });
    await new Decoder(session).start([ramp(523)]);
    assert.deepEqual(runs, [[1, 0, 523]]);
  });
}
