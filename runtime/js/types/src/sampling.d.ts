/**
 * From logits to the next token: logits processors as plain functions, and the draw.
 *
 * A processor takes the ids so far and the logits (vocabulary) of the next in float64, and returns logits; what it
 * leaves out is -Infinity. Those here compute what Python's of the same names do.
 */
export type Processor = (ids: readonly number[], logits: Float64Array) => Float64Array;
/**
 * @typedef {(ids: readonly number[], logits: Float64Array) => Float64Array} Processor
 */
/**
 * Makes tokens that occurred less likely: logit / penalty where positive, logit * penalty where negative.
 * Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1.
 * @param {number} penalty
 * @returns {Processor}
 */
export declare function repetitionPenalty(penalty: number): Processor;
/**
 * Leaves these tokens out.
 * @param {readonly number[]} tokens
 * @returns {Processor}
 */
export declare function suppress(tokens: readonly number[]): Processor;
/**
 * Leaves nothing but `token` where it would become ids[place].
 * @param {number} token
 * @param {number} place
 * @returns {Processor}
 */
export declare function force(token: number, place: number): Processor;
/**
 * logits / value, less their largest, so that no small temperature overflows: above 1 flatter, below 1 sharper.
 * @param {number} value
 * @returns {Processor}
 */
export declare function temperature(value: number): Processor;
/**
 * Leaves the k likeliest tokens, and those as likely as the last of them.
 * @param {number} k
 * @returns {Processor}
 */
export declare function topK(k: number): Processor;
/**
 * Leaves the fewest tokens whose probabilities add up to p or more, the likeliest first.
 * Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1.
 * @param {number} p
 * @returns {Processor}
 */
export declare function topP(p: number): Processor;
/**
 * Leaves the tokens that are at least p times as likely as the likeliest.
 * Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3.
 * @param {number} p
 * @returns {Processor}
 */
export declare function minP(p: number): Processor;
/**
 * exp(x) / sum(exp(x)); needs one finite value.
 * @param {Float64Array} logits
 */
export declare function softmax(logits: Float64Array): Float64Array<ArrayBuffer>;
/**
 * x - log(sum(exp(x))).
 * @param {Float64Array} logits
 */
export declare function logSoftmax(logits: Float64Array): Float64Array<ArrayBuffer>;
/**
 * The logits after every processor in turn. Throws InputError when none is finite, or one is NaN.
 * @param {readonly Processor[]} processors
 * @param {readonly number[]} ids
 * @param {Float64Array} logits
 */
export declare function apply(processors: readonly Processor[], ids: readonly number[], logits: Float64Array): Float64Array<ArrayBufferLike>;
/**
 * A token with the probability that softmax gives it; one number of `random` each time.
 * @param {Float64Array} logits
 * @param {import("./random.js").Random} random
 */
export declare function draw(logits: Float64Array, random: import("./random.js").Random): number;
/**
 * The place of the largest, the first of several.
 * @param {Float64Array} values
 */
export declare function argmax(values: Float64Array): number;
