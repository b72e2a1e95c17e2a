/** Token ids to text while they come: no broken characters, nothing of a stop string. */
/** The text of new tokens, which depends on those before them where a tokenizer writes a space as part of a word. */
export declare class Detokenizer {
    tokenizer: import("./tokenizer.js").Tokenizer;
    context: number[];
    stop: readonly string[];
    silent: Set<number>;
    before: number;
    /**
     * @param {import("./tokenizer.js").Tokenizer} tokenizer
     * @param {{ context?: readonly number[], stop?: readonly string[], silent?: readonly number[] }} [options]
     *   context: the tokens before. stop: strings that end the text, which keeps nothing of them. silent: tokens without
     *   text; special tokens have none either
     * Throws InputError for an empty stop string.
     */
    constructor(tokenizer: import("./tokenizer.js").Tokenizer, { context, stop, silent }?: {
        context?: readonly number[];
        stop?: readonly string[];
        silent?: readonly number[];
    });
    /**
     * The whole text of the new tokens, up to the first stop string.
     * @param {readonly number[]} added
     */
    text(added: readonly number[]): string;
    /**
     * Whether the text holds a stop string.
     * @param {readonly number[]} added
     */
    stopped(added: readonly number[]): boolean;
    /**
     * The part of the text that no later token changes: whole characters, and no beginning of a stop string.
     * @param {readonly number[]} added
     */
    settled(added: readonly number[]): string;
    /** @param {readonly number[]} added */
    decode(added: readonly number[]): string;
}
/**
 * The tokens that end a text: of generation_config.json, else config.json, else the tokenizer's own.
 * @param {import("./package.js").Package} package_
 * @param {import("./text.js").TextEncoder} encoder
 * @returns {Promise<number[]>}
 */
export declare function eosTokens(package_: import("./package.js").Package, encoder: import("./text.js").TextEncoder): Promise<number[]>;
