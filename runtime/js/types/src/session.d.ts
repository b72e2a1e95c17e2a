/** A package, ready to run: inputs are checked before ONNX Runtime sees them, outputs come back by name. */
import { Package } from "./package.js";
export type Engine = import("./engine.js").Engine;
export type InferenceSession = import("./engine.js").InferenceSession;
export type ProviderName = import("./engine.js").ProviderName;
export type Progress = import("./files.js").Progress;
export type TensorSpec = import("./package.js").TensorSpec;
export type Tensor = import("./tensors.js").Tensor;
export type Options = {
    provider?: ProviderName;
    threads?: number;
    engine?: Engine;
    progress?: Progress;
};
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
export declare class Session {
    package: Package;
    engine: import("./engine.js").Engine;
    provider: import("./engine.js").ProviderName;
    inference: import("onnxruntime-common").InferenceSession;
    variant: string | null;
    signature: import("./package.js").Signature;
    sharedCache: boolean;
    /** @type {Map<boolean, Promise<import("./text.js").TextEncoder>>} see `textEncoder` */
    textEncoders: Map<boolean, Promise<import("./text.js").TextEncoder>>;
    /**
     * Use `Session.open` or `Session.fastest`.
     * @param {Package} package_
     * @param {Engine} engine
     * @param {ProviderName} provider
     * @param {InferenceSession} inference
     * @param {string | null} variant
     */
    constructor(package_: Package, engine: Engine, provider: ProviderName, inference: InferenceSession, variant: string | null);
    /**
     * The session of the canonical graph, or of a variant by its name in `package.variants`.
     * @param {string | URL | Package} place a package's folder (Node) or address, or what `load` has read
     * @param {Options & { variant?: string | null }} [options]
     * @returns {Promise<Session>}
     * Throws PackageError for a broken package and ProviderError when the provider does not run the graph here.
     */
    static open(place: string | URL | Package, { provider, threads, variant, engine, progress }?: Options & {
        variant?: string | null;
    }): Promise<Session>;
    /**
     * The session of the package's fastest graph of a precision, by default the one it was exported for.
     * @param {string | URL | Package} place
     * @param {Options & { precision?: string | null }} [options]
     * @returns {Promise<Session>}
     * Throws as `open` does, and PackageError for a precision that the package does not have.
     */
    static fastest(place: string | URL | Package, { precision, ...options }?: Options & {
        precision?: string | null;
    }): Promise<Session>;
    /**
     * The outputs by name, all of them or the ones named.
     * @param {Record<string, Tensor>} inputs of the dtype and rank that the signature states; a mask may have any dtype
     *   that holds 0 and 1. Inputs with a default may be left out.
     * @param {readonly string[] | null} [outputs]
     * @returns {Promise<Record<string, Tensor>>}
     * Throws InputError, one line, for a wrong name, dtype, rank, size or value.
     */
    run(inputs: Record<string, Tensor>, outputs?: readonly string[] | null): Promise<Record<string, Tensor>>;
    /**
     * Runs the graph on what has been checked. outputs: names, or tensors to write into.
     * @param {Record<string, Tensor>} feeds
     * @param {readonly string[] | Record<string, Tensor | null>} outputs
     * @returns {Promise<Record<string, Tensor>>}
     */
    compute(feeds: Record<string, Tensor>, outputs: readonly string[] | Record<string, Tensor | null>): Promise<Record<string, Tensor>>;
    /** Gives the graph's memory back. */
    release(): Promise<void>;
}
/**
 * The sessions of a package's graphs by name: "encoder_model", "decoder_model_merged", …, or "model" alone.
 *
 *     const graphs = await Graphs.open("fr-en");
 *     const outputs = await graphs.get("encoder_model").run({ input_ids: ids });
 */
export declare class Graphs {
    package: Package;
    sessions: Map<string, Session>;
    /**
     * Use `Graphs.open`.
     * @param {Package} package_
     * @param {Map<string, Session>} sessions
     */
    constructor(package_: Package, sessions: Map<string, Session>);
    /**
     * Options as `Session.fastest` takes them; a graph without the precision, where another has it, runs in its own.
     * @param {string | URL | Package} place
     * @param {Options & { precision?: string | null }} [options]
     * @returns {Promise<Graphs>}
     */
    static open(place: string | URL | Package, { precision, ...options }?: Options & {
        precision?: string | null;
    }): Promise<Graphs>;
    /**
     * @param {string} name
     * @returns {Session}
     */
    get(name: string): Session;
    /** Gives the graphs' memory back. */
    release(): Promise<void>;
}
