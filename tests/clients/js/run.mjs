// A folder of the layout transformers.js in that library, offline. Standard input: one JSON object
// {folder, task, dtype, level, texts, tokens, batch}; standard output: embeddings, or the new tokens of each text.
import path from "node:path";
import { text } from "node:stream/consumers";
import { env, pipeline } from "@huggingface/transformers";

const { folder, task, dtype, level, texts, tokens, batch } = JSON.parse(await text(process.stdin));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const run = await pipeline(task, path.basename(folder), {
  dtype,
  session_options: { graphOptimizationLevel: level },
});

async function generate(prompts) {
  run.tokenizer.padding_side = "left"; // the new tokens stand behind the prompt
  const inputs = run.tokenizer(prompts, { padding: true });
  const output = await run.model.generate({ ...inputs, max_new_tokens: tokens, do_sample: false });
  const length = inputs.input_ids.dims[1];
  return output.tolist().map((row) => row.slice(length).map(Number));
}

const groups = batch ? [texts] : texts.map((one) => [one]);
const found = [];
for (const group of groups) {
  if (task === "feature-extraction") {
    found.push(...(await run(group, { pooling: "mean", normalize: true })).tolist());
  } else {
    found.push(...(await generate(group)));
  }
}
process.stdout.write(JSON.stringify(found));
