/** generate: how a text goes on. */
import { Decoder } from "../binding.js";
import { Stats } from "../generation.js";
export type Session = import("../session.js").Session;
export type SettingsLike = import("../generation.js").SettingsLike;
export type Options = {
    settings?: SettingsLike;
    stop?: readonly string[];
    stats?: Stats;
};
/**
 * @typedef {import("../session.js").Session} Session
 * @typedef {import("../generation.js").SettingsLike} SettingsLike
 *
 * stop: strings that end a text. settings: where they have no eos, the package's own.
 * @typedef {{ settings?: SettingsLike, stop?: readonly string[], stats?: Stats }} Options
 */
/**
 * How each text goes on, and the new tokens.
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {Options & { progress?: (done: number) => void }} [options]
 * @returns {Promise<{ input: string, text: string, token_ids: number[] }[]>}
 * Throws InputError for an empty text and one that leaves the model no room.
 */
export declare function run(session: Session, texts: readonly string[], { settings, stop, stats, progress }?: Options & {
    progress?: (done: number) => void;
}): Promise<{
    input: string;
    text: string;
    token_ids: number[];
}[]>;
/**
 * What `run` gives as "text", piece by piece as tokens come. Throws as `run` does. signal: ends it between two tokens.
 * @param {Session} session
 * @param {string} text
 * @param {Options & { decoder?: Decoder, signal?: AbortSignal }} [options] decoder: one that keeps its cache from call to call
 * @returns {AsyncGenerator<string>}
 */
export declare function stream(session: Session, text: string, { settings, stop, stats, decoder, signal }?: Options & {
    decoder?: Decoder;
    signal?: AbortSignal;
}): AsyncGenerator<string>;
/**
 * The tokens of each text. Throws InputError for a text that has none or is not Unicode.
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ addSpecialTokens?: boolean }} [options]
 * @returns {Promise<number[][]>}
 */
export declare function encode(session: Session, texts: readonly string[], { addSpecialTokens }?: {
    addSpecialTokens?: boolean;
}): Promise<number[][]>;
