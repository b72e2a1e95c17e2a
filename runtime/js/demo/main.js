/** Finds the packages, gives each demonstration its own, and says what computes. */

import { Client } from "./client.js";
import { byId, element } from "./dom.js";
import * as masking from "./masking.js";
import * as similarity from "./similarity.js";
import * as writing from "./writing.js";

/**
 * The packages' addresses: `?package=…` of the page's own address, several times, else those in packages.json beside it.
 * @returns {Promise<string[]>}
 */
async function addresses() {
  const named = new URLSearchParams(location.search).getAll("package");
  if (named.length) return named.map(absolute);
  const response = await fetch("packages.json").catch(() => null);
  return response?.ok ? (await response.json()).map(absolute) : [];
}

/** @param {string} url */
function absolute(url) {
  return new URL(url, location.href).href;
}

async function main() {
  const client = new Client();
  const found = await Promise.allSettled((await addresses()).map((url) => client.call("about", { url })));
  const packages = found.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const failures = found.flatMap((one) => (one.status === "rejected" ? [one.reason.message] : []));
  const millions = (/** @type {number} */ count) => `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} million weights`;
  const lines = packages.map(({ name, parameters, precision }) => `${name}: ${millions(parameters)}, ${precision}`);
  byId("packages").replaceChildren(...[...lines, ...failures].map((line) => element("li", {}, line)));

  const isMap = (/** @type {any} */ one) => one.layers > 0 && one.text;
  const embedders = packages.filter(({ task, text }) => task === "embed" && text);
  const tell = async (/** @type {string} */ url) => {
    const { engine, threads } = await client.call("open", { url });
    byId("engine").textContent = `Computed here by ${engine}, WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}.`;
  };
  const chosen = {
    sentences: embedders.find((one) => !isMap(one)) ?? embedders[0],
    writing: packages.find(({ task, text }) => task === "generate" && text),
    masking: packages.find(isMap),
  };
  writing.start(client, chosen.writing, () => tell(chosen.writing.url));
  await similarity.start(client, chosen.sentences, () => tell(chosen.sentences.url));
  await masking.start(client, chosen.masking, () => tell(chosen.masking.url));
  document.documentElement.dataset.ready = "true";
}

await main();
