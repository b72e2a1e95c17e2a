/** embed: one vector a text; texts that mean alike have vectors that point alike. */
export type Session = import("../session.js").Session;
/** @typedef {import("../session.js").Session} Session */
/**
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<{ input: string, embedding: number[] }[]>}
 */
export declare function run(session: Session, texts: readonly string[], options?: {
    truncate?: boolean;
    progress?: (done: number) => void;
}): Promise<{
    input: string;
    embedding: number[];
}[]>;
/**
 * The vectors, one a text, in order.
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<Float32Array[]>}
 */
export declare function embeddings(session: Session, texts: readonly string[], { truncate, progress }?: {
    truncate?: boolean;
    progress?: (done: number) => void;
}): Promise<Float32Array[]>;
/**
 * Cosine of every pair; 0 beside a zero vector.
 * @param {readonly (Float32Array | readonly number[])[]} vectors
 * @returns {number[][]}
 */
export declare function similarities(vectors: readonly (Float32Array | readonly number[])[]): number[][];
