/**
 * Which operators a provider of onnxruntime-web left to the CPU. ONNX Runtime moves what a provider lacks to
 * WebAssembly without a word, and this build tells where nodes are in its log alone, on the console.
 */

import { ProviderError } from "./errors.js";

/**
 * @typedef {import("onnxruntime-common").InferenceSession} InferenceSession
 * @typedef {{ operator: string, name: string }} Node
 * @typedef {Map<string, Node[]>} Placed by provider
 */

const WEBGPU = "WebGpuExecutionProvider";

const NODES = /VerifyEachNodeIsAssignedToAnEp\]\s+/;
const ALL = /All nodes placed on \[(\w+)\]/;
const SOME = /Node\(s\) placed on \[(\w+)\]/;
const NODE = /^\s*(\w+) \((.*)\)\s*$/;

// What may be on the CPU: shapes, which ONNX Runtime keeps there by design, and positions and masks. WebGPU has all of
// these operators for floats, so those that it leaves compute with integers and booleans (Or does always).
const INTEGERS = new Set([
  ...["Shape", "Concat", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Range", "Add", "Mul", "Sub", "Constant", "Or"],
  ...["ConstantOfShape", "Reshape", "Expand", "Equal", "Where", "ReduceProd", "Max", "Min", "Clip", "CumSum", "ReduceMin"],
  ...["ReduceMax", "GreaterOrEqual", "LessOrEqual", "Less", "Greater", "And", "Not"],
]);

// WGSL lets these be wrong by 2^-11, and they are by 2e-4 (docs/decisions/javascript.md): rotary positions want them exact.
const INEXACT = new Set(["Sin", "Cos"]);

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
 * Where the nodes are of the session that `open` opens with ONNX Runtime's whole log; it is closed again.
 * @param {() => Promise<InferenceSession>} open
 * @returns {Promise<Placed>}
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
 * @returns {Placed}
 */
export function read(lines) {
  /** @type {Placed} */
  const placed = new Map();
  /** @type {Node[]} */
  let nodes = [];
  for (const line of lines) {
    const said = line.split(NODES)[1];
    if (said === undefined) continue;
    const provider = (ALL.exec(said) ?? SOME.exec(said))?.[1];
    const [, operator, name] = NODE.exec(said) ?? [];
    if (provider) placed.set(provider, (nodes = placed.get(provider) ?? []));
    else if (operator) nodes.push({ operator, name });
  }
  return placed;
}

/**
 * The names of the nodes that WebGPU must leave to the CPU, for it computes them with too few bits.
 * @param {Placed} placed
 */
export function inexact(placed) {
  return (placed.get(WEBGPU) ?? []).filter(({ operator }) => INEXACT.has(operator)).map(({ name }) => name);
}

/**
 * How many nodes of which operators are elsewhere than on WebGPU.
 * @param {Placed} placed
 * @returns {Map<string, number>}
 * Throws ProviderError when they are others than may be, or when the log does not say where they are.
 */
export function elsewhere(placed) {
  if (!placed.has(WEBGPU)) {
    throw new ProviderError("webgpu: onnxruntime-web does not say where it computes; let isoformer load it, or use the provider cpu");
  }
  const nodes = [...placed].filter(([provider]) => provider !== WEBGPU).flatMap(([, there]) => there);
  const counts = new Map();
  for (const { operator } of nodes) counts.set(operator, (counts.get(operator) ?? 0) + 1);
  const strayed = [...counts.keys()].filter((operator) => !INTEGERS.has(operator) && !INEXACT.has(operator)).sort();
  if (strayed.length === 0) return new Map([...counts].sort());
  const how = strayed.includes("Attention") ? "; isoformer export --provider openvino writes one with its attention taken apart" : "";
  throw new ProviderError(`webgpu does not run ${strayed.join(", ")} of this graph${how}`);
}
