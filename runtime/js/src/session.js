/** A package, ready to run: inputs are checked before ONNX Runtime sees them, outputs come back by name. */

import { defaultEngine, openGraph } from "./engine.js";
import { InputError, IsoformerError, PackageError, firstLine } from "./errors.js";
import { checkInputs } from "./inputs.js";
import { Package, isCacheInt8, load, runsOn } from "./package.js";

/**
 * @typedef {import("./engine.js").Engine} Engine
 * @typedef {import("./engine.js").InferenceSession} InferenceSession
 * @typedef {import("./engine.js").ProviderName} ProviderName
 * @typedef {import("./files.js").Progress} Progress
 * @typedef {import("./package.js").TensorSpec} TensorSpec
 * @typedef {import("./tensors.js").Tensor} Tensor
 *
 * provider: cpu (in browsers that is WebAssembly) or webgpu; it never falls back to another. threads: of one operator.
 * engine: what computes, by default that of the place. progress: told of bytes that are read.
 * @typedef {{ provider?: ProviderName, threads?: number, engine?: Engine, progress?: Progress }} Options
 */

/**
 * Runs a package's graph.
 *
 *     const session = await Session.open("minilm");
 *     const outputs = await session.run({ input_ids: ids, attention_mask: mask });
 */
export class Session {
  /**
   * Use `Session.open` or `Session.fastest`.
   * @param {Package} package_
   * @param {Engine} engine
   * @param {ProviderName} provider
   * @param {InferenceSession} inference
   * @param {string | null} variant
   */
  constructor(package_, engine, provider, inference, variant) {
    this.package = package_;
    this.engine = engine;
    this.provider = provider;
    this.inference = inference;
    this.variant = variant;
    this.signature = package_.signature;
    this.sharedCache = variant !== null && package_.variant(variant).cache === "shared";
    /** @type {Map<boolean, Promise<import("./text.js").TextEncoder>>} see `textEncoder` */
    this.textEncoders = new Map();
  }

  /**
   * The session of the canonical graph, or of a variant by its name in `package.variants`.
   * @param {string | URL | Package} place a package's folder (Node) or address, or what `load` has read
   * @param {Options & { variant?: string | null }} [options]
   * @returns {Promise<Session>}
   * Throws PackageError for a broken package and ProviderError when the provider does not run the graph here.
   */
  static async open(place, { provider = "cpu", threads, variant = null, engine, progress } = {}) {
    const package_ = place instanceof Package ? place : await load(place);
    const names = Object.keys(package_.parts);
    if (names.length) throw new PackageError(`${package_.path} has the graphs ${names.join(", ")}; open them with Graphs`);
    if (variant !== null && !runsOn(package_.variant(variant), provider)) {
      throw new InputError(`${variant} is for ${package_.variant(variant).provider}, not for ${provider}`);
    }
    if (variant !== null && isCacheInt8(package_.variant(variant))) {
      throw new PackageError(`${variant} keeps keys and values in 8 bits, which Python alone does; take the precision float32`);
    }
    const chosen = engine ?? (await defaultEngine());
    const inference = await openGraph(chosen, package_, { provider, variant, threads, progress, tuned: true });
    refuseOtherEdge(inference, package_);
    return new Session(package_, chosen, provider, inference, variant);
  }

  /**
   * The session of the package's fastest graph of a precision, by default the one it was exported for.
   * @param {string | URL | Package} place
   * @param {Options & { precision?: string | null }} [options]
   * @returns {Promise<Session>}
   * Throws as `open` does, and PackageError for a precision that the package does not have.
   */
  static async fastest(place, { precision = null, ...options } = {}) {
    const package_ = place instanceof Package ? place : await load(place);
    return Session.open(package_, { ...options, variant: package_.fastest(options.provider ?? "cpu", precision) });
  }

  /**
   * The outputs by name, all of them or the ones named.
   * @param {Record<string, Tensor>} inputs of the dtype and rank that the signature states; a mask may have any dtype
   *   that holds 0 and 1. Inputs with a default may be left out.
   * @param {readonly string[] | null} [outputs]
   * @returns {Promise<Record<string, Tensor>>}
   * Throws InputError, one line, for a wrong name, dtype, rank, size or value.
   */
  async run(inputs, outputs = null) {
    if (this.sharedCache) throw new InputError(`${this.variant} writes its cache in place; Decoder runs it`);
    const feeds = checkInputs(this.signature, inputs);
    const known = this.signature.outputs.map((spec) => spec.name);
    const names = outputs === null ? known : [...outputs];
    const unknown = names.filter((name) => !known.includes(name));
    if (unknown.length) throw new InputError(`there is no output ${unknown.join(", ")}; there are ${known.join(", ")}`);
    return names.length ? this.compute(feeds, names) : {};
  }

