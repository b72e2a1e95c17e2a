// A folder of the layout transformers.js in that library, offline. Standard input: one JSON object
// {folder, task, dtype, texts, tokens}; standard output: embeddings, or the new tokens of each text.
import path from "node:path";
import { text } from "node:stream/consumers";
import { env, pipeline } from "@huggingface/transformers";

const { folder, task, dtype, texts, tokens, batch } = JSON.parse(await text(process.stdin));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const run = await pipeline(task, path.basename(folder), { dtype });

async function generate(prompts) {
  const inputs = run.tokenizer(prompts, { padding: true });
  const output = await run.model.generate({ ...inputs, max_new_tokens: tokens, do_sample: false });
  const length = inputs.input_ids.dims[1];
  return output.tolist().map((row) => row.slice(length).map(Number));
}

const found = [];
if (task === "feature-extraction") {
  found.push(...(await run(texts, { pooling: "mean", normalize: true })).tolist());
} else if (batch) {
  found.push(...(await generate(texts)));
} else {
  for (const prompt of texts) found.push(...(await generate([prompt])));
}
process.stdout.write(JSON.stringify(found));
