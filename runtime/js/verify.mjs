#!/usr/bin/env node
/** node verify.mjs PACKAGE [--variant NAME]... [--provider cpu]: replays a package's golden vectors in onnxruntime-node. */

import { main } from "./src/runner.js";

await main("verify.mjs", ["cpu"], async ({ place, variants }, write) => {
  const [{ nodeEngine }, { replay }] = await Promise.all([import("./src/engine.js"), import("./src/replay.js")]);
  for await (const record of replay(place, await nodeEngine(), { runtime: "node", variants })) write(record);
});
