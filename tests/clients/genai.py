"""A folder of the layout genai in onnxruntime-genai. Standard input: {folder, prompts, tokens}; output: new tokens.

Each prompt alone, and all of them as one batch.
"""

import json
import sys

import numpy as np
import onnxruntime_genai as genai  # pyright: ignore[reportMissingImports]


def main() -> None:
    asked = json.load(sys.stdin)
    model = genai.Model(asked["folder"])
    tokenizer = genai.Tokenizer(model)
    prompts = [tokenizer.encode(prompt).tolist() for prompt in asked["prompts"]]
    alone = [generated(model, [prompt], asked["tokens"])[0] for prompt in prompts]
    print(json.dumps({"prompts": prompts, "alone": alone, "batch": generated(model, prompts, asked["tokens"])}))


def generated(model: "genai.Model", prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedily; the library pads on the right, and keeps no token that ends a text."""
    longest = max(map(len, prompts))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + tokens, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([row + [2] * (longest - len(row)) for row in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row).tolist()[longest:] for row in range(len(prompts))]


if __name__ == "__main__":
    main()
