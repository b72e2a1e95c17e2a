/** generate: how a text goes on. */

import { Decoder } from "../binding.js";
import { Detokenizer, eosTokens } from "../detokenizer.js";
import { InputError } from "../errors.js";
import { Settings, Stats, generate, stream as streamTokens } from "../generation.js";
import { textEncoder } from "../text.js";

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
export async function run(session, texts, { settings = {}, stop = [], stats, progress } = {}) {
  const prompts = await encode(session, texts);
  const chosen = await withEos(session, settings);
  const { tokenizer } = await textEncoder(session);
  const made = prompts.map((context) => new Detokenizer(tokenizer, { context, stop, silent: chosen.eos }));
  const ends = (/** @type {number} */ number, /** @type {readonly number[]} */ added) => made[number].stopped(added);
  const found = await generate(session, prompts, chosen, { ends, stats, progress });
  return texts.map((input, number) => ({ input, text: made[number].text(found[number]), token_ids: found[number] }));
}

/**
 * What `run` gives as "text", piece by piece as tokens come. Throws as `run` does. signal: ends it between two tokens.
 * @param {Session} session
 * @param {string} text
 * @param {Options & { decoder?: Decoder, signal?: AbortSignal }} [options] decoder: one that keeps its cache from call to call
 * @returns {AsyncGenerator<string>}
 */
export async function* stream(session, text, { settings = {}, stop = [], stats, decoder = new Decoder(session), signal } = {}) {
  const [prompt] = await encode(session, [text]);
  const chosen = await withEos(session, settings);
  const { tokenizer } = await textEncoder(session);
  const detokenizer = new Detokenizer(tokenizer, { context: prompt, stop, silent: chosen.eos });
  /** @type {number[]} */
  const added = [];
  let shown = 0;
  const ends = (/** @type {number} */ _number, /** @type {readonly number[]} */ soFar) => detokenizer.stopped(soFar);
  for await (const [, token] of streamTokens(decoder, new Map([[0, prompt]]), chosen, { ends, stats })) {
    added.push(token);
    const settled = detokenizer.settled(added);
    yield settled.slice(shown);
    shown = Math.max(shown, settled.length);
    if (signal?.aborted) break;
  }
  yield detokenizer.text(added).slice(shown);
}

/**
 * The tokens of each text. Throws InputError for a text that has none or is not Unicode.
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ addSpecialTokens?: boolean }} [options]
 * @returns {Promise<number[][]>}
 */
export async function encode(session, texts, { addSpecialTokens = true } = {}) {
  const { tokenizer } = await textEncoder(session);
  return texts.map((text) => {
    const { ids } = tokenizer.encode(text, { addSpecialTokens });
    if (!ids.length) throw new InputError(`'${text}' has no tokens; give at least one word to continue`);
    return ids;
  });
}

/**
 * The settings, with the package's tokens that end a text unless they have some.
 * @param {Session} session
 * @param {SettingsLike} given
 */
async function withEos(session, given) {
  const settings = new Settings(given);
  if (settings.eos.length) return settings;
  return new Settings({ ...given, eos: await eosTokens(session.package, await textEncoder(session)) });
}
