/** Headless Chromium answers what Python answers, in WebAssembly. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { launch } from "../../runtime/js/src/browser.js";
import { serve } from "../../runtime/js/src/server.js";
import { furthest } from "./answers.js";
import { VECTORS, cases } from "./vectors.js";

const ROOT = new URL("../..", import.meta.url).pathname;
const TIMEOUT = { timeout: 1_500_000 };
let server, browser, page;

before(async () => {
  server = await serve({ "/": ROOT, "/embed/": VECTORS.embed.package, "/generate/": VECTORS.package, "/reproducible/": VECTORS.reproducible.package });
  browser = await launch();
  page = await browser.newPage();
  await page.goto(`${server.url}/runtime/js/src/runner.html`);
});

after(async () => {
  await browser?.close();
  server?.close();
});

/** Calls a function of answers.js in the page. */
function ask(name, ...given) {
  const call = async ([name, given]) => {
    const { webEngine } = await import("/runtime/js/src/engine.js");
    const packages = "/runtime/js/node_modules";
    globalThis.engine ??= await webEngine({
      ort: `${packages}/onnxruntime-web/dist/ort.wasm.bundle.min.mjs`,
      tokenizers: `${packages}/@huggingface/tokenizers/dist/tokenizers.min.mjs`,
    });
    return (await import("/tests/js/answers.js"))[name](globalThis.engine, ...given);
  };
  return page.evaluate(call, [name, given]);
}

test("embeddings", TIMEOUT, async () => {
  const { texts, vectors } = VECTORS.embed;
  const off = furthest(await ask("embedded", `${server.url}/embed/`, texts), vectors);
  assert.ok(off < 1e-5, `off by ${off}`);
});

test("generated tokens: float32", TIMEOUT, async () => {
  const chosen = cases("float32");
  const found = await ask("continued", `${server.url}/generate/`, "float32", chosen);
  chosen.forEach(({ name, tokens }, place) => assert.deepEqual(found[place], tokens, `${name}, case ${place}`));
});

test("generated tokens: int8 that is reproducible", TIMEOUT, async () => {
  const { cases: chosen } = VECTORS.reproducible;
  assert.ok(chosen.filter(({ name }) => name === "greedy").length >= 10);
  const found = await ask("continued", `${server.url}/reproducible/`, "int8", chosen);
  chosen.forEach(({ name, tokens }, place) => assert.deepEqual(found[place], tokens, `${name}, case ${place}`));
});

test("every bit of golden vectors: int8 that is reproducible", TIMEOUT, async () => {
  const { digests } = VECTORS.reproducible;
  assert.ok(Object.keys(digests).length >= 10);
  assert.deepEqual(await ask("digested", `${server.url}/reproducible/`, Object.keys(digests)), digests);
});

// Integer products are exact in any int8, but sums of floats between them are rounded otherwise, and a rounding to 8 bits
// that falls on the other side grows from layer to layer. So int8 is held to what its gate holds it to.
test("likeliest tokens: int8 as often float32's as the gate asks", TIMEOUT, async (context) => {
  const [same, all] = await ask("agreeing", `${server.url}/generate/`, "int8", cases("float32", "greedy"));
  const greedy = cases("int8", "greedy");
  const found = await ask("continued", `${server.url}/generate/`, "int8", greedy);
  const equal = greedy.filter(({ tokens }, place) => isDeepStrictEqual(tokens, found[place])).length;
  context.diagnostic(`${same} of ${all} likeliest tokens are float32's; ${equal} of ${greedy.length} greedy answers are Python's int8's`);
  assert.ok(all > 200 && same / all >= 0.85, `${same} of ${all}`);
});
