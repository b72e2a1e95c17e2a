/** Node answers what Python answers: tokens of hostile texts, random numbers, embeddings, generated tokens. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import * as library from "../../runtime/js/node_modules/@huggingface/tokenizers/dist/tokenizers.mjs";
import { nodeEngine } from "../../runtime/js/index.js";
import { Random } from "../../runtime/js/src/random.js";
import { EXACT, productsSaturate } from "../../runtime/js/src/saturation.js";
import { Tokenizer } from "../../runtime/js/src/tokenizer.js";
import { agreeing, continued, digested, embedded, furthest, inPieces } from "./answers.js";
import { FOLDER, VECTORS, cases } from "./vectors.js";

for (const [name, texts] of Object.entries(VECTORS.tokenizers)) {
  test(`tokens of ${texts.length} texts: ${name}`, () => {
    const tokenizer = new Tokenizer(JSON.parse(readFileSync(`${FOLDER}/${name}.json`, "utf8")), library, name);
    assert.ok(texts.length > 500);
    for (const { text, ids, plain, types, decoded, all, cut } of texts) {
      const whole = tokenizer.encode(text);
      assert.deepEqual(whole.ids, ids, JSON.stringify(text));
      assert.deepEqual(whole.typeIds, types, JSON.stringify(text));
      assert.deepEqual(tokenizer.encode(text, { addSpecialTokens: false }).ids, plain, JSON.stringify(text));
      assert.deepEqual(tokenizer.encode(text, { limit: 7 }).ids, cut, JSON.stringify(text));
      assert.equal(tokenizer.decode(ids), decoded);
      assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), all);
    }
    assert.throws(() => tokenizer.encode("a\ud800b"), /a text is not Unicode/);
  });
}

test("random numbers are numpy's", () => {
  for (const [seed, numbers] of Object.entries(VECTORS.random)) {
    const random = new Random([BigInt(seed), 5]);
    assert.deepEqual(numbers.map(() => random.random()), numbers);
  }
});

test("the option for exact products of 8 bits gives the largest product", async () => {
  const { ort } = await nodeEngine();
  assert.equal(await productsSaturate(ort, { extra: { session: EXACT } }), false);
});

test("embeddings", async () => {
  const { package: place, texts, vectors } = VECTORS.embed;
  const off = furthest(await embedded(await nodeEngine(), place, texts), vectors);
  assert.ok(off < 1e-5, `off by ${off}`);
});

for (const precision of Object.keys(VECTORS.generate)) {
  test(`generated tokens: ${precision}`, { timeout: 900_000 }, async () => {
    const chosen = cases(precision);
    assert.ok(chosen.filter(({ name }) => name === "greedy").length >= 10);
    const found = await continued(await nodeEngine(), VECTORS.package, precision, chosen);
    chosen.forEach(({ name, tokens }, place) => assert.deepEqual(found[place], tokens, `${name}, case ${place}`));
  });

  test(`generated tokens, a cache that is not written in place: ${precision}`, { timeout: 900_000 }, async () => {
    const chosen = cases(precision, "draws", "one batch");
    const found = await continued({ ...(await nodeEngine()), aliased: false }, VECTORS.package, precision, chosen);
    chosen.forEach(({ name, tokens }, place) => assert.deepEqual(found[place], tokens, `${name}, case ${place}`));
  });
}

for (const aliased of [true, false]) {
  test(`a batch with long prompts, in pieces, is each prompt in one run, a cache ${aliased ? "" : "not "}in place`, { timeout: 900_000 }, async () => {
    const { variants } = JSON.parse(readFileSync(`${VECTORS.package}/isoformer.json`, "utf8"));
    const bound = Math.max(...Object.values(variants["cpu-float32"].decoding).map((record) => record.bound));
    const text = VECTORS.reproducible.cases.filter(({ name }) => name === "others").flatMap(({ prompts }) => prompts[0]);
    const prompts = [text.slice(0, 281), text.slice(3, 10), text.slice(0, 523)];
    const { runs, found, wanted } = await inPieces({ ...(await nodeEngine()), aliased }, VECTORS.package, "float32", prompts);
    assert.equal(runs, 2 + 1 + 3 + 1); // pieces of each, and one step of all
    wanted.forEach((row, place) => {
      const off = row.reduce((most, value, at) => Math.max(most, Math.abs(value - found[place][at])), 0);
      assert.ok(off < bound, `answer ${place} is off by ${off}; ${bound} is allowed`);
    });
  });
}

test("generated tokens: int8 that is reproducible", { timeout: 900_000 }, async () => {
  const { package: place, cases: chosen } = VECTORS.reproducible;
  const found = await continued(await nodeEngine(), place, "int8", chosen);
  chosen.forEach(({ name, tokens }, at) => assert.deepEqual(found[at], tokens, `${name}, case ${at}`));
});

test("every bit of golden vectors: int8 that is reproducible", { timeout: 900_000 }, async () => {
  const { package: place, digests } = VECTORS.reproducible;
  assert.deepEqual(await digested(await nodeEngine(), place, Object.keys(digests)), digests);
});

test("likeliest tokens: int8 as often float32's as the gate asks", { timeout: 900_000 }, async (context) => {
  const [same, all] = await agreeing(await nodeEngine(), VECTORS.package, "int8", cases("float32", "greedy"));
  context.diagnostic(`${same} of ${all} likeliest tokens are float32's`);
  assert.ok(all > 200 && same / all >= 0.85, `${same} of ${all}`);
});
