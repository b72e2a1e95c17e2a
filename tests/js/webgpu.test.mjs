/** WebGPU on Chromium's software adapter: within the golden bounds, or refused in one line. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { elsewhere, inexact, read } from "../../runtime/js/src/placement.js";

const ROOT = new URL("../..", import.meta.url).pathname;
const TIMEOUT = { timeout: 900_000 };
const at = (line) => `[V:onnxruntime:, session_state.cc:1383 VerifyEachNodeIsAssignedToAnEp] ${line}`;

/** What the runner prints of a package, and its exit status. */
function replayed(place, ...more) {
  const words = [`${ROOT}/runtime/js/verify-browser.mjs`, `${ROOT}/${place}`, "--provider", "webgpu", ...more];
  return new Promise((done) => {
    execFile("node", words, { maxBuffer: 2 ** 26 }, (error, stdout, stderr) => {
      done({ status: error ? error.code : 0, lines: stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line)), stderr });
    });
  });
}

test("a graph with its attention taken apart is within its bounds, and what stays on the CPU is told", TIMEOUT, async () => {
  const { status, lines, stderr } = await replayed("demo/attention");
  assert.equal(status, 0, stderr);
  const { passed, cases } = lines.pop();
  assert.ok(passed && cases >= 10);
  for (const { provider, version, elsewhere: left } of lines) {
    assert.deepEqual([provider, version.split(" on ")[1]], ["webgpu", "swiftshader"]);
    assert.match(left, /^Cast 8, Concat 4/);
  }
});

test("a graph that WebGPU would leave to the CPU is refused in one line", TIMEOUT, async () => {
  const { status, lines, stderr } = await replayed("demo/minilm", "--variant", "canonical");
  assert.deepEqual([status, lines], [2, []]);
  assert.match(stderr, /^isoformer: webgpu does not run Attention of this graph; isoformer export --provider openvino[^\n]*\n$/);
});

test("a graph that computes with float64 is refused in one line", TIMEOUT, async () => {
  const { status, lines, stderr } = await replayed("demo/smollm2-reproducible", "--variant", "cpu-int8");
  assert.deepEqual([status, lines], [2, []]);
  assert.equal(stderr, "isoformer: webgpu has no float64, which cpu-int8 computes with; use the provider cpu\n");
});

test("the log tells where nodes are", () => {
  const placed = read([
    "[I:onnxruntime:, something.cc:1 else] Cos (not a placement)",
    at("Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 3"),
    at("  MatMul (a)"),
    at("  Cos (model.rotary.cos)"),
    at("  Sin ()"),
    at("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3"),
    at("  Shape (c)"),
    at("  Clip (d)"),
    at("  Shape (e)"),
  ]);
  assert.deepEqual(inexact(placed), ["model.rotary.cos", ""]);
  assert.deepEqual([...elsewhere(placed)], [["Clip", 1], ["Shape", 2]]);
  assert.equal(elsewhere(read([at("All nodes placed on [WebGpuExecutionProvider]. Number of nodes: 7")])).size, 0);
});

test("what computes elsewhere is refused, and so is a log that says nothing", () => {
  const lines = [at("Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 1"), at("  MatMul (a)")];
  lines.push(at("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1"), at("  QuantizeLinear (b)"));
  assert.throws(() => elsewhere(read(lines)), { name: "ProviderError", message: "webgpu does not run QuantizeLinear of this graph" });
  assert.throws(() => elsewhere(read([])), { name: "ProviderError", message: /does not say where it computes/ });
  assert.throws(() => elsewhere(read([at("All nodes placed on [CPUExecutionProvider]. Number of nodes: 7")])), { name: "ProviderError" });
});
