/**
 * What computes: onnxruntime-node in Node, onnxruntime-web in browsers, with the tokenizer library beside it.
 *
 * A page finds the npm packages by an import map, see `demo/index.html`; where there is none, as in a worker, `webEngine`
 * takes their addresses.
 */
export type Package = import("./package.js").Package;
export type Progress = import("./package.js").Progress;
export type InferenceSession = import("onnxruntime-common").InferenceSession;
export type Ort = typeof import("onnxruntime-common");
export type ProviderName = "cpu" | "webgpu";
export type Engine = {
    name: string;
    version: string;
    ort: Ort;
    tokenizers: typeof import("@huggingface/tokenizers");
    providers: ProviderName[];
    aliased: boolean;
    open: (package_: Package, options: OpenOptions) => Promise<InferenceSession>;
    elsewhere?: (session: InferenceSession) => Map<string, number>;
};
export type OpenOptions = {
    provider: ProviderName;
    variant: string | null;
    threads?: number;
    tuned: boolean;
    progress?: Progress;
};
/**
 * The engine of the place where this runs; found once.
 * @returns {Promise<Engine>}
 */
export declare function defaultEngine(): Promise<Engine>;
/**
 * onnxruntime-node.
 * @returns {Promise<Engine>}
 */
export declare function nodeEngine(): Promise<Engine>;
/**
 * onnxruntime-web. Threads need a page that is cross-origin isolated; without, there is one.
 * @param {{ ort?: string | URL, tokenizers?: string | URL }} [modules] addresses of the two libraries' modules
 * @returns {Promise<Engine>}
 */
export declare function webEngine({ ort: ortAddress, tokenizers: tokenizersAddress }?: {
    ort?: string | URL;
    tokenizers?: string | URL;
}): Promise<Engine>;
/**
 * Opens a package's graph, in words for people. Throws PackageError, ProviderError or InputError.
 * @param {Engine} engine
 * @param {Package} package_
 * @param {OpenOptions} options
 */
export declare function openGraph(engine: Engine, package_: Package, options: OpenOptions): Promise<import("onnxruntime-web").InferenceSession>;
