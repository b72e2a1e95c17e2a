/** What this runtime answers to the questions of vectors.json; the same module in Node and in the browser. */

import { Decoder } from "../../runtime/js/src/binding.js";
import { Settings, generate } from "../../runtime/js/src/generation.js";
import { eosTokens } from "../../runtime/js/src/detokenizer.js";
import { Session } from "../../runtime/js/src/session.js";
import { embeddings } from "../../runtime/js/src/tasks/embed.js";
import { textEncoder } from "../../runtime/js/src/text.js";

/** The names that JavaScript has for Python's settings. */
function renamed(settings) {
  return Object.fromEntries(Object.entries(settings).map(([name, value]) => [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), value]));
}

/** The vectors of the texts. */
export async function embedded(engine, place, texts) {
  const session = await Session.open(place, { engine });
  const found = await embeddings(session, texts);
  await session.release();
  return found.map((vector) => [...vector]);
}

/** The new tokens of each case, {name, settings, prompts}. */
export async function continued(engine, place, precision, cases) {
  const session = await Session.fastest(place, { engine, precision });
  const eos = await eosTokens(session.package, await textEncoder(session));
  const found = [];
  for (const { settings, prompts } of cases) found.push(await generate(session, prompts, new Settings({ ...renamed(settings), eos })));
  await session.release();
  return found;
}

/**
 * The logits behind prompts in one batch, in pieces, and behind a further token each; and the same of each prompt by itself,
 * in one run. Beside them how many runs the batch took.
 */
export async function inPieces(engine, place, precision, prompts) {
  const session = await Session.fastest(place, { engine, precision });
  const [batch, whole] = [new Decoder(session), new Decoder(session)];
  whole.piece = Infinity;
  const { compute } = session;
  let runs = 0;
  session.compute = (...given) => ((runs += 1), compute.apply(session, given));
  const found = [...(await batch.start(prompts)).logits, ...(await batch.append(prompts.map(([token]) => [token])))];
  session.compute = compute;
  const [first, further] = [[], []];
  for (const prompt of prompts) {
    first.push(...(await whole.start([prompt])).logits);
    further.push(...(await whole.append([[prompt[0]]])));
  }
  await session.release();
  return { runs, found, wanted: [...first, ...further] };
}

/** The SHA-256 of each output of each of the package's data sets of golden vectors. */
export async function digested(engine, place, sets) {
  const session = await Session.fastest(place, { engine, precision: "int8" });
  const found = {};
  for (const set of sets) {
    found[set] = {};
    for (const [name, { data }] of Object.entries(await session.run(await session.package.vectors(set, "input")))) {
      const bytes = await crypto.subtle.digest("SHA-256", data);
      found[set][name] = [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    }
  }
  await session.release();
  return found;
}

/** How many of the tokens of the greedy cases are the likeliest behind those before them: [so many, of how many]. */
export async function agreeing(engine, place, precision, cases) {
  const session = await Session.fastest(place, { engine, precision });
  const decoder = new Decoder(session);
  let [same, all] = [0, 0];
  for (const { prompts, tokens } of cases) {
    let { logits } = await decoder.start(prompts);
    for (const token of tokens[0]) {
      const best = logits[0].reduce((top, value, place) => (value > logits[0][top] ? place : top), 0);
      same += Number(best === token);
      all += 1;
      logits = await decoder.append([[token]]);
    }
  }
  await session.release();
  return [same, all];
}

/** The largest difference of two lists of vectors. */
export function furthest(found, wanted) {
  return Math.max(...wanted.flatMap((vector, row) => vector.map((value, place) => Math.abs(value - found[row][place]))));
}
