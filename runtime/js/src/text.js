/** Text to token ids with the package's own tokenizer.json, and lists of texts to batches and back. */

import { InputError, PackageError } from "./errors.js";
import { filled, tensor } from "./tensors.js";
import { Tokenizer } from "./tokenizer.js";

/**
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./tensors.js").Tensor} Tensor
 * @typedef {import("./tokenizer.js").Encoding} Encoding
 * @typedef {(done: number) => void} Done called with the number of texts that are done
 */

export const BATCH_SIZE = 32;
const TOKENIZER = "tokenizer.json";
const CONFIG = "tokenizer_config.json";

/** Makes the inputs of a text model: ids, mask, and token types where the model has them. */
export class TextEncoder {
  /**
   * Use `textEncoder`.
   * @param {Session} session
   * @param {Tokenizer} tokenizer
   * @param {Record<string, any>} config of the tokenizer
   * @param {boolean} truncate
   */
  constructor(session, tokenizer, config, truncate) {
    this.session = session;
    this.tokenizer = tokenizer;
    this.config = config;
    this.truncate = truncate;
    this.limit = session.signature.axes.sequence_length?.[1] ?? null;
    this.padId = this.special("pad", ["[PAD]", "<pad>"]) ?? 0;
  }

  /**
   * The id of the special token that tokenizer_config.json names, or of the first usual one that exists.
   * @param {string} kind
   * @param {readonly string[]} usual
   */
  special(kind, usual) {
    const said = this.config[`${kind}_token`];
    const named = typeof said === "object" && said !== null ? said.content : said;
    for (const token of [...(typeof named === "string" ? [named] : []), ...usual]) {
      const number = this.tokenizer.tokenToId(token);
      if (number !== undefined) return number;
    }
    return null;
  }

  /**
   * The texts' tokens. Throws InputError for one that is longer than the model takes.
   * @param {readonly string[]} texts
   * @returns {Encoding[]}
   */
  encode(texts) {
    return texts.map((text) => {
      const encoding = this.tokenizer.encode(text, { limit: this.truncate ? this.limit : null });
      if (this.limit !== null && encoding.ids.length > this.limit) {
        const length = `'${text.slice(0, 40)}'… has ${encoding.ids.length} tokens; this model takes ${this.limit} at most`;
        throw new InputError(`${length}: split it, or pass truncate: true to cut it`);
      }
      if (!encoding.ids.length) throw new InputError(`'${text}' has no tokens`);
      return encoding;
    });
  }

  /**
   * One batch, padded on the right to its longest text.
   * @param {readonly Encoding[]} encodings
   * @returns {Record<string, Tensor>}
   */
  inputs(encodings) {
    const rows = encodings.length;
    const width = Math.max(...encodings.map(({ ids }) => ids.length));
    const mask = encodings.map(({ ids }) => row(ids.map(() => 1), width, 0));
    /** @type {Record<string, number[][]>} */
    const columns = {
      input_ids: encodings.map(({ ids }) => row(ids, width, this.padId)),
      attention_mask: mask,
      segment_ids: mask, // one text a row
      token_type_ids: encodings.map(({ typeIds }) => row(typeIds, width, 0)),
    };
    /** @type {Record<string, Tensor>} */
    const result = {};
    for (const spec of this.session.signature.inputs) {
      if (spec.kind === "lengths") result[spec.name] = tensor("int64", encodings.map(({ ids }) => ids.length), [rows]);
      else if (spec.kind === "prefix") result[spec.name] = filled("int64", [rows]); // no text has one
      else if (spec.name in columns) {
        // A mask with a query axis too says the same of every query.
        const dims = [rows, ...spec.axes.slice(1).map((axis) => (typeof axis === "number" ? axis : width))];
        const copies = dims.slice(1, -1).reduce((product, size) => product * size, 1);
        result[spec.name] = tensor("int64", columns[spec.name].flatMap((one) => Array(copies).fill(one).flat()), dims);
      }
    }
    return result;
  }
}

/** @param {readonly number[]} values @param {number} width @param {number} padding */
function row(values, width, padding) {
  return [...values, ...Array(width - values.length).fill(padding)];
}

/**
 * The session's encoder, made once. truncate: cut a text that is too long for the model, which else is an InputError.
 * @param {Session} session
 * @param {{ truncate?: boolean }} [options]
 * @returns {Promise<TextEncoder>}
 * Throws PackageError when the package has no tokenizer.
 */
export function textEncoder(session, { truncate = false } = {}) {
  let made = session.textEncoders.get(truncate);
  if (!made) session.textEncoders.set(truncate, (made = read(session, truncate)));
  return made;
}

/** @param {Session} session @param {boolean} truncate */
async function read(session, truncate) {
  const { package: package_, engine } = session;
  if (!package_.has(TOKENIZER)) {
    throw new PackageError(`${package_.path} has no ${TOKENIZER}, so it takes no text; feed ids through Session`);
  }
  const tokenizer = new Tokenizer(await package_.readJson(TOKENIZER), engine.tokenizers, `${package_.path}/${TOKENIZER}`);
  return new TextEncoder(session, tokenizer, package_.has(CONFIG) ? await package_.readJson(CONFIG) : {}, truncate);
}

/**
 * (index, tokens, row of `output`) of each text; texts of like length share a batch, so the order is theirs.
 * @param {Session} session
 * @param {TextEncoder} encoder
 * @param {readonly string[]} texts
 * @param {string} output
 * @param {{ batchSize?: number, progress?: Done }} [options]
 * @returns {AsyncGenerator<[number, Encoding, Float32Array]>}
 */
export async function* runBatches(session, encoder, texts, output, { batchSize = BATCH_SIZE, progress = () => {} } = {}) {
  const encodings = encoder.encode(texts);
  const order = [...texts.keys()].sort((a, b) => encodings[a].ids.length - encodings[b].ids.length);
  for (let start = 0; start < order.length; start += batchSize) {
    const chosen = order.slice(start, start + batchSize);
    const { [output]: found } = await session.run(encoder.inputs(chosen.map((index) => encodings[index])), [output]);
    const size = found.data.length / chosen.length;
    for (const [place, index] of chosen.entries()) {
      yield [index, encodings[index], /** @type {Float32Array} */ (found.data.slice(place * size, (place + 1) * size))];
    }
    progress(chosen.length);
  }
}
