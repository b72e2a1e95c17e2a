/** Sentences, and a map of how alike they are. */

import { byId, element, megabytes, missing, say, settled } from "./dom.js";

const MOST = 12;

/**
 * @param {import("./client.js").Client} client
 * @param {{ url: string } | undefined} chosen the package
 * @param {() => void} opened
 */
export async function start(client, chosen, opened) {
  const [text, picture, note] = [byId("sentences-text"), byId("sentences-picture"), byId("sentences-note")];
  if (!chosen) {
    text.disabled = true;
    picture.replaceChildren(missing("No package here makes embeddings of texts.", "isoformer export -m all-MiniLM-L6-v2 minilm\nisoformer serve-demo minilm"));
    return;
  }
  const answer = async () => {
    const lines = text.value.split("\n").map((/** @type {string} */ line) => line.trim()).filter(Boolean);
    const texts = lines.slice(0, MOST);
    if (!texts.length) {
      picture.replaceChildren();
      say(note, "Write a sentence.");
      return;
    }
    try {
      const { matrix, milliseconds } = await client.call("similarity", { url: chosen.url, texts });
      picture.replaceChildren(map(texts, matrix));
      const rest = lines.length > MOST ? `, the first ${MOST} of ${lines.length}` : "";
      say(note, `${texts.length} ${texts.length === 1 ? "sentence" : "sentences"}${rest} in ${milliseconds.toFixed(0)} ms`);
    } catch (error) {
      say(note, /** @type {Error} */ (error).message, { wrong: true });
    }
  };
  text.addEventListener("input", settled(answer, 250));
  try {
    say(note, "Loading the model …");
    await client.call("open", { url: chosen.url }, ({ done, total }) => {
      say(note, `Loading the model, ${megabytes(done)}`, { done: total ? done / total : null });
    });
    opened();
    await answer();
  } catch (error) {
    say(note, /** @type {Error} */ (error).message, { wrong: true });
  }
}

/**
 * @param {string[]} texts
 * @param {number[][]} matrix
 */
function map(texts, matrix) {
  const heads = texts.map((_, place) => element("th", { scope: "col" }, String(place + 1)));
  const corner = element("td", { class: "corner" });
  const rows = texts.map((text, row) => {
    const cells = matrix[row].map((value) => {
      const shown = Math.min(1, Math.max(0, value));
      return element("td", { class: "square", style: `--v: ${shown.toFixed(4)}` }, value.toFixed(2));
    });
    return element("tr", {}, element("th", { scope: "row" }, element("span", {}, element("b", {}, String(row + 1)), text)), ...cells);
  });
  return element(
    "table",
    { class: texts.length > 7 ? "map many" : "map", "aria-label": "Cosine similarity of every pair of sentences" },
    element("thead", {}, element("tr", {}, corner, ...heads)),
    element("tbody", {}, ...rows),
  );
}
