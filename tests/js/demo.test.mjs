/**
 * The demonstration page, served by `isoformer serve-demo` and driven in headless Chromium.
 *
 * SCREENSHOTS=FOLDER writes pictures of it there.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { launch } from "../../runtime/js/src/browser.js";

const ROOT = new URL("../..", import.meta.url).pathname;
const PACKAGES = (process.env.DEMO_PACKAGES ?? "demo/minilm demo/smollm2-reproducible demo/attention").split(" ");
const AXE = readFileSync(`${ROOT}/runtime/js/node_modules/axe-core/axe.min.js`, "utf8");
const LONG = { timeout: 600_000 };
const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 900 } };
let server, browser, url;

before(async () => {
  server = spawn(`${ROOT}/.venv/bin/isoformer`, ["serve-demo", ...PACKAGES, "--port", "0"], { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] });
  const [line] = await once(createInterface({ input: server.stdout }), "line");
  [url] = line.split(" ");
  browser = await launch();
});

after(async () => {
  await browser?.close();
  server?.kill();
});

/** A page that is ready, what it asked for, and what went wrong in it. */
async function open({ size = "desktop", scheme = "light" } = {}) {
  const page = await browser.newPage({ viewport: SIZES[size], colorScheme: scheme, reducedMotion: "reduce" });
  page.setDefaultTimeout(300_000);
  const asked = [];
  const wrong = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  await page.goto(url);
  await page.waitForSelector("html[data-ready=true]");
  return { page, asked, wrong };
}

/** The sums at the ends of the mask's rows. */
const sums = (page) => page.locator("#masking .sum[role=gridcell]").allTextContents();
const square = (page, row, column) => page.locator("#masking [role=row]").nth(row + 1).locator(".square").nth(column);

/** Waits until the page shows what it should; fails with what it shows instead. */
async function shows(read, wanted) {
  let found;
  for (let turn = 0; turn < 200; turn += 1) {
    found = await read();
    if (isDeepStrictEqual(found, wanted)) return;
    await new Promise((go) => setTimeout(go, 100));
  }
  assert.deepEqual(found, wanted);
}

test("a pair of sentences: the number that Python has", LONG, async () => {
  const { page, asked, wrong } = await open();
  await page.fill("#sentences-text", "That is a happy person\nThat is a happy dog");
  await page.locator("#sentences-note", { hasText: "2 sentences" }).waitFor();
  assert.deepEqual(await page.locator("#sentences .square").allTextContents(), ["1.00", "0.69", "0.69", "1.00"]);
  assert.deepEqual(wrong, []);
  const origin = new URL(url).origin;
  assert.deepEqual(asked.filter((one) => !one.startsWith(origin) && !/^(data|blob):/.test(one)), [], "it asks no other place");
  assert.equal(await page.evaluate(() => globalThis.crossOriginIsolated), true);
  await page.close();
});

test("a text goes on, can be stopped, and the same seed draws the same", LONG, async () => {
  const { page, wrong } = await open();
  const rest = page.locator("#writing-rest");
  await page.fill("#writing-length", "8");
  await page.fill("#writing-text", "The capital of France is");
  await page.click("#writing-go");
  await page.locator("#writing-note", { hasText: "wrote 8" }).waitFor();
  assert.match(await rest.textContent(), /^ Paris/);

  await page.locator("label", { hasText: "Drawn" }).click();
  const drawn = [];
  for (let turn = 0; turn < 2; turn += 1) {
    await page.click("#writing-go");
    await page.locator("#writing-note", { hasText: "wrote 8" }).waitFor();
    drawn.push(await rest.textContent());
    await page.evaluate(() => (document.getElementById("writing-note").textContent = ""));
  }
  assert.equal(drawn[0], drawn[1]);

  await page.locator("label", { hasText: "The likeliest" }).click();
  await page.fill("#writing-length", "128");
  await page.click("#writing-go");
  await page.waitForFunction(() => document.getElementById("writing-rest").textContent.length > 5);
  await page.click("#writing-go");
  await page.locator("#writing-note", { hasText: "wrote" }).waitFor();
  assert.equal(await page.locator("#writing-go").textContent(), "Continue the text");
  assert.deepEqual(wrong, []);
  await page.close();
});

test("a mask is drawn by mouse and by keyboard: a row without keys is exactly zero", LONG, async () => {
  const { page, wrong } = await open();
  const count = (await sums(page)).length;
  assert.deepEqual(await sums(page), Array(count).fill("1.00"));
  const before = await square(page, 1, 0).textContent();

  await square(page, count - 1, 0).scrollIntoViewIfNeeded();
  // Along the second row, all but its first square: what is left takes all the weight.
  const [from, to] = [await square(page, 1, 1).boundingBox(), await square(page, 1, count - 1).boundingBox()];
  await page.mouse.move(from.x + 5, from.y + 5);
  await page.mouse.down();
  await page.mouse.move(to.x + 5, to.y + 5, { steps: 4 * count });
  await page.mouse.up();
  assert.notEqual(before, "1.00");
  await shows(() => square(page, 1, 0).textContent(), "1.00");
  assert.deepEqual(await sums(page), Array(count).fill("1.00"));

  // The last one by keyboard.
  await square(page, 1, 1).focus();
  await page.keyboard.press("Home");
  await page.keyboard.press("Space");
  await shows(() => sums(page), Array.from({ length: count }, (_, row) => (row === 1 ? "0" : "1.00")));
  assert.match(await page.locator("#masking-note").textContent(), /has no key left: its weights are exactly 0/);
  assert.match(await square(page, 1, 0).getAttribute("aria-label"), /hidden/);
  if (process.env.SCREENSHOTS) await page.locator("#masking").screenshot({ path: `${process.env.SCREENSHOTS}/masking.png` });

  await page.keyboard.press("ArrowDown");
  assert.equal(await page.evaluate(() => document.activeElement.dataset.place), String(2 * count));
  await page.getByRole("button", { name: "Causal" }).click();
  await shows(() => square(page, 0, 0).textContent(), "1.00");
  assert.equal(await page.locator("#masking .square.hidden").count(), (count * (count - 1)) / 2);
  assert.deepEqual(wrong, []);
  await page.close();
});

for (const scheme of ["light", "dark"]) {
  for (const size of ["phone", "desktop"]) {
    test(`nothing that axe finds, and nothing wider than the page: ${size}, ${scheme}`, LONG, async () => {
      const { page } = await open({ size, scheme });
      await page.getByRole("button", { name: "A row without keys" }).click();
      await page.locator("#masking .sum.nothing").waitFor();
      await page.evaluate(AXE);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
      assert.deepEqual(found, []);
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= SIZES[size].width);
      if (process.env.SCREENSHOTS && (size === "desktop") === (scheme === "light")) {
        await page.fill("#writing-length", "24");
        await page.click("#writing-go");
        await page.locator("#writing-note", { hasText: "wrote" }).waitFor();
        await page.evaluate(() => {
          document.querySelector(".masthead").style.position = "static";
          document.activeElement.blur();
        });
        await page.screenshot({ path: `${process.env.SCREENSHOTS}/${size}-${scheme}.png`, fullPage: true });
      }
      await page.close();
    });
  }
}

test("a page without packages says how to get them", LONG, async () => {
  const page = await browser.newPage();
  await page.goto(`${url}?package=/packages/none/`);
  await page.waitForSelector("html[data-ready=true]");
  assert.equal(await page.locator(".empty").count(), 3);
  assert.match(await page.locator("#packages").textContent(), /is not a package/);
  await page.close();
});
