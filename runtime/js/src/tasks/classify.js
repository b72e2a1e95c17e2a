/** classify: which of the model's classes a text belongs to. */

import { argmax, softmax } from "../sampling.js";
import { runBatches, textEncoder } from "../text.js";

/**
 * Scores are probabilities that sum to 1, or one of its own for each label (multi_label), or the model's numbers as they
 * are (regression).
 * @param {import("../session.js").Session} session
 * @param {readonly string[]} texts
 * @param {{ truncate?: boolean, progress?: (done: number) => void }} [options]
 * @returns {Promise<{ input: string, label: string, scores: Record<string, number> }[]>}
 */
export async function run(session, texts, { truncate = false, progress } = {}) {
  const encoder = await textEncoder(session, { truncate });
  const { labels, problem } = session.package.task;
  const names = distinct(labels);
  const results = Array(texts.length);
  for await (const [index, , row] of runBatches(session, encoder, texts, "logits", { progress })) {
    const scores = toScores(Float64Array.from(row), problem);
    const named = Object.fromEntries(names.map((name, place) => [name, scores[place]]));
    results[index] = { input: texts[index], label: names[argmax(scores)], scores: named };
  }
  return results;
}

/**
 * The labels; those that several classes have, as ImageNet's two "crane", with the class' number behind.
 * @param {readonly string[]} labels
 */
export function distinct(labels) {
  return labels.map((label, place) => (labels.filter((other) => other === label).length > 1 ? `${label} (${place})` : label));
}

/**
 * softmax for single_label, sigmoid for multi_label, the numbers themselves for regression.
 * @param {Float64Array} logits
 * @param {string} problem
 */
export function toScores(logits, problem) {
  if (problem === "regression") return logits;
  return problem === "multi_label" ? logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax(logits);
}
