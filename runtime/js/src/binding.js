/** The steps of a decoder behind its cache: keys and values of what went before, from one step to the next. */

import { InputError, PackageError } from "./errors.js";
import { filled, tensor } from "./tensors.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./package.js").TensorSpec} TensorSpec
 * @typedef {import("./tensors.js").Tensor} Tensor
 * @typedef {number[][]} Tokens a row each
 *
 * What holds the keys and values. inputs: of a step; outputs: to ask for, with memory to write into or null.
 * @typedef {{
 *   begin: (width: number, length: number) => number,
 *   inputs: (held: Tokens, added: Tokens) => Record<string, Tensor>,
 *   past: () => Record<string, Tensor>,
 *   present: () => Record<string, Tensor | null>,
 *   keep: (outputs: Record<string, Tensor>) => void,
 *   split: (held: Tokens, added: Tokens) => Cache[],
 *   join: (rows: readonly Cache[]) => void,
 *   take: (rows: readonly number[], before: number, length: number) => void,
 *   cut: (length: number) => void,
 *   clear: () => void,
 *   wide: boolean,
 * }} Cache wide: several rows may get more than one token in a step. split: a cache for each row, of what it holds and with
 * room for its new tokens; join: makes them the cache of all rows. Until then this one holds what it held.
 */

const PAST = "past_key_values.";
const GIVEN = ".encoder."; // of the keys and values that an encoder made, which no step changes
const NEEDED = ["input_ids", "attention_mask", "logits_positions"];
const SMALLEST = 256; // tokens that a cache that is written in place has room for
// Of a run of more than a token through such a graph: at most PIECE tokens of a row, or fewer, but not under LEAST, so that
// rows by tokens by capacity are at most SCORES, which stand in memory for every head.
const PIECE = 256;
const LEAST = 64;
const SCORES = 2 ** 20;

/** A batch of token sequences, and the keys and values that the package's graph has computed of them. */
export class Decoder {
  /**
   * @param {Session} session
   * Throws PackageError for a package that is no decoder with a cache.
   */
  constructor(session) {
    const { inputs, outputs } = session.signature;
    const specs = new Map(inputs.map((spec) => [spec.name, spec]));
    const past = inputs.filter(({ name }) => name.startsWith(PAST) && !name.includes(GIVEN));
    const made = ["logits", ...past.map(presentName)];
    if (!past.length || NEEDED.some((name) => !specs.has(name)) || made.join() !== outputs.map((spec) => spec.name).join()) {
      throw new PackageError(`${session.package.path} is not a decoder with a cache, so it continues no text`);
    }
    this.session = session;
    /** Tokens a sequence, null without a limit. */
    this.limit = specs.get("position_ids")?.high ?? null;
    this.vocabSize = specs.get("input_ids")?.high ?? null;
    /** @type {Tokens} */
    this.tokens = [];
    this.names = new Set(specs.keys());
    /** New tokens of a sequence that one run takes at most. */
    this.piece = session.sharedCache && past.every(({ dtype }) => dtype === "float32") ? PIECE : Infinity;
    /** @type {Cache} */
    this.cache = !session.sharedCache
      ? new GrownCache(past, "left")
      : session.engine.aliased
        ? new SharedCache(past, this.limit)
        : new GrownCache(past, "right");
  }

  /** P: of the longest sequence. */
  get length() {
    return Math.max(0, ...this.tokens.map((row) => row.length));
  }

  /**
   * The logits behind each prompt, which replace whatever was there.
   *
   * One prompt that begins as the one sequence here does computes only the rest; `reused` says how many tokens were
   * spared so. Throws InputError for a prompt that is empty, leaves no room or holds an id out of the vocabulary.
   * @param {readonly (readonly number[])[]} prompts
   * @returns {Promise<{ logits: Float32Array[], reused: number }>}
   */
  async start(prompts) {
    prompts.forEach((prompt) => this.check(prompt));
    let reused = 0;
    if (prompts.length === 1 && this.tokens.length === 1) {
      // The last token is computed in any case: its logits are what is asked for.
      const most = Math.min(prompts[0].length - 1, this.tokens[0].length);
      while (reused < most && prompts[0][reused] === this.tokens[0][reused]) reused += 1;
    }
    this.cut(reused);
    return { logits: await this.append(prompts.map((prompt) => prompt.slice(reused))), reused };
  }

