/** Token ids to text while they come: no broken characters, nothing of a stop string. */

import { InputError } from "./errors.js";

const BROKEN = /\uFFFD+$/; // what bytes decode to that are not, or not yet, a character
const CONTEXT = 8; // tokens before the new ones: more than the bytes of a character

/** The text of new tokens, which depends on those before them where a tokenizer writes a space as part of a word. */
export class Detokenizer {
  /**
   * @param {import("./tokenizer.js").Tokenizer} tokenizer
   * @param {{ context?: readonly number[], stop?: readonly string[], silent?: readonly number[] }} [options]
   *   context: the tokens before. stop: strings that end the text, which keeps nothing of them. silent: tokens without
   *   text; special tokens have none either
   * Throws InputError for an empty stop string.
   */
  constructor(tokenizer, { context = [], stop = [], silent = [] } = {}) {
    if (stop.includes("")) throw new InputError("a stop string is empty; give at least one character");
    this.tokenizer = tokenizer;
    this.context = context.slice(-CONTEXT);
    this.stop = stop;
    this.silent = new Set(silent);
    this.before = tokenizer.decode(this.context).replace(BROKEN, "").length;
  }

  /**
   * The whole text of the new tokens, up to the first stop string.
   * @param {readonly number[]} added
   */
  text(added) {
    const text = this.decode(added);
    const places = this.stop.map((one) => text.indexOf(one)).filter((place) => place >= 0);
    return text.slice(0, Math.min(text.length, ...places));
  }

  /**
   * Whether the text holds a stop string.
   * @param {readonly number[]} added
   */
  stopped(added) {
    if (!this.stop.length) return false;
    const text = this.decode(added);
    return this.stop.some((one) => text.includes(one));
  }

  /**
   * The part of the text that no later token changes: whole characters, and no beginning of a stop string.
   * @param {readonly number[]} added
   */
  settled(added) {
    const text = this.text(added).replace(BROKEN, "");
    const begun = this.stop.flatMap((one) => Array.from(one, (_, n) => n).filter((n) => n > 0 && text.endsWith(one.slice(0, n))));
    return text.slice(0, text.length - Math.max(0, ...begun));
  }

  /** @param {readonly number[]} added */
  decode(added) {
    return this.tokenizer.decode([...this.context, ...added.filter((token) => !this.silent.has(token))]).slice(this.before);
  }
}

/**
 * The tokens that end a text: of generation_config.json, else config.json, else the tokenizer's own.
 * @param {import("./package.js").Package} package_
 * @param {import("./text.js").TextEncoder} encoder
 * @returns {Promise<number[]>}
 */
export async function eosTokens(package_, encoder) {
  for (const file of ["generation_config.json", "config.json"]) {
    const found = package_.has(file) ? (await package_.readJson(file)).eos_token_id : undefined; // made without it
    if (found !== undefined && found !== null) return [found].flat();
  }
  const own = encoder.special("eos", []);
  return own === null ? [] : [own];
}
