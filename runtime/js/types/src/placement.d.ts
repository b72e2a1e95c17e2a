/**
 * Which operators a provider of onnxruntime-web left to the CPU. ONNX Runtime moves what a provider lacks to
 * WebAssembly without a word, and this build tells where nodes are in its log alone, on the console.
 */
export type InferenceSession = import("onnxruntime-common").InferenceSession;
export type Node = {
    operator: string;
    name: string;
};
export type Placed = Map<string, Node[]>;
/**
 * Runs what loads onnxruntime-web's WebAssembly, if it is the first of its module. It keeps the console's functions as
 * it finds them then, so they are exchanged for that long for some that hand ONNX Runtime's lines to the listeners.
 * @template T
 * @param {object} ort
 * @param {() => Promise<T>} load
 * @returns {Promise<T>}
 */
export declare function overheard<T>(ort: object, load: () => Promise<T>): Promise<T>;
/**
 * Where the nodes are of the session that `open` opens with ONNX Runtime's whole log; it is closed again.
 * @param {() => Promise<InferenceSession>} open
 * @returns {Promise<Placed>}
 */
export declare function placements(open: () => Promise<InferenceSession>): Promise<Placed>;
/**
 * @param {readonly string[]} lines of the log
 * @returns {Placed}
 */
export declare function read(lines: readonly string[]): Placed;
/**
 * The names of the nodes that WebGPU must leave to the CPU, for it computes them with too few bits.
 * @param {Placed} placed
 */
export declare function inexact(placed: Placed): string[];
/**
 * How many nodes of which operators are elsewhere than on WebGPU.
 * @param {Placed} placed
 * @returns {Map<string, number>}
 * Throws ProviderError when they are others than may be, or when the log does not say where they are.
 */
export declare function elsewhere(placed: Placed): Map<string, number>;