  /**
   * The logits behind each sequence with its new tokens, at least one.
   * @param {Tokens} added
   * @returns {Promise<Float32Array[]>}
   * Throws InputError when sequences that hold tokens already get different numbers of them.
   */
  async append(added) {
    const width = Math.max(...added.map((row) => row.length));
    if (this.length && added.some((row) => row.length !== width)) {
      const widths = [...new Set(added.map((row) => row.length))].sort((a, b) => a - b);
      throw new InputError(`sequences get ${widths.join(", ")} new tokens; all get as many`);
    }
    if (this.tokens.length && this.tokens.length !== added.length) {
      throw new InputError(`there are new tokens for ${added.length} sequences; there are ${this.tokens.length}`);
    }
    if (!this.length || width === 1 || added.length === 1 || this.cache.wide) return this.step(added);
    for (let column = 0; column < width - 1; column += 1) await this.step(added.map((row) => [row[column]]));
    return this.step(added.map((row) => [row[width - 1]]));
  }

  /**
   * Keeps the sequences `rows`, in that order; one may be taken several times.
   * @param {readonly number[]} rows
   */
  take(rows) {
    if (rows.length === this.tokens.length && rows.every((row, place) => row === place)) return;
    const before = this.length;
    this.tokens = rows.map((row) => [...this.tokens[row]]);
    this.cache.take(rows, before, this.length);
  }

  /**
   * Forgets every token from place `length` of the one sequence on; everything, if `length` is 0.
   * @param {number} length
   */
  cut(length) {
    if (length === 0) {
      this.tokens = [];
      this.cache.clear();
    } else if (length < this.length) {
      this.tokens = [this.tokens[0].slice(0, length)];
      this.cache.cut(length);
    }
  }

  /** @param {readonly number[]} prompt */
  check(prompt) {
    if (!prompt.length) throw new InputError("a prompt has no tokens; give at least one");
    if (this.limit !== null && prompt.length >= this.limit) {
      const words = `a prompt has ${prompt.length} tokens; this model holds ${this.limit} with the answer`;
      throw new InputError(`${words}: shorten the prompt`);
    }
    const [least, most] = [Math.min(...prompt), Math.max(...prompt)];
    if (this.vocabSize !== null && !(least >= 0 && most < this.vocabSize && prompt.every(Number.isInteger))) {
      throw new InputError(`a prompt holds ids from ${least} to ${most}; they go from 0 to ${this.vocabSize - 1}`);
    }
  }

  /**
   * @param {Tokens} added
   * @returns {Promise<Float32Array[]>}
   */
  async step(added) {
    const held = this.tokens.length ? this.tokens : added.map(() => []);
    const piece = this.pieceOf(held, added);
    const logits = piece ? await this.inPieces(held, added, piece) : await this.run(this.cache, held, added, this.given());
    this.tokens = held.map((old, row) => [...old, ...added[row]]);
    return logits;
  }

  /**
   * How many of the new tokens of a row to compute at a time, a row after the other; null is all at once.
   * @param {Tokens} held
   * @param {Tokens} added
   */
  pieceOf(held, added) {
    const width = Math.max(...added.map((row) => row.length));
    if (width === 1 || this.piece === Infinity) return null;
    const room = capacity(longest(held, added), this.limit);
    const most = Math.min(this.piece, Math.max(LEAST, Math.floor(SCORES / room)));
    return width <= most && added.length * width * room <= SCORES ? null : most;
  }

  /**
   * The same as `run` for long rows. One goes after the other: behind held tokens the operator takes several new ones of a
   * single row only.
   * @param {Tokens} held
   * @param {Tokens} added
   * @param {number} most tokens of a piece
   * @returns {Promise<Float32Array[]>}
   */
  async inPieces(held, added, most) {
    const caches = this.cache.split(held, added);
    /** @type {Float32Array[]} of each row's last piece */
    const logits = [];
    for (const [row, cache] of caches.entries()) {
      const given = selected(this.given(), [row]);
      let past = held[row];
      for (const piece of pieces(added[row], most)) {
        [logits[row]] = await this.run(cache, [past], [piece], given);
        past = [...past, ...piece];
      }
    }
    this.cache.join(caches);
    return logits;
  }

