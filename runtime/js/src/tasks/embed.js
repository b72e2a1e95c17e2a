/** embed: one vector a text; texts that mean alike have vectors that point alike. */

import { runBatches, textEncoder } from "../text.js";

/** @typedef {import("../session.js").Session} Session */

/**
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<{ input: string, embedding: number[] }[]>}
 */
export async function run(session, texts, options = {}) {
  const vectors = await embeddings(session, texts, options);
  return texts.map((input, place) => ({ input, embedding: [...vectors[place]] }));
}

/**
 * The vectors, one a text, in order.
 * @param {Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<Float32Array[]>}
 */
export async function embeddings(session, texts, { truncate = false, progress } = {}) {
  const encoder = await textEncoder(session, { truncate });
  /** @type {Float32Array[]} */
  const result = [];
  for await (const [index, , row] of runBatches(session, encoder, texts, "sentence_embedding", { progress })) result[index] = row;
  return result;
}

/**
 * Cosine of every pair; 0 beside a zero vector.
 * @param {readonly (Float32Array | readonly number[])[]} vectors
 * @returns {number[][]}
 */
export function similarities(vectors) {
  const unit = vectors.map((vector) => {
    const norm = Math.hypot(...vector) || 1;
    return Array.from(vector, (value) => value / norm);
  });
  return unit.map((a) => unit.map((b) => a.reduce((sum, value, place) => sum + value * b[place], 0)));
}
