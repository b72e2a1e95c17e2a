/**
 * From logits to the next token: logits processors as plain functions, and the draw.
 *
 * A processor takes the ids so far and the logits (vocabulary) of the next in float64, and returns logits; what it
 * leaves out is -Infinity. Those here compute what Python's of the same names do.
 */

import { InputError } from "./errors.js";

/**
 * @typedef {(ids: readonly number[], logits: Float64Array) => Float64Array} Processor
 */

/**
 * Makes tokens that occurred less likely: logit / penalty where positive, logit * penalty where negative.
 * Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1.
 * @param {number} penalty
 * @returns {Processor}
 */
export function repetitionPenalty(penalty) {
  return (ids, logits) => {
    const result = logits.slice();
    for (const id of new Set(ids)) result[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
    return result;
  };
}

/**
 * Leaves these tokens out.
 * @param {readonly number[]} tokens
 * @returns {Processor}
 */
export function suppress(tokens) {
  return (_ids, logits) => {
    const result = logits.slice();
    for (const token of tokens) result[token] = -Infinity;
    return result;
  };
}

/**
 * Leaves nothing but `token` where it would become ids[place].
 * @param {number} token
 * @param {number} place
 * @returns {Processor}
 */
export function force(token, place) {
  return (ids, logits) => (ids.length === place ? logits.map((_, id) => (id === token ? 0 : -Infinity)) : logits);
}

/**
 * logits / value, less their largest, so that no small temperature overflows: above 1 flatter, below 1 sharper.
 * @param {number} value
 * @returns {Processor}
 */
export function temperature(value) {
  return (_ids, logits) => {
    const top = largest(logits);
    return logits.map((logit) => (logit - top) / value);
  };
}

/**
 * Leaves the k likeliest tokens, and those as likely as the last of them.
 * @param {number} k
 * @returns {Processor}
 */
export function topK(k) {
  return (_ids, logits) => {
    const least = logits.slice().sort()[Math.max(0, logits.length - k)];
    return logits.map((logit) => (logit < least ? -Infinity : logit));
  };
}

/**
 * Leaves the fewest tokens whose probabilities add up to p or more, the likeliest first.
 * Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1.
 * @param {number} p
 * @returns {Processor}
 */
export function topP(p) {
  return (_ids, logits) => {
    const upwards = Uint32Array.from(logits.keys()).sort((a, b) => compared(logits[a], logits[b]) || a - b);
    const probabilities = softmax(Float64Array.from(upwards, (id) => logits[id]));
    const result = logits.slice();
    let sum = 0;
    for (const [place, id] of upwards.entries()) {
      sum += probabilities[place];
      if (sum > 1 - p || place === upwards.length - 1) break;
      result[id] = -Infinity;
    }
    return result;
  };
}

/** @param {number} a @param {number} b */
function compared(a, b) {
  return a < b ? -1 : a > b ? 1 : 0; // a difference of infinities is NaN
}

/**
 * Leaves the tokens that are at least p times as likely as the likeliest.
 * Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3.
 * @param {number} p
 * @returns {Processor}
 */
export function minP(p) {
  return (_ids, logits) => {
    const probabilities = softmax(logits);
    const least = p * largest(probabilities);
    return logits.map((logit, id) => (probabilities[id] < least ? -Infinity : logit));
  };
}

/**
 * exp(x) / sum(exp(x)); needs one finite value.
 * @param {Float64Array} logits
 */
export function softmax(logits) {
  const top = largest(logits);
  const exponents = logits.map((logit) => Math.exp(logit - top));
  const sum = exponents.reduce((total, value) => total + value, 0);
  return exponents.map((value) => value / sum);
}

/**
 * x - log(sum(exp(x))).
 * @param {Float64Array} logits
 */
export function logSoftmax(logits) {
  const top = largest(logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - top), 0);
  return logits.map((logit) => logit - top - Math.log(sum));
}

/**
 * The logits after every processor in turn. Throws InputError when none is finite, or one is NaN.
 * @param {readonly Processor[]} processors
 * @param {readonly number[]} ids
 * @param {Float64Array} logits
 */
export function apply(processors, ids, logits) {
  const result = processors.reduce((made, process) => process(ids, made), logits);
  const top = largest(result);
  if (Number.isFinite(top)) return result;
  throw new InputError(`no next token can be chosen behind ${ids.length} tokens: the largest logit is ${top}`);
}

/**
 * A token with the probability that softmax gives it; one number of `random` each time.
 * @param {Float64Array} logits
 * @param {import("./random.js").Random} random
 */
export function draw(logits, random) {
  const probabilities = softmax(logits);
  let sum = 0;
  const bounds = probabilities.map((value) => (sum += value));
  const wanted = random.random() * bounds[bounds.length - 1];
  return bounds.findIndex((bound) => bound > wanted);
}

/**
 * The place of the largest, the first of several.
 * @param {Float64Array} values
 */
export function argmax(values) {
  let best = 0;
  for (let place = 1; place < values.length; place += 1) if (values[place] > values[best]) best = place;
  return best;
}

/**
 * The largest value, NaN if there is one.
 * @param {Float64Array} values
 */
function largest(values) {
  let top = -Infinity;
  for (const value of values) {
    if (value > top) top = value;
    else if (Number.isNaN(value)) return NaN;
  }
  return top;
}