  /**
   * The graph, once: the logits behind each row.
   * @param {Cache} cache of what is held, then of the new tokens too
   * @param {Tokens} held
   * @param {Tokens} added
   * @param {Record<string, Tensor>} given
   * @returns {Promise<Float32Array[]>}
   */
  async run(cache, held, added, given) {
    const width = Math.max(...added.map((row) => row.length));
    const last = added.map((row) => cache.begin(width, row.length) + row.length - 1);
    const arrays = { ...cache.inputs(held, added), logits_positions: tensor("int64", last, [added.length, 1]) };
    const feeds = { ...Object.fromEntries(Object.entries(arrays).filter(([name]) => this.names.has(name))), ...cache.past() };
    const outputs = await this.session.compute({ ...feeds, ...given }, { logits: null, ...cache.present() });
    cache.keep(outputs);
    const { data, dims } = outputs.logits;
    const size = /** @type {number} */ (dims.at(-1));
    return added.map((_, row) => /** @type {Float32Array} */ (data).subarray(row * size, (row + 1) * size));
  }

  /**
   * Inputs that are the same in every step; a decoder alone has none.
   * @returns {Record<string, Tensor>}
   */
  given() {
    return {};
  }
}

/** A `Decoder` beside an encoder's output, whose keys and values are computed once and read in every step. */
export class CrossDecoder extends Decoder {
  /** @param {Session} session */
  constructor(session) {
    super(session);
    this.givenNames = [...this.names].filter((name) => name.includes(GIVEN) || name === "encoder_attention_mask");
    if (this.givenNames.length < 2) throw new PackageError(`${session.package.path} has no decoder that reads an encoder's output`);
    /** @type {Record<string, Tensor>} */
    this.known = {};
  }

  /**
   * What the next sequences answer to, a row each: past_key_values.{i}.encoder.key|value, encoder_attention_mask.
   * @param {Record<string, Tensor>} known
   * Throws InputError for another set of names.
   */
  condition(known) {
    const names = Object.keys(known);
    if (names.length !== this.givenNames.length || this.givenNames.some((name) => !(name in known))) {
      throw new InputError(`the decoder reads ${this.givenNames.join(", ")}; it was given ${names.join(", ")}`);
    }
    this.cut(0);
    this.known = known;
  }

  /** @param {readonly (readonly number[])[]} prompts */
  async start(prompts) {
    const rows = this.known[this.givenNames[0]]?.dims[0] ?? 0;
    if (prompts.length !== rows) throw new InputError(`there are ${prompts.length} prompts for ${rows} rows of an encoder's output`);
    return super.start(prompts);
  }

  /** @param {readonly number[]} rows */
  take(rows) {
    const same = rows.length === this.tokens.length && rows.every((row, place) => row === place);
    super.take(rows);
    if (same) return;
    this.known = selected(this.known, rows);
  }

  given() {
    return this.known;
  }
}

/**
 * Keys and values (B, K, P, D) that grow with each step. Padding stands on the side that the graph wants: on the left
 * of the canonical graph's shorter sequences, which then all end at the same place, on the right of a variant's.
 * @implements {Cache}
 */
class GrownCache {
  /**
   * @param {TensorSpec[]} past
   * @param {"left" | "right"} padding
   */
  constructor(past, padding) {
    this.specs = past;
    this.padding = padding;
    this.wide = padding === "left";
    /** @type {Tensor[]} one for each of `specs` */
    this.values = [];
  }

  /** @param {number} width @param {number} length of a row's tokens: where they begin among the columns */
  begin(width, length) {
    return this.padding === "left" ? width - length : 0;
  }

  /** @param {Tokens} held @param {Tokens} added */
  inputs(held, added) {
    if (!this.values.length) this.values = this.specs.map((spec) => filled(spec.dtype, sizes(spec, added.length, 0)));
    return this.padding === "left" ? leftPadded(held, added) : rightPadded(held, added);
  }

  past() {
    return Object.fromEntries(this.specs.map((spec, place) => [spec.name, this.values[place]]));
  }

  present() {
    return Object.fromEntries(this.specs.map((spec) => [presentName(spec), null]));
  }

  /** @param {Record<string, Tensor>} outputs */
  keep(outputs) {
    this.values = this.specs.map((spec) => outputs[presentName(spec)]);
  }

  /** @param {Tokens} held */
  split(held) {
    return held.map((_, row) => {
      const cache = new GrownCache(this.specs, this.padding);
      cache.values = this.values.map((array) => rowOf(array, row));
      return cache;
    });
  }

