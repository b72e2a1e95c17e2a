/** Text to token ids with the package's own tokenizer.json, and lists of texts to batches and back. */
import { Tokenizer } from "./tokenizer.js";
export type Session = import("./session.js").Session;
export type Tensor = import("./tensors.js").Tensor;
export type Encoding = import("./tokenizer.js").Encoding;
export type Done = (done: number) => void;
/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./tensors.js").Tensor} Tensor
 * @typedef {import("./tokenizer.js").Encoding} Encoding
 * @typedef {(done: number) => void} Done called with the number of texts that are done
 */
export declare const BATCH_SIZE = 32;
/** Makes the inputs of a text model: ids, mask, and token types where the model has them. */
export declare class TextEncoder {
    session: import("./session.js").Session;
    tokenizer: Tokenizer;
    config: Record<string, any>;
    truncate: boolean;
    limit: number | null;
    padId: number;
    /**
     * Use `textEncoder`.
     * @param {Session} session
     * @param {Tokenizer} tokenizer
     * @param {Record<string, any>} config of the tokenizer
     * @param {boolean} truncate
     */
    constructor(session: Session, tokenizer: Tokenizer, config: Record<string, any>, truncate: boolean);
    /**
     * The id of the special token that tokenizer_config.json names, or of the first usual one that exists.
     * @param {string} kind
     * @param {readonly string[]} usual
     */
    special(kind: string, usual: readonly string[]): number | null;
    /**
     * The texts' tokens. Throws InputError for one that is longer than the model takes.
     * @param {readonly string[]} texts
     * @returns {Encoding[]}
     */
    encode(texts: readonly string[]): Encoding[];
    /**
     * One batch, padded on the right to its longest text.
     * @param {readonly Encoding[]} encodings
     * @returns {Record<string, Tensor>}
     */
    inputs(encodings: readonly Encoding[]): Record<string, Tensor>;
}
/**
 * The session's encoder, made once. truncate: cut a text that is too long for the model, which else is an InputError.
 * @param {Session} session
 * @param {{ truncate?: boolean }} [options]
 * @returns {Promise<TextEncoder>}
 * Throws PackageError when the package has no tokenizer.
 */
export declare function textEncoder(session: Session, { truncate }?: {
    truncate?: boolean;
}): Promise<TextEncoder>;
/**
 * (index, tokens, row of `output`) of each text; texts of like length share a batch, so the order is theirs.
 * @param {Session} session
 * @param {TextEncoder} encoder
 * @param {readonly string[]} texts
 * @param {string} output
 * @param {{ batchSize?: number, progress?: Done }} [options]
 * @returns {AsyncGenerator<[number, Encoding, Float32Array]>}
 */
export declare function runBatches(session: Session, encoder: TextEncoder, texts: readonly string[], output: string, { batchSize, progress }?: {
    batchSize?: number;
    progress?: Done;
}): AsyncGenerator<[number, Encoding, Float32Array]>;
