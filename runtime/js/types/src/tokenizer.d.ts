/**
 * Text to token ids and back, as Python's `tokenizers` does it: @huggingface/tokenizers, with the places mended where
 * the two differ (docs/demo.md, "Tokenizers").
 */
export type Library = typeof import("@huggingface/tokenizers");
export type Encoding = {
    ids: number[];
    typeIds: number[];
    tokens: string[];
};
/**
 * @typedef {typeof import("@huggingface/tokenizers")} Library
 * @typedef {{ ids: number[], typeIds: number[], tokens: string[] }} Encoding
 */
export declare class Tokenizer {
    inner: import("@huggingface/tokenizers").Tokenizer;
    /**
     * @param {any} json what tokenizer.json holds
     * @param {Library} library
     * @param {string} file what errors call it
     * Throws PackageError for what is no tokenizer that the library knows.
     */
    constructor(json: any, library: Library, file: string);
    /**
     * @param {string} text
     * @param {{ addSpecialTokens?: boolean, limit?: number | null }} [options] limit: cuts to so many tokens, with those
     *   that are added
     * @returns {Encoding}
     * Throws InputError for a text that is not Unicode.
     */
    encode(text: string, { addSpecialTokens, limit }?: {
        addSpecialTokens?: boolean;
        limit?: number | null;
    }): Encoding;
    /**
     * @param {string[]} own
     * @param {boolean} add
     */
    whole(own: string[], add: boolean): any;
    /**
     * @param {readonly number[]} ids
     * @param {{ skipSpecialTokens?: boolean }} [options]
     * @returns {string}
     */
    decode(ids: readonly number[], { skipSpecialTokens }?: {
        skipSpecialTokens?: boolean;
    }): string;
    /** @param {string} token @returns {number | undefined} */
    tokenToId(token: string): number | undefined;
    /** @param {number} id @returns {string | undefined} */
    idToToken(id: number): string | undefined;
}
