/**
 * What computes: onnxruntime-node in Node, onnxruntime-web in browsers, with the tokenizer library beside it.
 *
 * A page finds the npm packages by an import map, see `demo/index.html`; where there is none, as in a worker, `webEngine`
 * takes their addresses.
 */

import { EXACT, productsSaturate } from "./saturation.js";
import { InputError, IsoformerError, PackageError, ProviderError, firstLine } from "./errors.js";
import { elsewhere, inexact, overheard, placements } from "./placement.js";

/**
 * @typedef {import("./package.js").Package} Package
 * @typedef {import("./package.js").Progress} Progress
 * @typedef {import("onnxruntime-common").InferenceSession} InferenceSession
 * @typedef {typeof import("onnxruntime-common")} Ort
 * @typedef {"cpu" | "webgpu"} ProviderName cpu is WebAssembly in browsers
 *
 * name, version: of the library that computes. aliased: whether an output that is given writes into the memory of a
 * tensor that is also an input. elsewhere: operators of a session, and how many nodes of each, that another provider
 * than the one asked for runs.
 * @typedef {{
 *   name: string, version: string, ort: Ort, tokenizers: typeof import("@huggingface/tokenizers"), providers: ProviderName[],
 *   aliased: boolean,
 *   open: (package_: Package, options: OpenOptions) => Promise<InferenceSession>,
 *   elsewhere?: (session: InferenceSession) => Map<string, number>,
 * }} Engine
 *
 * tuned: leave out the optimizers that make a graph slower, and count subnormals as zero.
 * @typedef {{
 *   provider: ProviderName, variant: string | null, threads?: number, tuned: boolean, progress?: Progress,
 * }} OpenOptions
 */

/** @type {Promise<Engine> | undefined} */
let found;

/**
 * The engine of the place where this runs; found once.
 * @returns {Promise<Engine>}
 */
export function defaultEngine() {
  found ??= typeof process !== "undefined" && process.versions?.node ? nodeEngine() : webEngine();
  return found;
}

/**
 * onnxruntime-node.
 * @returns {Promise<Engine>}
 */
export async function nodeEngine() {
  const ort = (await library("onnxruntime-node", () => import("onnxruntime-node"))).default;
  const tokenizers = await library("@huggingface/tokenizers", () => import("@huggingface/tokenizers"));
  /** @type {Promise<boolean> | undefined} found once, the processor stays the same */
  let saturate;
  /** @type {Engine} */
  const engine = {
    name: "onnxruntime-node",
    version: ort.env.versions.node ?? ort.env.versions.common,
    ort,
    tokenizers,
    providers: ["cpu"],
    aliased: true,
    async open(package_, options) {
      const model = package_.modelFile(options.variant);
      const path = package_.files.path(model);
      const settings = { ...common(options), executionProviders: ["cpu"], intraOpNumThreads: options.threads ?? 0 };
      saturate ??= productsSaturate(ort);
      if (await saturate) settings.extra = { ...settings.extra, session: { ...settings.extra.session, ...EXACT } };
      if (path === null) return fromMemory(engine, package_, options, settings);
      const bytes = await package_.read(model, options.progress);
      const weights = package_.weights(model, bytes);
      for (const { file } of weights) await package_.check(file);
      if (!weights.some(({ location, file }) => file !== beside(model, location))) return ort.InferenceSession.create(path, settings);
      const session = { ...settings.extra.session, model_external_initializers_file_folder_path: package_.files.path(".") };
      return ort.InferenceSession.create(bytes, { ...settings, extra: { ...settings.extra, session } });
    },
  };
  return engine;
}

/**
 * onnxruntime-web. Threads need a page that is cross-origin isolated; without, there is one.
 * @param {{ ort?: string | URL, tokenizers?: string | URL }} [modules] addresses of the two libraries' modules
 * @returns {Promise<Engine>}
 */
export async function webEngine({ ort: ortAddress, tokenizers: tokenizersAddress } = {}) {
  const ort = await library("onnxruntime-web", () => (ortAddress ? import(String(ortAddress)) : import("onnxruntime-web")));
  const tokenizers = await library("@huggingface/tokenizers", () =>
    tokenizersAddress ? import(String(tokenizersAddress)) : import("@huggingface/tokenizers"),
  );
  /** @type {WeakMap<InferenceSession, Map<string, number>>} */
  const strayed = new WeakMap();
  /** @type {Engine} */
  const engine = {
    name: "onnxruntime-web",
    version: ort.env.versions.web ?? ort.env.versions.common,
    ort,
    tokenizers,
    providers: ["cpu", "webgpu"],
    aliased: false,
    async open(package_, options) {
      if (options.provider === "webgpu") await requireWebGpu();
      // Of all sessions of a page, so it is the first that decides.
      ort.env.wasm.numThreads ??= options.threads ?? threads();
      if (options.provider === "cpu") return fromMemory(engine, package_, options, { ...common(options), executionProviders: ["wasm"] });
      const { session, left } = await onWebGpu(engine, package_, options);
      strayed.set(session, left);
      return session;
    },
    elsewhere: (session) => strayed.get(session) ?? new Map(),
  };
  return engine;
}

