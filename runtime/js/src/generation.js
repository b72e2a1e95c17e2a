/** Continuing token sequences: greedily, by sampling, by beam search; one batch, one cache, one graph. */

import { Decoder } from "./binding.js";
import { InputError } from "./errors.js";
import { Random, randomSeed } from "./random.js";
import * as sampling from "./sampling.js";

/**
 * @typedef {import("./sampling.js").Processor} Processor
 * @typedef {import("./session.js").Session} Session
 *
 * Called with the number of a prompt and its new tokens after each of them: whether they are the end.
 * @typedef {(number: number, added: readonly number[]) => boolean} Ends
 *
 * How a sequence goes on; see `Settings`.
 * @typedef {{
 *   maxTokens?: number, temperature?: number | null, topK?: number | null, topP?: number | null, minP?: number | null,
 *   repetitionPenalty?: number, beams?: number, lengthPenalty?: number, earlyStopping?: boolean,
 *   seed?: number | bigint | null, eos?: readonly number[], processors?: readonly Processor[],
 * }} SettingsLike
 */

const BATCH_SIZE = 8;

/**
 * How a sequence goes on, as Python's `Settings`.
 *
 * maxTokens: new ones, at most; a sequence also ends where the model's positions do. temperature: 0 takes the likeliest
 * token (greedy), above 0 draws one; null is 1 where topK, topP or minP is given, else 0. beams: above 1 searches for
 * the likeliest sequence: the best by sum(log p) / length ** lengthPenalty. earlyStopping: end the search with the first
 * `beams` finished sequences. seed: of the draws, the same as in Python; null takes another each time. eos: tokens that
 * end a sequence, which keeps the one it met. processors: applied before all others.
 */
export class Settings {
  /**
   * @param {SettingsLike} [given]
   * Throws InputError for a name that is not known, a value out of range, and draws in a beam search.
   */
  constructor(given = {}) {
    const unknown = Object.keys(given).filter((name) => !(name in DEFAULTS));
    if (unknown.length) throw new InputError(`there is no setting ${unknown.join(", ")}; there are ${Object.keys(DEFAULTS).join(", ")}`);
    const all = { ...DEFAULTS, ...given };
    this.maxTokens = all.maxTokens;
    this.temperature = all.temperature;
    this.topK = all.topK;
    this.topP = all.topP;
    this.minP = all.minP;
    this.repetitionPenalty = all.repetitionPenalty;
    this.beams = all.beams;
    this.lengthPenalty = all.lengthPenalty;
    this.earlyStopping = all.earlyStopping;
    this.seed = all.seed;
    this.eos = all.eos;
    this.processors = all.processors;
    this.check();
  }

  check() {
    for (const [name, lowest] of /** @type {const} */ ([["maxTokens", 1], ["topK", 1], ["beams", 1], ["seed", 0]])) {
      const value = this[name];
      const whole = typeof value === "bigint" || Number.isInteger(value);
      if (value !== null && !(whole && value >= lowest)) throw new InputError(`${name} is ${value}; it must be at least ${lowest}`);
    }
    for (const [name, good, words] of RANGES) {
      const value = this[name];
      if (value !== null && !good(value)) throw new InputError(`${name} is ${value}; it must be ${words}`);
    }
    if (this.beams > 1 && this.draws) {
      throw new InputError(`beams is ${this.beams}, and a beam search draws nothing: drop temperature, topK, …`);
    }
  }

  /** Whether tokens are drawn at random. */
  get draws() {
    if (this.temperature !== null) return this.temperature > 0;
    return [this.topK, this.topP, this.minP].some((value) => value !== null);
  }

  /**
   * The processors in the order in which Python applies them.
   * @returns {Processor[]}
   */
  allProcessors() {
    const result = [...this.processors];
    if (this.repetitionPenalty !== 1) result.push(sampling.repetitionPenalty(this.repetitionPenalty));
    if (!this.draws) return result;
    if (this.temperature !== null) result.push(sampling.temperature(this.temperature));
    if (this.topK !== null) result.push(sampling.topK(this.topK));
    if (this.topP !== null) result.push(sampling.topP(this.topP));
    if (this.minP !== null) result.push(sampling.minP(this.minP));
    return result;
  }
}