  /**
   * Runs the graph on what has been checked. outputs: names, or tensors to write into.
   * @param {Record<string, Tensor>} feeds
   * @param {readonly string[] | Record<string, Tensor | null>} outputs
   * @returns {Promise<Record<string, Tensor>>}
   */
  async compute(feeds, outputs) {
    const { Tensor } = this.engine.ort;
    const native = (/** @type {Tensor} */ array) =>
      array instanceof Tensor ? array : new Tensor(/** @type {any} */ (array.type), /** @type {any} */ (array.data), array.dims);
    const fed = Object.fromEntries(Object.entries(feeds).map(([name, array]) => [name, native(array)]));
    const asked = Array.isArray(outputs)
      ? outputs
      : Object.fromEntries(Object.entries(outputs).map(([name, array]) => [name, array && native(array)]));
    try {
      return /** @type {any} */ (await this.inference.run(/** @type {any} */ (fed), /** @type {any} */ (asked)));
    } catch (error) {
      throw new IsoformerError(`ONNX Runtime failed: ${firstLine(error)}`, { cause: error });
    }
  }

  /** Gives the graph's memory back. */
  async release() {
    await this.inference.release();
  }
}

/**
 * The sessions of a package's graphs by name: "encoder_model", "decoder_model_merged", …, or "model" alone.
 *
 *     const graphs = await Graphs.open("fr-en");
 *     const outputs = await graphs.get("encoder_model").run({ input_ids: ids });
 */
export class Graphs {
  /**
   * Use `Graphs.open`.
   * @param {Package} package_
   * @param {Map<string, Session>} sessions
   */
  constructor(package_, sessions) {
    this.package = package_;
    this.sessions = sessions;
  }

  /**
   * Options as `Session.fastest` takes them; a graph without the precision, where another has it, runs in its own.
   * @param {string | URL | Package} place
   * @param {Options & { precision?: string | null }} [options]
   * @returns {Promise<Graphs>}
   */
  static async open(place, { precision = null, ...options } = {}) {
    const package_ = place instanceof Package ? place : await load(place);
    const provider = options.provider ?? "cpu";
    if (precision !== null) package_.refusePrecision(provider, precision);
    const sessions = new Map();
    for (const [name, part] of Object.entries(package_.graphs)) {
      const own = precision !== null && part.precisions(provider).includes(precision) ? precision : null;
      sessions.set(name, await Session.fastest(part, { ...options, precision: own }));
    }
    return new Graphs(package_, sessions);
  }

  /**
   * @param {string} name
   * @returns {Session}
   */
  get(name) {
    const session = this.sessions.get(name);
    if (!session) throw new PackageError(`${this.package.path} has no graph ${name}, but ${[...this.sessions.keys()].join(", ")}`);
    return session;
  }

  /** Gives the graphs' memory back. */
  async release() {
    for (const session of this.sessions.values()) await session.release();
  }
}

/**
 * Throws PackageError unless the graph's inputs and outputs are those of the signature, in its order.
 * @param {InferenceSession} inference
 * @param {Package} package_
 */
function refuseOtherEdge(inference, package_) {
  const { inputs, outputs } = package_.signature;
  for (const [kind, values, specs] of /** @type {const} */ ([
    ["inputs", inference.inputMetadata, inputs],
    ["outputs", inference.outputMetadata, outputs],
  ])) {
    const has = values.map((value) => (value.isTensor ? `${value.name} ${value.type} of rank ${value.shape.length}` : value.name));
    const said = specs.map((/** @type {TensorSpec} */ spec) => `${spec.name} ${spec.dtype} of rank ${spec.axes.length}`);
    if (has.join() !== said.join()) {
      throw new PackageError(`${package_.path}: the graph has the ${kind} ${has.join(", ")}; the manifest says ${said.join(", ")}`);
    }
  }
}