/**
 * @param {OpenOptions} options
 */
function common({ threads: wanted, tuned }) {
  if (wanted !== undefined && !(Number.isInteger(wanted) && wanted >= 1)) {
    throw new InputError(`threads is ${wanted}; it must be at least 1`);
  }
  // The same two that Python leaves out: they were slower than the operators that they replace.
  const optimization = { disable_specified_optimizers: "SkipLayerNormFusion;BiasGeluFusion" };
  /** @type {{ session: Record<string, string>, optimization?: Record<string, string> }} */
  const extra = tuned ? { session: { set_denormal_as_zero: "1" }, optimization } : { session: {} };
  return { logSeverityLevel: /** @type {const} */ (4), extra };
}

/**
 * @param {Engine} engine
 * @param {Package} package_
 * @param {OpenOptions} options
 * @param {any} settings
 */
async function fromMemory(engine, package_, options, settings) {
  return (await opener(engine, package_, options))(settings);
}

/**
 * Reads the graph and its weights, and gives what opens sessions of them.
 * @param {Engine} engine
 * @param {Package} package_
 * @param {OpenOptions} options
 * @returns {Promise<(settings: any) => Promise<InferenceSession>>}
 */
async function opener({ ort }, package_, { variant, progress }) {
  const model = package_.modelFile(variant);
  const bytes = await package_.read(model, progress);
  /** @type {{ path: string, data: Uint8Array }[]} */
  const externalData = [];
  for (const { location, file } of package_.weights(model, bytes)) {
    externalData.push({ path: location, data: await package_.read(file, progress) });
  }
  const weights = externalData.length ? { externalData } : {};
  return (settings) => overheard(ort, () => ort.InferenceSession.create(bytes, { ...settings, ...weights }));
}

/**
 * A session that computes on WebGPU, with all of ONNX Runtime's optimizers (what CPUs do better without says nothing
 * here), and what it leaves to the CPU: integers, and what WebGPU computes with too few bits. It is opened once more than
 * needed, since a session that tells where its nodes are would log every run as well.
 * @param {Engine} engine
 * @param {Package} package_
 * @param {OpenOptions} options
 */
async function onWebGpu(engine, package_, options) {
  if (options.variant && package_.variant(options.variant).reproducible) {
    throw new ProviderError(`webgpu has no float64, which ${options.variant} computes with; use the provider cpu`);
  }
  const open = await opener(engine, package_, options);
  const settings = (/** @type {string[]} */ forceCpuNodeNames) => ({
    ...common({ ...options, tuned: false }),
    executionProviders: [{ name: "webgpu", ...(forceCpuNodeNames.length ? { forceCpuNodeNames } : {}) }],
  });
  const told = (/** @type {string[]} */ forced) => placements(() => open({ ...settings(forced), logSeverityLevel: 0 }));
  let placed = await told([]);
  const forced = inexact(placed);
  if (forced.length) placed = await told(forced);
  const [still] = inexact(placed);
  if (still !== undefined) throw new ProviderError(`webgpu computes ${still} of this graph with too few bits`);
  return { session: await open(settings(forced)), left: elsewhere(placed) };
}

/** @param {string} model @param {string} location */
function beside(model, location) {
  return [...model.split("/").slice(0, -1), location].join("/");
}

/** One a core, 4 at most, as far as the page may have them. */
function threads() {
  return globalThis.crossOriginIsolated ? Math.min(4, globalThis.navigator?.hardwareConcurrency ?? 1) : 1;
}

async function requireWebGpu() {
  const adapter = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter();
  const software = "Chromium has one in software: --enable-unsafe-webgpu --use-webgpu-adapter=swiftshader";
  if (!adapter) throw new ProviderError(`webgpu cannot run here: this browser has no WebGPU adapter (${software}); use the provider cpu`);
}

/**
 * @template T
 * @param {string} name
 * @param {() => Promise<T>} load
 * @returns {Promise<T>}
 */
async function library(name, load) {
  try {
    return await load();
  } catch (error) {
    throw new IsoformerError(`${name} cannot be loaded (${firstLine(error)}): npm ci --ignore-scripts, in isoformer's folder js`, {
      cause: error,
    });
  }
}

/**
 * Opens a package's graph, in words for people. Throws PackageError, ProviderError or InputError.
 * @param {Engine} engine
 * @param {Package} package_
 * @param {OpenOptions} options
 */
export async function openGraph(engine, package_, options) {
  if (!engine.providers.includes(options.provider)) {
    throw new ProviderError(`provider ${options.provider} is not one of ${engine.name}'s: ${engine.providers.join(", ")}`);
  }
  try {
    return await engine.open(package_, options);
  } catch (error) {
    if (error instanceof IsoformerError) throw error;
    const file = package_.modelFile(options.variant);
    throw new PackageError(`ONNX Runtime cannot open ${package_.path}/${file}: ${firstLine(error)}`, { cause: error });
  }
}
