/** Packages: one manifest, every file under its digest, which is checked when the file is opened. */
export type Files = import("./files.js").Files;
export type Progress = import("./files.js").Progress;
export type Dtype = import("./tensors.js").Dtype;
export type Tensor = import("./tensors.js").Tensor;
/**
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./files.js").Progress} Progress
 * @typedef {import("./tensors.js").Dtype} Dtype
 * @typedef {import("./tensors.js").Tensor} Tensor
 */
export declare const MANIFEST = "isoformer.json";
export declare const MODEL = "model";
export type TensorSpec = {
    name: string;
    dtype: Dtype;
    axes: (string | number)[];
    kind: string;
    low: number;
    high: number | null;
    pad: number | null;
    default: number | null;
    along: string | null;
};
export type Signature = {
    inputs: TensorSpec[];
    outputs: TensorSpec[];
    axes: Record<string, [number, number | null]>;
    sums: Record<string, string[]>;
};
export type Variant = {
    path: string;
    provider: string;
    precision: string;
    cache: string;
    padded?: boolean;
    reproducible?: boolean;
    cache_dtype?: string;
};
/**
 * One input or output, as the manifest's signature states it.
 * @typedef {{
 *   name: string, dtype: Dtype, axes: (string | number)[], kind: string, low: number, high: number | null,
 *   pad: number | null, default: number | null, along: string | null,
 * }} TensorSpec
 *
 * Inputs and outputs in the graph's order. axes: named ones to their [least, most or null]; sums: to the axes whose
 * sizes add up to theirs, one may stand there several times.
 * @typedef {{
 *   inputs: TensorSpec[], outputs: TensorSpec[], axes: Record<string, [number, number | null]>,
 *   sums: Record<string, string[]>,
 * }} Signature
 *
 * Another graph of the same model. cache: "shared" when it writes its cache in place. padded: for batches with padding.
 * @typedef {{
 *   path: string, provider: string, precision: string, cache: string, padded?: boolean, reproducible?: boolean,
 *   cache_dtype?: string,
 * }} Variant
 */
/**
 * Whether a variant keeps keys and values in 8 bits, which Python alone does.
 * @param {Variant} variant
 */
export declare function isCacheInt8(variant: Variant): boolean;
/**
 * Whether a variant is made for the provider. WebGPU has OpenVINO's in float32, of standard operators without Attention.
 * @param {Variant} variant
 * @param {string} provider
 */
export declare function runsOn(variant: Variant, provider: string): boolean;
/** A package whose manifest has been read, or one graph of it. */
export declare class Package {
    files: import("./files.js").Files;
    manifest: Record<string, any>;
    graph: string;
    parts: Record<string, Package>;
    digests: boolean;
    signature: Signature;
    /**
     * @param {Files} files
     * @param {Record<string, any>} manifest of the whole package, with a graph's own records above
     * @param {{ graph?: string, digests?: boolean, parts?: Record<string, Package> }} [options]
     */
    constructor(files: Files, manifest: Record<string, any>, { graph, digests, parts }?: {
        graph?: string;
        digests?: boolean;
        parts?: Record<string, Package>;
    });
    /** What errors call the package. */
    get path(): string;
    /**
     * Every graph by its name.
     * @returns {Record<string, Package>}
     */
    get graphs(): Record<string, Package>;
    /**
     * The task and its settings, {} for a package that has none.
     * @returns {Record<string, any>}
     */
    get task(): Record<string, any>;
    /**
     * Other graphs of the same model by name, <provider>-<precision>.
     * @returns {Record<string, Variant & Record<string, any>>}
     */
    get variants(): Record<string, Variant & Record<string, any>>;
    /**
     * One of them; PackageError with those that there are.
     * @param {string} name
     */
    variant(name: string): Variant & Record<string, any>;
    /**
     * The variant of a precision for a provider, null for the canonical graph.
     * @param {string} provider
     * @param {string | null} [precision] null is the one that the package was exported for
     */
    fastest(provider: string, precision?: string | null): string | null;
    /**
     * The float32 graph whose attention is taken apart, which WebGPU runs as well as OpenVINO, else the canonical one.
     * @param {string | null} precision
     */
    forWebGpu(precision: string | null): string | null;
    /**
     * Throws PackageError unless a graph of the package has that precision for the provider.
     * @param {string} provider
     * @param {string} precision
     */
    refusePrecision(provider: string, precision: string): void;
    /**
     * Those of the graph for a provider, the canonical one's first.
     * @param {string} provider
     * @returns {string[]}
     */
    precisions(provider: string): string[];
    /**
     * Whether the package has such a file.
     * @param {string} file
     */
    has(file: string): boolean;
    /**
     * A file of the package, whole and checked. Throws PackageError for one that is not listed, missing or altered.
     * @param {string} file
     * @param {Progress} [progress]
     * @returns {Promise<Uint8Array<ArrayBuffer>>}
     */
    read(file: string, progress?: Progress): Promise<Uint8Array<ArrayBuffer>>;
    /**
     * A file of the package as JSON data.
     * @param {string} file
     * @returns {Promise<any>}
     */
    readJson(file: string): Promise<any>;
    /**
     * Throws PackageError unless the file is the one that was exported.
     * @param {string} file
     * @param {Uint8Array<ArrayBuffer> | null} [bytes] of it, if they have been read
     */
    check(file: string, bytes?: Uint8Array<ArrayBuffer> | null): Promise<void>;
    /** @param {string} file */
    refuseUnlisted(file: string): void;
    /**
     * The graph's file, or a variant's.
     * @param {string | null} variant
     */
    modelFile(variant: string | null): string;
    /**
     * The files with the weights of a graph: as the graph calls each, and where it is in the package.
     * @param {string} model the graph's file
     * @param {Uint8Array} bytes of the graph
     * @returns {{ location: string, file: string }[]}
     */
    weights(model: string, bytes: Uint8Array): {
        location: string;
        file: string;
    }[];
    /**
     * A test data set in ONNX's convention: arrays by name.
     * @param {string} folder
     * @param {"input" | "output"} kind
     * @returns {Promise<Record<string, Tensor>>}
     */
    vectors(folder: string, kind: "input" | "output"): Promise<Record<string, Tensor>>;
}
/**
 * Reads a package's manifest. Its files are read, and held to their SHA-256, when they are needed.
 * @param {string | URL | Files} place a folder (Node), an address, or an object that reads files
 * @param {{ digests?: boolean }} [options] digests: false leaves the SHA-256 unchecked, where a page cannot compute it
 * @returns {Promise<Package>}
 * Throws PackageError for what is no package, or one of a later schema.
 */
export declare function load(place: string | URL | Files, { digests }?: {
    digests?: boolean;
}): Promise<Package>;
