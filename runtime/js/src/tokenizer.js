/**
 * Text to token ids and back, as Python's `tokenizers` does it: @huggingface/tokenizers, with the places mended where
 * the two differ (docs/demo.md, "Tokenizers").
 */

import { InputError, PackageError, firstLine } from "./errors.js";
import { ACCENT, CONTROL, PUNCTUATION } from "./unicode.js";

/**
 * @typedef {typeof import("@huggingface/tokenizers")} Library
 * @typedef {{ ids: number[], typeIds: number[], tokens: string[] }} Encoding
 */

export class Tokenizer {
  /**
   * @param {any} json what tokenizer.json holds
   * @param {Library} library
   * @param {string} file what errors call it
   * Throws PackageError for what is no tokenizer that the library knows.
   */
  constructor(json, library, file) {
    try {
      this.inner = new library.Tokenizer(json, {});
    } catch (error) {
      throw new PackageError(`${file} cannot be read: ${firstLine(error)}`);
    }
    /** @type {any} */
    const inner = this.inner;
    inner.normalizer = mended(inner.normalizer, library);
    inner.pre_tokenizer = mended(inner.pre_tokenizer, library);
  }

  /**
   * @param {string} text
   * @param {{ addSpecialTokens?: boolean, limit?: number | null }} [options] limit: cuts to so many tokens, with those
   *   that are added
   * @returns {Encoding}
   * Throws InputError for a text that is not Unicode.
   */
  encode(text, { addSpecialTokens = true, limit = null } = {}) {
    if (typeof text !== "string" || !isWellFormed(text)) throw new InputError("a text is not Unicode: half a surrogate pair stands alone");
    /** @type {any} */
    const inner = this.inner;
    const own = inner.tokenize(text, { add_special_tokens: false });
    let { tokens, token_type_ids: typeIds } = this.whole(own, addSpecialTokens);
    if (limit !== null && tokens.length > limit) {
      ({ tokens, token_type_ids: typeIds } = this.whole(own.slice(0, Math.max(0, limit - (tokens.length - own.length))), addSpecialTokens));
    }
    const ids = tokens.map((/** @type {string} */ token) => this.tokenToId(token) ?? inner.model.unk_token_id);
    return { ids: ids.filter((/** @type {any} */ id) => id !== undefined), typeIds: typeIds ?? ids.map(() => 0), tokens };
  }

  /**
   * @param {string[]} own
   * @param {boolean} add
   */
  whole(own, add) {
    /** @type {any} */
    const { post_processor } = this.inner;
    return post_processor ? post_processor(own, null, add) : { tokens: own, token_type_ids: undefined };
  }

  /**
   * @param {readonly number[]} ids
   * @param {{ skipSpecialTokens?: boolean }} [options]
   * @returns {string}
   */
  decode(ids, { skipSpecialTokens = true } = {}) {
    const known = ids.filter((id) => this.idToToken(id) !== undefined);
    if (!known.length) return "";
    // Python's `tokenizers` leaves the cleaning to the decoder in tokenizer.json.
    return this.inner.decode(known, { skip_special_tokens: skipSpecialTokens, clean_up_tokenization_spaces: false });
  }

  /** @param {string} token @returns {number | undefined} */
  tokenToId(token) {
    return /** @type {any} */ (this.inner).added_tokens_map.get(token)?.id ?? this.inner.token_to_id(token);
  }

  /** @param {number} id @returns {string | undefined} */
  idToToken(id) {
    return this.inner.id_to_token(id);
  }
}

/**
 * A normalizer or pre-tokenizer with its parts in place of those that differ from Python's.
 * @param {any} step
 * @param {Library} library
 * @returns {any}
 */
function mended(step, library) {
  if (step instanceof library.SequenceNormalizer) step.normalizers = step.normalizers.map((/** @type {any} */ one) => mended(one, library));
  if (step instanceof library.SequencePreTokenizer) step.tokenizers = step.tokenizers.map((/** @type {any} */ one) => mended(one, library));
  if (step instanceof library.BertNormalizer) {
    const { config } = /** @type {any} */ (step);
    step.normalize = (/** @type {string} */ text) => bertNormalized(text, config);
  } else if (step instanceof library.BertPreTokenizer) {
    step.pre_tokenize_text = (/** @type {string} */ text) => text.match(WORDS) ?? [];
  } else if (step instanceof library.DigitsPreTokenizer) {
    // A digit is any number there, such as ½.
    const { individual_digits: single } = /** @type {any} */ (step).config;
    const pattern = single ? /\P{N}+|\p{N}/gu : /\P{N}+|\p{N}+/gu;
    step.pre_tokenize_text = (/** @type {string} */ text) => text.match(pattern) ?? [];
  } else if (step instanceof library.ByteLevelPreTokenizer) {
    /** @type {any} */ (step).pattern = BYTE_LEVEL;
  }
  return step;
}

const SPACE = String.raw`\p{White_Space}`;
const WORDS = new RegExp(`[^${SPACE}${PUNCTUATION}]+|[${PUNCTUATION}]`, "gu");
// GPT-2's, with Unicode's white space: JavaScript's \s lacks U+0085 and has U+FEFF.
const BYTE_LEVEL = new RegExp(
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^${SPACE}\p{L}\p{N}]+|${SPACE}+(?!\P{White_Space})|${SPACE}+`,
  "gu",
);
const CONTROLS = new RegExp(`[${CONTROL}]`, "gu");
const SPACES = new RegExp(`[${SPACE}]`, "gu");
const ACCENTS = new RegExp(`[${ACCENT}]`, "gu");
// The ranges that BERT calls CJK; 2B920 is as Python has it.
const CJK =
  /[\u4E00-\u9FFF\u3400-\u4DBF\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\uF900-\uFAFF\u{2F800}-\u{2FA1F}]/gu;

/**
 * @param {string} text
 * @param {{ clean_text?: boolean, handle_chinese_chars?: boolean, strip_accents?: boolean | null, lowercase?: boolean }} config
 */
function bertNormalized(text, config) {
  let result = text;
  if (config.clean_text) result = result.replace(CONTROLS, "").replace(SPACES, " ");
  if (config.handle_chinese_chars) result = result.replace(CJK, " $& ");
  if (config.strip_accents ?? config.lowercase) result = result.normalize("NFD").replace(ACCENTS, "");
  // Character by character: a Σ at the end of a word is σ there.
  return config.lowercase ? Array.from(result, (c) => c.toLowerCase()).join("") : result;
}

/** @param {string} text */
function isWellFormed(text) {
  return !/[\uD800-\uDFFF]/u.test(text); // with the flag u a pair is one character, which is no surrogate
}