/** @type {Required<SettingsLike>} */
const DEFAULTS = {
  maxTokens: 128,
  temperature: null,
  topK: null,
  topP: null,
  minP: null,
  repetitionPenalty: 1,
  beams: 1,
  lengthPenalty: 1,
  earlyStopping: false,
  seed: null,
  eos: [],
  processors: [],
};

/** @type {["temperature" | "topP" | "minP" | "repetitionPenalty" | "lengthPenalty", (value: number) => boolean, string][]} */
const RANGES = [
  ["temperature", (x) => x >= 0 && x < Infinity, "0 (the likeliest token) or a positive number"],
  ["topP", (x) => x > 0 && x <= 1, "above 0 and at most 1"],
  ["minP", (x) => x >= 0 && x <= 1, "from 0 to 1"],
  ["repetitionPenalty", (x) => x > 0 && x < Infinity, "a positive number (1 is none)"],
  ["lengthPenalty", Number.isFinite, "a finite number"],
];

/** What was computed and how long it took, added up over calls. */
export class Stats {
  promptTokens = 0;
  reusedTokens = 0; // of the prompt: their keys and values were in the cache
  newTokens = 0;
  steps = 0; // runs of the graph after the prompt's
  prefillMs = 0;
  decodeMs = 0;

  /** For people. */
  line() {
    const each = this.steps ? `${(this.decodeMs / this.steps).toFixed(1)} ms a token` : "no further step";
    const computed = `${this.promptTokens - this.reusedTokens} computed, ${this.reusedTokens} reused`;
    return `prompt ${this.promptTokens} tokens (${computed}), new ${this.newTokens} tokens, prefill ${this.prefillMs.toFixed(1)} ms, ${each}`;
  }
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
export async function generate(session, prompts, settings = new Settings(), { ends, stats, progress = () => {} } = {}) {
  /** @type {number[][]} */
  const result = prompts.map(() => []);
  const decoder = new Decoder(session);
  const order = [...prompts.keys()].sort((a, b) => prompts[a].length - prompts[b].length);
  for (let start = 0; start < order.length; start += BATCH_SIZE) {
    const chosen = order.slice(start, start + BATCH_SIZE);
    const batch = new Map(chosen.map((number) => [number, prompts[number]]));
    for await (const [number, token] of stream(decoder, batch, settings, { ends, stats })) result[number].push(token);
    progress(chosen.length);
  }
  return result;
}

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
export async function* stream(decoder, prompts, settings = new Settings(), { ends = () => false, stats = new Stats() } = {}) {
  if (settings.beams > 1) {
    for (const [number, prompt] of prompts) {
      const found = await beamSearch(decoder, prompt, settings, (added) => ends(number, added), stats);
      for (const token of found) yield [number, token];
    }
    return;
  }
  const processors = settings.allProcessors();
  const seed = settings.seed ?? randomSeed();
  const draws = new Map([...prompts.keys()].map((number) => [number, new Random([seed, number])]));
  /** @type {Map<number, number[]>} */
  const added = new Map([...prompts.keys()].map((number) => [number, []]));
  let active = [...prompts.keys()];
  let logits = await prefill(decoder, [...prompts.values()], stats);
  while (active.length) {
    const kept = [];
    for (const [row, number] of active.entries()) {
      const scores = sampling.apply(processors, decoder.tokens[row], Float64Array.from(logits[row]));
      const token = settings.draws ? sampling.draw(scores, get(draws, number)) : sampling.argmax(scores);
      const own = get(added, number);
      own.push(token);
      stats.newTokens += 1;
      const full = own.length >= room(decoder, get(prompts, number), settings);
      if (!full && !settings.eos.includes(token) && !ends(number, own)) kept.push(row);
      yield [number, token];
    }
    active = kept.map((row) => active[row]);
    if (!active.length) return;
    decoder.take(kept);
    logits = await step(decoder, active.map((number) => /** @type {number} */ (get(added, number).at(-1))), stats);
  }
}

/**
 * The new tokens of the best sequence found, with the rules and the order of Python's beam search.
 * @param {Decoder} decoder
 * @param {readonly number[]} prompt
 * @param {Settings} settings
 * @param {(added: readonly number[]) => boolean} ends
 * @param {Stats} stats
 * @returns {Promise<number[]>}
 */
async function beamSearch(decoder, prompt, settings, ends, stats) {
  const processors = settings.allProcessors();
  const width = settings.beams;
  const most = room(decoder, prompt, settings);
  /** @typedef {{ score: number, added: number[] }} Beam score: sum(log p), of finished ones by length */
  /** @type {Beam[]} best first */
  let running = [{ score: 0, added: [] }];
  /** @type {Beam[]} best first */
  let finished = [];
  const byLength = (/** @type {Beam} */ { score, added }) => score / added.length ** settings.lengthPenalty;
  let logits = await prefill(decoder, [prompt], stats);
  for (;;) {
    const scores = running.map(({ score }, row) => {
      const likelihoods = sampling.logSoftmax(Float64Array.from(logits[row]));
      return sampling.apply(processors, decoder.tokens[row], likelihoods).map((value) => score + value);
    });
    /** @type {Beam[]} */
    const going = [];
    /** @type {number[]} */
    const parents = [];
    // So many that `width` of them go on, though every ending token be among the best of every beam.
    const candidates = largest(scores, Math.max(2, 1 + settings.eos.length) * width);
    for (const [rank, { row, token, score }] of candidates.entries()) {
      const added = [...running[row].added, token];
      if (added.length >= most || settings.eos.includes(token) || ends(added)) {
        if (rank < width) finished.push({ score: byLength({ score, added }), added });
      } else if (going.length < width) {
        going.push({ score, added });
        parents.push(row);
      }
    }
    finished = finished.sort((a, b) => b.score - a.score).slice(0, width);
    const better = going.length > 0 && byLength(going[0]) > (finished.at(-1)?.score ?? -Infinity);
    if (!going.length || (finished.length === width && (settings.earlyStopping || !better))) {
      stats.newTokens += finished[0].added.length;
      return finished[0].added;
    }
    running = going;
    decoder.take(parents);
    logits = await step(decoder, running.map(({ added }) => /** @type {number} */ (added.at(-1))), stats);
  }
}

/**
 * The `count` largest scores, largest first, without those of -Infinity.
 * @param {readonly Float64Array[]} scores
 * @param {number} count
 */
function largest(scores, count) {
  /** @type {{ row: number, token: number, score: number }[]} */
  const best = [];
  for (const [row, values] of scores.entries()) {
    for (let token = 0; token < values.length; token += 1) {
      const score = values[token];
      if (score === -Infinity || (best.length === count && score <= best[count - 1].score)) continue;
      let place = best.length;
      while (place > 0 && best[place - 1].score < score) place -= 1;
      best.splice(place, 0, { row, token, score });
      best.length = Math.min(best.length, count);
    }
  }
  return best;
}

/**
 * How many new tokens the prompt may get.
 * @param {Decoder} decoder @param {readonly number[]} prompt @param {Settings} settings
 */
function room(decoder, prompt, settings) {
  return Math.min(settings.maxTokens, decoder.limit === null ? Infinity : decoder.limit - prompt.length);
}

/** @param {Decoder} decoder @param {readonly (readonly number[])[]} prompts @param {Stats} stats */
async function prefill(decoder, prompts, stats) {
  const start = performance.now();
  const { logits, reused } = await decoder.start(prompts);
  stats.prefillMs += performance.now() - start;
  stats.promptTokens += prompts.reduce((sum, prompt) => sum + prompt.length, 0);
  stats.reusedTokens += reused;
  return logits;
}

/** @param {Decoder} decoder @param {number[]} tokens @param {Stats} stats */
async function step(decoder, tokens, stats) {
  const start = performance.now();
  const logits = await decoder.append(tokens.map((token) => [token]));
  stats.decodeMs += performance.now() - start;
  stats.steps += 1;
  return logits;
}

/**
 * @template K, V
 * @param {ReadonlyMap<K, V>} map
 * @param {K} key
 * @returns {V}
 */
function get(map, key) {
  return /** @type {V} */ (map.get(key));
}
