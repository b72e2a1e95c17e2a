/** The steps of a decoder behind its cache: keys and values of what went before, from one step to the next. */
export type Session = import("./session.js").Session;
export type TensorSpec = import("./package.js").TensorSpec;
export type Tensor = import("./tensors.js").Tensor;
export type Tokens = number[][];
export type Cache = {
    begin: (width: number, length: number) => number;
    inputs: (held: Tokens, added: Tokens) => Record<string, Tensor>;
    past: () => Record<string, Tensor>;
    present: () => Record<string, Tensor | null>;
    keep: (outputs: Record<string, Tensor>) => void;
    split: (held: Tokens, added: Tokens) => Cache[];
    join: (rows: readonly Cache[]) => void;
    take: (rows: readonly number[], before: number, length: number) => void;
    cut: (length: number) => void;
    clear: () => void;
    wide: boolean;
};
/** A batch of token sequences, and the keys and values that the package's graph has computed of them. */
export declare class Decoder {
    session: import("./session.js").Session;
    /** Tokens a sequence, null without a limit. */
    limit: number | null;
    vocabSize: number | null;
    /** @type {Tokens} */
    tokens: Tokens;
    names: Set<string>;
    /** New tokens of a sequence that one run takes at most. */
    piece: number;
    /** @type {Cache} */
    cache: Cache;
    /**
     * @param {Session} session
     * Throws PackageError for a package that is no decoder with a cache.
     */
    constructor(session: Session);
    /** P: of the longest sequence. */
    get length(): number;
    /**
     * The logits behind each prompt, which replace whatever was there.
     *
     * One prompt that begins as the one sequence here does computes only the rest; `reused` says how many tokens were
     * spared so. Throws InputError for a prompt that is empty, leaves no room or holds an id out of the vocabulary.
     * @param {readonly (readonly number[])[]} prompts
     * @returns {Promise<{ logits: Float32Array[], reused: number }>}
     */
    start(prompts: readonly (readonly number[])[]): Promise<{
        logits: Float32Array[];
        reused: number;
    }>;
    /**
     * The logits behind each sequence with its new tokens, at least one.
     * @param {Tokens} added
     * @returns {Promise<Float32Array[]>}
     * Throws InputError when sequences that hold tokens already get different numbers of them.
     */
    append(added: Tokens): Promise<Float32Array[]>;
    /**
     * Keeps the sequences `rows`, in that order; one may be taken several times.
     * @param {readonly number[]} rows
     */
    take(rows: readonly number[]): void;
    /**
     * Forgets every token from place `length` of the one sequence on; everything, if `length` is 0.
     * @param {number} length
     */
    cut(length: number): void;
    /** @param {readonly number[]} prompt */
    check(prompt: readonly number[]): void;
    /**
     * @param {Tokens} added
     * @returns {Promise<Float32Array[]>}
     */
    step(added: Tokens): Promise<Float32Array[]>;
    /**
     * How many of the new tokens of a row to compute at a time, a row after the other; null is all at once.
     * @param {Tokens} held
     * @param {Tokens} added
     */
    pieceOf(held: Tokens, added: Tokens): number | null;
    /**
     * The same as `run` for long rows. One goes after the other: behind held tokens the operator takes several new ones of a
     * single row only.
     * @param {Tokens} held
     * @param {Tokens} added
     * @param {number} most tokens of a piece
     * @returns {Promise<Float32Array[]>}
     */
    inPieces(held: Tokens, added: Tokens, most: number): Promise<Float32Array[]>;
    /**
     * The graph, once: the logits behind each row.
     * @param {Cache} cache of what is held, then of the new tokens too
     * @param {Tokens} held
     * @param {Tokens} added
     * @param {Record<string, Tensor>} given
     * @returns {Promise<Float32Array[]>}
     */
    run(cache: Cache, held: Tokens, added: Tokens, given: Record<string, Tensor>): Promise<Float32Array[]>;
    /**
     * Inputs that are the same in every step; a decoder alone has none.
     * @returns {Record<string, Tensor>}
     */
    given(): Record<string, Tensor>;
}
/** A `Decoder` beside an encoder's output, whose keys and values are computed once and read in every step. */
export declare class CrossDecoder extends Decoder {
    givenNames: string[];
    /** @type {Record<string, Tensor>} */
    known: Record<string, Tensor>;
    /** @param {Session} session */
    constructor(session: Session);
    /**
     * What the next sequences answer to, a row each: past_key_values.{i}.encoder.key|value, encoder_attention_mask.
     * @param {Record<string, Tensor>} known
     * Throws InputError for another set of names.
     */
    condition(known: Record<string, Tensor>): void;
    /** @param {readonly (readonly number[])[]} prompts */
    start(prompts: readonly (readonly number[])[]): Promise<{
        logits: Float32Array[];
        reused: number;
    }>;
    /** @param {readonly number[]} rows */
    take(rows: readonly number[]): void;
    given(): Record<string, import("./tensors.js").Tensor>;
}
