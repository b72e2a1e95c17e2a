/** A text, and how it goes on. */

import { byId, megabytes, missing, say } from "./dom.js";

/**
 * @param {import("./client.js").Client} client
 * @param {{ url: string } | undefined} chosen the package
 * @param {() => void} opened
 */
export function start(client, chosen, opened) {
  const form = byId("writing-form");
  const [text, go, note] = [byId("writing-text"), byId("writing-go"), byId("writing-note")];
  const [sheet, begin, rest] = [byId("writing-sheet"), byId("writing-begin"), byId("writing-rest")];
  if (!chosen) {
    for (const field of form.elements) field.disabled = true;
    sheet.replaceWith(missing("No package here continues texts.", "isoformer export -m decoder.gguf writer --precision int8\nisoformer serve-demo writer"));
    return;
  }
  shown("writing-length");
  shown("writing-temperature");
  form.addEventListener("change", () => (byId("writing-drawn").hidden = form.elements.how.value !== "draw"));
  begin.textContent = text.value;
  text.addEventListener("input", () => {
    if (busy) return;
    begin.textContent = text.value;
    rest.textContent = "";
  });
  let busy = false;
  let ready = false;

  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (busy) {
      await client.call("stop");
      return;
    }
    busy = true;
    go.textContent = "Stop";
    sheet.setAttribute("aria-busy", "true");
    begin.textContent = text.value;
    rest.textContent = "";
    try {
      if (!ready) await load();
      say(note, "Reading …");
      const given = { url: chosen.url, text: text.value, settings: settings(form.elements.how.value) };
      const stats = await client.call("write", given, ({ piece }) => rest.append(piece));
      say(note, summary(stats));
    } catch (error) {
      say(note, /** @type {Error} */ (error).message, { wrong: true });
    } finally {
      busy = false;
      go.textContent = "Continue the text";
      sheet.removeAttribute("aria-busy");
    }
  });

  async function load() {
    await client.call("open", { url: chosen?.url }, ({ done, total }) => {
      say(note, `Loading the model, ${megabytes(done)} of ${megabytes(total)}`, { done: total ? done / total : null });
    });
    ready = true;
    opened();
  }
}

/** @param {string} how */
function settings(how) {
  const maxTokens = byId("writing-length").valueAsNumber;
  if (how === "beams") return { maxTokens, beams: 3 };
  if (how === "greedy") return { maxTokens };
  const seed = byId("writing-seed").valueAsNumber;
  return { maxTokens, temperature: byId("writing-temperature").valueAsNumber, topP: 0.95, seed: Number.isInteger(seed) && seed >= 0 ? seed : 0 };
}

/** @param {any} stats */
function summary(stats) {
  const { promptTokens, reusedTokens, newTokens, steps, prefillMs, decodeMs } = stats;
  const read = `Read ${promptTokens - reusedTokens} tokens in ${prefillMs.toFixed(0)} ms`;
  const kept = reusedTokens ? `, ${reusedTokens} were known` : "";
  return `${read}${kept}; wrote ${newTokens}${steps ? `, ${(decodeMs / steps).toFixed(0)} ms each` : ""}.`;
}

/**
 * Shows a slider's value beside its name.
 * @param {string} id
 */
function shown(id) {
  const [field, said] = [byId(id), byId(`${id}-said`)];
  field.addEventListener("input", () => (said.textContent = field.value));
}
