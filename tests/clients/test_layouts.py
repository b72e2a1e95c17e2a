"""Converted packages in the real programs: transformers.js, onnxruntime-genai, ONNX Runtime, Triton's configuration."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from isoformer.export.layouts import Choice, convert
from isoformer.runtime import Session
from isoformer.runtime.generation import Settings, generate
from isoformer.runtime.package import load
from isoformer.runtime.tasks import embed
from tests.clients.clients import call

pytestmark = pytest.mark.slow
TEXTS = [
    "That is a happy person",
    "Today is a sunny day",
    "naïve café — 東京 und Straße!",
    "What's 2+2?  Two  spaces\tand\ttabs",
    "🙂 emoji 👍🏽 family 👨‍👩‍👧",
    "BERT_base-uncased v2.0 (2018) " * 20,
]
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at",
    "In 1969, the first man",
    "My favourite colour is",
    "The three laws of robotics are",
]
TOKENS = 64
DTYPES = {"float32": "fp32", "int8": "q8", "int4": "q4"}


def in_javascript(**asked: Any) -> list[list[Any]]:
    return json.loads(call("node", "tests/clients/js/run.mjs", stdin=json.dumps(asked)))


def in_genai(python: Path, folder: Path, prompts: list[str], tokens: int) -> dict[str, list[list[int]]]:
    asked = json.dumps({"folder": str(folder), "prompts": prompts, "tokens": tokens})
    return json.loads(call(python, "tests/clients/genai.py", stdin=asked))


def greedy(package: Path, variant: str | None) -> list[list[int]]:
    """Our own new tokens of each prompt, alone; a text's last token is kept."""
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    session, settings = Session(package, variant=variant), Settings(TOKENS, temperature=0.0, eos=(2,))
    return [generate(session, [tokenizer.encode(prompt).ids], settings)[0] for prompt in PROMPTS]


def agreeing(found: list[list[int]], expected: list[list[int]]) -> str:
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    return f"the same for {same} of {len(expected)} prompts, {sum(map(len, expected))} tokens"


def without_end(rows: list[list[int]]) -> list[list[int]]:
    return [row[:-1] if row[-1] == 2 else row for row in rows]


def test_transformers_js_embeds_the_same(minilm_int8: Path, tmp_path: Path) -> None:
    folder = convert(minilm_int8, tmp_path / "minilm", "transformers.js")
    cases = [("float32", level, batch) for level in ("basic", "all") for batch in (False, True)]
    for precision, level, batch in [*cases, ("int8", "basic", False), ("int8", "all", False)]:
        session = Session(minilm_int8, variant=None if precision == "float32" else f"cpu-{precision}")
        expected = np.concatenate([embed.embeddings(session, [text]) for text in TEXTS])
        asked = {"folder": str(folder), "task": "feature-extraction", "dtype": DTYPES[precision], "level": level}
        found = np.array(in_javascript(**asked, texts=TEXTS, batch=batch), np.float32)
        cosine = (found * expected).sum(-1).min()
        print(
            f"{precision} {level} {'a batch' if batch else 'alone'}: {np.abs(found - expected).max():.1e}, {cosine:.4f}"
        )
        if precision == "float32" or level == "basic":
            np.testing.assert_allclose(found, expected, atol=1e-6)
        else:  # other fusions round elsewhere, and 8 bits make more of it
            assert cosine > 0.995


def test_transformers_js_generates_the_same(smollm2_package: Path, tmp_path: Path) -> None:
    folder = convert(smollm2_package, tmp_path / "smollm2", "transformers.js")
    asked = {"folder": str(folder), "task": "text-generation", "level": "all", "texts": PROMPTS, "tokens": TOKENS}
    for precision in load(smollm2_package).precisions("cpu"):
        variant = None if precision == "float32" else f"cpu-{precision}"
        found, expected = in_javascript(**asked, dtype=DTYPES[precision]), greedy(smollm2_package, variant)
        print(f"{precision}: {agreeing(found, expected)}")
        assert found == expected
    batch = in_javascript(**asked, dtype="fp32", batch=True)
    expected = greedy(smollm2_package, None)
    assert [row[: len(own)] for row, own in zip(batch, expected, strict=True)] == expected


def test_genai_generates_the_same(python: Path, smollm2_package: Path, tmp_path: Path) -> None:
    for precision in load(smollm2_package).precisions("cpu"):
        folder = convert(smollm2_package, tmp_path / precision, "genai", Choice(precision))
        expected = without_end(greedy(smollm2_package, f"cpu-{precision}"))
        found = in_genai(python, folder, PROMPTS, TOKENS)
        tokenizer = Tokenizer.from_file(str(smollm2_package / "tokenizer.json"))
        assert found["prompts"] == [tokenizer.encode(prompt).ids for prompt in PROMPTS]
        batch = [row[: len(own)] for row, own in zip(found["batch"], expected, strict=True)]
        print(f"{precision}: {agreeing(found['alone'], expected)}; as a batch {agreeing(batch, expected)}")
        assert found["alone"] == expected
        assert batch == expected


def test_genai_opens_a_cache_that_grows(python: Path, growing: Path, tmp_path: Path) -> None:
    folder = convert(growing, tmp_path / "small", "genai")
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is False
    prompts = ["there was a fox", "once upon"]
    found = in_genai(python, folder, prompts, 20)
    tokenizer = Tokenizer.from_file(str(growing / "tokenizer.json"))
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    (end,) = config["model"]["eos_token_id"]
    own = generate(Session(growing), ids, Settings(20, temperature=0.0, eos=(end,)))
    assert found["alone"] == [row[:-1] if row[-1] == end else row for row in own]


def test_onnxruntime_opens_its_model_package(python: Path, minilm_package: Path, tmp_path: Path) -> None:
    folder = convert(minilm_package, tmp_path / "minilm", "ort", Choice("float32"))
    ids = [[101, 2023, 2003, 102], [101, 2748, 102, 0]]
    mask = [[1, 1, 1, 1], [1, 1, 1, 0]]
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": [[0] * 4] * 2}
    asked = {"package": str(folder), "inputs": inputs, "output": "sentence_embedding"}
    found = json.loads(call(python, "tests/clients/model_package.py", stdin=json.dumps(asked)))
    expected = Session.fastest(minilm_package, precision="float32").run(
        {name: np.array(values) for name, values in inputs.items()}
    )
    np.testing.assert_allclose(np.array(found, np.float32), expected["sentence_embedding"], atol=1e-6)


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_triton_reads_its_configuration(
    python: Path, minilm_package: Path, smollm2_package: Path, tmp_path: Path, provider: str
) -> None:
    for package, inputs in ((minilm_package, 3), (smollm2_package, 64)):
        name = load(package).manifest["name"]
        folder = convert(package, tmp_path / name, "triton", Choice(provider=provider)) / name
        found = json.loads(call(python, "tests/clients/triton_config.py", folder / "config.pbtxt"))
        assert (found["name"], found["backend"], found["max_batch_size"]) == (name, "onnxruntime", 32)
        assert len(found["input"]) == inputs
        assert "dynamic_batching" in found
        assert found["instance_group"][0]["kind"] == f"KIND_{'GPU' if provider == 'cuda' else 'CPU'}"
        assert ("graph" in found["optimization"]) == (provider == "cpu")
