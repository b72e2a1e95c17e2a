/** Continuing token sequences: greedily, by sampling, by beam search; one batch, one cache, one graph. */
import { Decoder } from "./binding.js";
import * as sampling from "./sampling.js";
export type Processor = import("./sampling.js").Processor;
export type Session = import("./session.js").Session;
export type Ends = (number: number, added: readonly number[]) => boolean;
export type SettingsLike = {
    maxTokens?: number;
    temperature?: number | null;
    topK?: number | null;
    topP?: number | null;
    minP?: number | null;
    repetitionPenalty?: number;
    beams?: number;
    lengthPenalty?: number;
    earlyStopping?: boolean;
    seed?: number | bigint | null;
    eos?: readonly number[];
    processors?: readonly Processor[];
};
/**
 * How a sequence goes on, as Python's `Settings`.
 *
 * maxTokens: new ones, at most; a sequence also ends where the model's positions do. temperature: 0 takes the likeliest
 * token (greedy), above 0 draws one; null is 1 where topK, topP or minP is given, else 0. beams: above 1 searches for
 * the likeliest sequence: the best by sum(log p) / length ** lengthPenalty. earlyStopping: end the search with the first
 * `beams` finished sequences. seed: of the draws, the same as in Python; null takes another each time. eos: tokens that
 * end a sequence, which keeps the one it met. processors: applied before all others.
 */
export declare class Settings {
    maxTokens: number;
    temperature: number | null;
    topK: number | null;
    topP: number | null;
    minP: number | null;
    repetitionPenalty: number;
    beams: number;
    lengthPenalty: number;
    earlyStopping: boolean;
    seed: number | bigint | null;
    eos: readonly number[];
    processors: readonly sampling.Processor[];
    /**
     * @param {SettingsLike} [given]
     * Throws InputError for a name that is not known, a value out of range, and draws in a beam search.
     */
    constructor(given?: SettingsLike);
    check(): void;
    /** Whether tokens are drawn at random. */
    get draws(): boolean;
    /**
     * The processors in the order in which Python applies them.
     * @returns {Processor[]}
     */
    allProcessors(): Processor[];
}
/** What was computed and how long it took, added up over calls. */
export declare class Stats {
    promptTokens: number;
    reusedTokens: number;
    newTokens: number;
    steps: number;
    prefillMs: number;
    decodeMs: number;
    /** For people. */
    line(): string;
}
/**
 * The new tokens of each prompt, in order; prompts of like length share a batch.
 *
 * What a prompt gets does not depend on the others: each has draws of its own, of (seed, its number).
 * Throws InputError for a prompt that is empty, leaves no room or holds an id out of the vocabulary.
 * @param {Session} session
 * @param {readonly (readonly number[])[]} prompts
 * @param {Settings} [settings]
 * @param {{ ends?: Ends, stats?: Stats, progress?: (done: number) => void }} [options]
 * @returns {Promise<number[][]>}
 */
export declare function generate(session: Session, prompts: readonly (readonly number[])[], settings?: Settings, { ends, stats, progress }?: {
    ends?: Ends;
    stats?: Stats;
    progress?: (done: number) => void;
}): Promise<number[][]>;
/**
 * (number, token) as tokens come, of one batch of numbered prompts; a beam search's come at its end.
 *
 * What the decoder holds of an earlier prompt that this one begins with is not computed again. A sequence that has ended
 * leaves the batch. Throws as `generate` does.
 * @param {Decoder} decoder
 * @param {ReadonlyMap<number, readonly number[]>} prompts
 * @param {Settings} [settings]
 * @param {{ ends?: Ends, stats?: Stats }} [options]
 * @returns {AsyncGenerator<[number, number]>}
 */
export declare function stream(decoder: Decoder, prompts: ReadonlyMap<number, readonly number[]>, settings?: Settings, { ends, stats }?: {
    ends?: Ends;
    stats?: Stats;
}): AsyncGenerator<[number, number]>;