  /** @param {readonly Cache[]} rows */
  join(rows) {
    this.values = this.specs.map((spec) => {
      const parts = rows.map((cache) => cache.past()[spec.name]);
      const whole = filled(spec.dtype, sizes(spec, rows.length, Math.max(...parts.map(({ dims }) => dims[2]))));
      parts.forEach((array, row) => overwrite(array, rowOf(whole, row)));
      return whole;
    });
  }

  /** @param {readonly number[]} rows @param {number} before @param {number} length */
  take(rows, before, length) {
    const [from, to] = this.padding === "left" ? [before - length, before] : [0, length];
    this.values = this.values.map((array) => part(array, rows, from, to));
  }

  /** @param {number} length */
  cut(length) {
    this.values = this.values.map((array) => part(array, [0], 0, length));
  }

  clear() {
    this.values = [];
  }
}

/**
 * Keys and values (B, K, capacity, D) that are written in place. Each sequence begins at place 0, and behind its end
 * stands what is not read. The capacity doubles when a sequence outgrows it.
 * @implements {Cache}
 */
class SharedCache {
  /**
   * @param {TensorSpec[]} past
   * @param {number | null} limit
   */
  constructor(past, limit) {
    this.specs = past;
    this.limit = limit;
    this.wide = false;
    /** @type {Tensor[]} */
    this.values = [];
  }

  begin() {
    return 0;
  }

  /** @param {Tokens} held @param {Tokens} added */
  inputs(held, added) {
    this.reserve(held, added);
    return rightPadded(held, added);
  }

  past() {
    return Object.fromEntries(this.specs.map((spec, place) => [spec.name, this.values[place]]));
  }

  present() {
    return Object.fromEntries(this.specs.map((spec, place) => [presentName(spec), this.values[place]]));
  }

  keep() {} // they are where they were

  /** @param {Tokens} held @param {Tokens} added */
  split(held, added) {
    this.reserve(held, added);
    return held.map((_, row) => {
      const cache = new SharedCache(this.specs, this.limit);
      cache.values = this.values.map((array) => rowOf(array, row));
      return cache;
    });
  }

  join() {} // the rows' memory is this one's

  /** @param {readonly number[]} rows @param {number} _before @param {number} length */
  take(rows, _before, length) {
    const kept = this.values.map((array) => part(array, rows, 0, length));
    if (rows.length === this.values[0].dims[0]) this.values.forEach((array, place) => overwrite(kept[place], array));
    else this.renew(rows.length, this.values[0].dims[2], kept);
  }

  cut() {} // what stands behind the end is not read

  clear() {} // the memory serves the next sequences

  /**
   * Room for the new tokens; what is held stays.
   * @param {Tokens} held @param {Tokens} added
   */
  reserve(held, added) {
    const batch = added.length;
    const length = longest(held, added);
    const used = Math.max(...held.map((row) => row.length));
    if (this.values.length && this.values[0].dims[0] === batch && this.values[0].dims[2] >= length) return;
    const rows = Array.from({ length: batch }, (_, row) => row);
    this.renew(batch, capacity(length, this.limit), used ? this.values.map((array) => part(array, rows, 0, used)) : []);
  }

  /** @param {number} batch @param {number} room @param {Tensor[]} kept */
  renew(batch, room, kept) {
    this.values = this.specs.map((spec) => filled(spec.dtype, sizes(spec, batch, room)));
    kept.forEach((old, place) => overwrite(old, this.values[place]));
  }
}

/**
 * Tokens of the longest sequence with its new ones.
 * @param {Tokens} held
 * @param {Tokens} added
 */
function longest(held, added) {
  return Math.max(...held.map((row, place) => row.length + added[place].length));
}

/**
 * Tokens that a cache has room for that must hold `length`.
 * @param {number} length
 * @param {number | null} limit
 */
function capacity(length, limit) {
  const doubled = Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(length)));
  return Math.max(length, Math.min(doubled, limit ?? doubled));
}

/**
 * The tokens cut into as few pieces of at most `most` as there can be, all about as long, so that none is a lone token.
 * @param {readonly number[]} tokens
 * @param {number} most
 */
function pieces(tokens, most) {
  const number = Math.ceil(tokens.length / most);
  const bound = (/** @type {number} */ place) => Math.floor((tokens.length * place) / number);
  return Array.from({ length: number }, (_, place) => tokens.slice(bound(place), bound(place + 1)));
}

