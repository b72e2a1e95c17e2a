/** What the page computes, in a worker: packages, sessions, and the three demonstrations. */

import { webEngine } from "../src/engine.js";
import { load } from "../src/package.js";
import { Session } from "../src/session.js";
import { embeddings, similarities } from "../src/tasks/embed.js";
import { stream } from "../src/tasks/generate.js";
import { Decoder } from "../src/binding.js";
import { Stats } from "../src/generation.js";
import { tensor } from "../src/tensors.js";
import { textEncoder } from "../src/text.js";

/** @typedef {import("../src/engine.js").Engine} Engine */
/** @typedef {(event: any) => void} Tell */

// A worker has no import map, so the two libraries stand under their addresses.
const MODULES = {
  ort: new URL("../node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs", import.meta.url),
  tokenizers: new URL("../node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs", import.meta.url),
};
const MOST_TOKENS = 14; // of a sentence whose weights are drawn

/** @type {Promise<Engine> | undefined} */
let engine;
/** @type {Map<string, Promise<Session>>} by the package's address */
const sessions = new Map();
/** @type {Map<string, Decoder>} */
const decoders = new Map();
/** @type {AbortController | undefined} */
let writing;

/** @type {Record<string, (given: any, tell: Tell) => Promise<any>>} */
const functions = {
  /** What a package is for. */
  async about({ url }) {
    const package_ = await load(url, { digests: isSecureContext });
    const { inputs, outputs } = package_.signature;
    const mask = inputs.find(({ name }) => name === "attention_mask");
    const layers = outputs.filter(({ name }) => /^attentions\.\d+$/.test(name));
    return {
      url,
      name: package_.manifest.name,
      task: package_.task.name ?? null,
      parameters: package_.manifest.parameters,
      precision: package_.manifest.preferred ?? package_.manifest.precision,
      text: package_.has("tokenizer.json"),
      layers: (mask?.axes.length ?? 0) > 2 ? layers.length : 0,
      heads: layers.length ? layers[0].axes[1] : 0,
    };
  },

  /** Opens a package's fastest graph; tells how much of it has come. */
  async open({ url }, tell) {
    const { name, version, ort } = await session(url, tell).then(({ engine }) => engine);
    return { engine: `${name} ${version}`, threads: ort.env.wasm.numThreads ?? 1 };
  },

  /** The cosine of every pair of texts. */
  async similarity({ url, texts }) {
    const opened = await session(url);
    const start = performance.now();
    const matrix = similarities(await embeddings(opened, texts, { truncate: true }));
    return { matrix, milliseconds: performance.now() - start };
  },

  /** Continues a text; tells each piece of it. */
  async write({ url, text, settings }, tell) {
    const opened = await session(url);
    if (!decoders.has(url)) decoders.set(url, new Decoder(opened));
    const stats = new Stats();
    writing = new AbortController();
    const options = { settings, stats, decoder: decoders.get(url), signal: writing.signal };
    for await (const piece of stream(opened, text, options)) {
      tell({ piece });
      await new Promise((go) => setTimeout(go)); // so that a message to stop is heard
    }
    return { ...stats };
  },

  /** Ends `write` behind the token that is being computed. */
  async stop() {
    writing?.abort();
  },

  /** Attention weights of a text under a mask (queries by keys; null hides nothing): layers × heads × L × L. */
  async attention({ url, text, visible }) {
    const opened = await session(url);
    const encoder = await textEncoder(opened);
    const encoding = encoder.tokenizer.encode(text, { limit: MOST_TOKENS });
    const length = encoding.ids.length;
    const inputs = encoder.inputs([encoding]);
    if (visible?.length === length * length) {
      inputs.attention_mask = tensor("int64", visible.map(Number), inputs.attention_mask.dims);
    }
    const names = opened.signature.outputs.map(({ name }) => name).filter((name) => /^attentions\.\d+$/.test(name));
    const start = performance.now();
    const outputs = await opened.run(inputs, names);
    const weights = names.map((name) => outputs[name].data);
    return { tokens: encoding.tokens, weights, milliseconds: performance.now() - start };
  },
};

/**
 * The package's session, opened once; one that fails is tried anew.
 * @param {string} url
 * @param {Tell} [tell]
 */
function session(url, tell = () => {}) {
  let opened = sessions.get(url);
  if (!opened) {
    opened = open(url, tell);
    sessions.set(url, opened);
    opened.catch(() => sessions.delete(url));
  }
  return opened;
}

/** @param {string} url @param {Tell} tell */
async function open(url, tell) {
  engine ??= webEngine(MODULES);
  const package_ = await load(url, { digests: isSecureContext });
  return Session.fastest(package_, { engine: await engine, progress: (done, total) => tell({ done, total }) });
}

onmessage = async ({ data: { id, name, given } }) => {
  try {
    postMessage({ id, value: await functions[name](given, (event) => postMessage({ id, event })) });
  } catch (error) {
    postMessage({ id, error: /** @type {Error} */ (error).message });
  }
};
