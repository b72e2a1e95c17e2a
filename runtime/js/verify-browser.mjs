#!/usr/bin/env node
/**
 * node verify-browser.mjs PACKAGE [--variant NAME]... [--provider wasm|webgpu]: replays a package's golden vectors in
 * onnxruntime-web, in headless Chromium, over a server of its own.
 */

import { existsSync } from "node:fs";
import { IsoformerError, PackageError } from "./src/errors.js";
import { HOME, main } from "./src/runner.js";

// Chromium's own adapter in software, which is there without a GPU, and the same on every machine.
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const ERRORS = ["InputError", "IsoformerError", "PackageError", "ProviderError"];

await main("verify-browser.mjs", ["wasm", "webgpu"], async ({ place, variants, provider }, write) => {
  if (!existsSync(place)) throw new PackageError(`${place} is not a package: no such folder`);
  if (!existsSync(`${HOME}/node_modules/onnxruntime-web`)) {
    throw new IsoformerError(`onnxruntime-web is not installed: npm ci --ignore-scripts --prefix ${HOME}`);
  }
  const [{ launch }, { serve }] = await Promise.all([import("./src/browser.js"), import("./src/server.js")]);
  const server = await serve({ "/": HOME, "/package/": place });
  let browser;
  try {
    browser = await launch(provider === "webgpu" ? WEBGPU : []);
    const page = await browser.newPage();
    await page.exposeFunction("write", write);
    await page.goto(`${server.url}/src/runner.html`);
    await page.waitForFunction("globalThis.replayPackage !== undefined");
    const options = { runtime: "browser", provider: provider === "wasm" ? "cpu" : provider, called: provider, variants };
    const error = await page.evaluate(`replayPackage(${JSON.stringify(options)})`);
    if (error) {
      const message = error.message.replaceAll(`${server.url}/package`, place);
      throw ERRORS.includes(error.name) ? new IsoformerError(message) : new Error(message);
    }
  } finally {
    await browser?.close();
    server.close();
  }
});