/**
 * The inputs of a step where the sequences end at the same place and begin behind padding.
 * @param {Tokens} held
 * @param {Tokens} added
 */
function leftPadded(held, added) {
  const past = Math.max(...held.map((row) => row.length));
  const width = Math.max(...added.map((row) => row.length));
  const begins = held.map((row, place) => past + width - row.length - added[place].length);
  const ids = added.flatMap((row) => [...Array(width - row.length).fill(0), ...row]);
  const mask = begins.flatMap((begin) => Array.from({ length: past + width }, (_, column) => Number(column >= begin)));
  const positions = begins.flatMap((begin) => Array.from({ length: width }, (_, column) => Math.max(past + column - begin, 0)));
  return stepInputs(added.length, ids, mask, positions);
}

/**
 * The inputs of a step where every sequence begins at place 0 and has its padding behind it.
 * @param {Tokens} held
 * @param {Tokens} added
 */
function rightPadded(held, added) {
  const width = Math.max(...added.map((row) => row.length));
  const ends = held.map((row, place) => row.length + added[place].length);
  const total = Math.max(...ends);
  const ids = added.flatMap((row) => [...row, ...Array(width - row.length).fill(0)]);
  const mask = ends.flatMap((end) => Array.from({ length: total }, (_, column) => Number(column < end)));
  const positions = held.flatMap((row, place) =>
    Array.from({ length: width }, (_, column) => Math.min(row.length + column, ends[place] - 1)),
  );
  return stepInputs(added.length, ids, mask, positions);
}

/** @param {number} batch @param {number[]} ids @param {number[]} mask @param {number[]} positions */
function stepInputs(batch, ids, mask, positions) {
  const matrix = (/** @type {number[]} */ values) => tensor("int64", values, [batch, values.length / batch]);
  return { input_ids: matrix(ids), attention_mask: matrix(mask), position_ids: matrix(positions) };
}

/**
 * Places `from` … `to` - 1 of the rows, copied: (B, K, P, D) → (rows, K, to - from, D).
 * @param {Tensor} array
 * @param {readonly number[]} rows
 * @param {number} from
 * @param {number} to
 * @returns {Tensor}
 */
function part(array, rows, from, to) {
  const [, heads, places, size] = array.dims;
  const result = filled(array.type, [rows.length, heads, to - from, size]);
  rows.forEach((row, place) => {
    for (let head = 0; head < heads; head += 1) {
      const begin = (row * heads + head) * places;
      const piece = array.data.subarray((begin + from) * size, (begin + to) * size);
      /** @type {any} */ (result.data).set(piece, (place * heads + head) * (to - from) * size);
    }
  });
  return result;
}

/**
 * Writes `small` over the first places of `large`.
 * @param {Tensor} small
 * @param {Tensor} large
 */
function overwrite(small, large) {
  const [rows, heads, used, size] = small.dims;
  const room = large.dims[2];
  for (let lane = 0; lane < rows * heads; lane += 1) {
    /** @type {any} */ (large.data).set(small.data.subarray(lane * used * size, (lane + 1) * used * size), lane * room * size);
  }
}

/**
 * A row of an array, in the array's memory.
 * @param {Tensor} array
 * @param {number} row
 * @returns {Tensor}
 */
function rowOf({ type, dims, data }, row) {
  const size = data.length / dims[0];
  return { type, dims: [1, ...dims.slice(1)], data: data.subarray(row * size, (row + 1) * size) };
}

/**
 * @param {Record<string, Tensor>} arrays
 * @param {readonly number[]} rows
 * @returns {Record<string, Tensor>}
 */
function selected(arrays, rows) {
  return Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, takeRows(array, rows)]));
}

/**
 * @param {Tensor} array
 * @param {readonly number[]} rows
 * @returns {Tensor}
 */
function takeRows(array, rows) {
  const dims = [rows.length, ...array.dims.slice(1)];
  const size = array.data.length / array.dims[0];
  const result = filled(array.type, dims);
  rows.forEach((row, place) => /** @type {any} */ (result.data).set(array.data.subarray(row * size, (row + 1) * size), place * size));
  return result;
}

/** @param {TensorSpec} spec */
function presentName(spec) {
  return `present.${spec.name.slice(PAST.length)}`;
}

/** @param {TensorSpec} spec @param {number} batch @param {number} length @returns {number[]} */
function sizes(spec, batch, length) {
  return [batch, Number(spec.axes[1]), length, Number(spec.axes[3])];
}
