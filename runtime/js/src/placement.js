/**
 * Which operators a provider of onnxruntime-web left to the CPU. ONNX Runtime moves what a provider lacks to
 * WebAssembly without a word, and this build tells where nodes are in its log alone, on the console.
 */

import { ProviderError } from "./errors.js";

/** @typedef {import("onnxruntime-common").InferenceSession} InferenceSession */

const NODES = /VerifyEachNodeIsAssignedToAnEp\]\s+/;
const ALL = /All nodes placed on \[(\w+)\]/;
const SOME = /Node\(s\) placed on \[(\w+)\]/;
const NODE = /^\s*(\w+) \(/;

// Operators that compute shapes and indices: ONNX Runtime keeps them on the CPU by design. Python has the same list.
const SHAPES = new Set(
  ["Shape", "Concat", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Range", "Add", "Mul", "Sub", "Constant"].concat(
    ["ConstantOfShape", "Reshape", "Expand", "Equal", "Where", "ReduceProd", "Max", "Min"],
  ),
);

/** @type {Set<(line: string) => void>} those that listen while their session opens */
const listeners = new Set();
/** @type {WeakSet<object>} modules of onnxruntime-web that were loaded here, and so keep the console that is listened to */
const loaded = new WeakSet();

/**
 * Runs what loads onnxruntime-web's WebAssembly, if it is the first of its module. It keeps the console's functions as
 * it finds them then, so they are exchanged for that long for some that hand ONNX Runtime's lines to the listeners.
 * @template T
 * @param {object} ort
 * @param {() => Promise<T>} load
 * @returns {Promise<T>}
 */
export async function overheard(ort, load) {
  if (loaded.has(ort)) return load();
  loaded.add(ort);
  const { log, error } = console;
  const heard = (/** @type {typeof log} */ write) => (/** @type {any[]} */ ...words) => {
    const line = String(words[0]);
    if (listeners.size === 0 || !line.includes(":onnxruntime:")) return write.apply(console, words);
    for (const listen of listeners) listen(line);
  };
  console.log = heard(log);
  console.error = heard(error);
  try {
    return await load();
  } finally {
    Object.assign(console, { log, error });
  }
}

/**
 * How many nodes of each operator are where, in the session that `open` opens with ONNX Runtime's whole log; it is
 * closed again.
 * @param {() => Promise<InferenceSession>} open
 * @returns {Promise<Map<string, Map<string, number>>>} provider → operator → nodes
 */
export async function placements(open) {
  /** @type {string[]} */
  const lines = [];
  const listen = (/** @type {string} */ line) => void lines.push(line);
  listeners.add(listen);
  try {
    await (await open()).release();
  } finally {
    listeners.delete(listen);
  }
  return read(lines);
}

/**
 * @param {readonly string[]} lines of the log
 * @returns {Map<string, Map<string, number>>}
 */
export function read(lines) {
  /** @type {Map<string, Map<string, number>>} */
  const placed = new Map();
  let nodes = new Map();
  for (const line of lines) {
    const said = line.split(NODES)[1];
    if (said === undefined) continue;
    const provider = (ALL.exec(said) ?? SOME.exec(said))?.[1];
    const operator = NODE.exec(said)?.[1];
    if (provider) placed.set(provider, (nodes = placed.get(provider) ?? new Map()));
    else if (operator) nodes.set(operator, (nodes.get(operator) ?? 0) + 1);
  }
  return placed;
}

/**
 * Throws ProviderError when nodes that compute are elsewhere than on WebGPU, or when the log does not say where they are.
 * @param {Map<string, Map<string, number>>} placed
 */
export function refuseElsewhere(placed) {
  if (!placed.has("WebGpuExecutionProvider")) {
    throw new ProviderError("webgpu: onnxruntime-web does not say where it computes; open a webgpu session before any other, or use the provider cpu");
  }
  const elsewhere = [...placed].filter(([provider]) => provider !== "WebGpuExecutionProvider").flatMap(([, nodes]) => [...nodes.keys()]);
  const strayed = [...new Set(elsewhere)].filter((operator) => !SHAPES.has(operator)).sort();
  if (strayed.length === 0) return;
  const how = strayed.includes("Attention") ? "; isoformer export --provider openvino writes one with its attention taken apart" : "";
  throw new ProviderError(`webgpu does not run ${strayed.join(", ")} of this graph${how}`);
}
