/** classify: which of the model's classes a text belongs to. */
/**
 * Scores are probabilities that sum to 1, or one of its own for each label (multi_label), or the model's numbers as they
 * are (regression).
 * @param {import("../session.js").Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<{ input: string, label: string, scores: Record<string, number> }[]>}
 */
export declare function run(session: import("../session.js").Session, texts: readonly string[], { truncate, progress }?: {
    truncate?: boolean;
    progress?: (done: number) => void;
}): Promise<{
    input: string;
    label: string;
    scores: Record<string, number>;
}[]>;
/**
 * The labels; those that several classes have, as ImageNet's two "crane", with the class' number behind.
 * @param {readonly string[]} labels
 */
export declare function distinct(labels: readonly string[]): string[];
/**
 * softmax for single_label, sigmoid for multi_label, the numbers themselves for regression.
 * @param {Float64Array} logits
 * @param {string} problem
 */
export declare function toScores(logits: Float64Array, problem: string): Float64Array<ArrayBufferLike>;
