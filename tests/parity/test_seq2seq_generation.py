"""Encoder–decoders beside transformers' on the same weights, from the folder that it saves to ONNX Runtime's answers:
the tokens of greedy and beam search are the same. In the fast tier the graphs stand alone; a package that has been
measured as it is made takes half a minute.

All numbers are random and in float32, so two scores that come closer to each other than rounding are
not to be expected; where a search takes another token, the cause is not rounding.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

from isoformer.export.graph import to_onnx
from isoformer.models import checkpoints
from isoformer.models.families import encoder_decoder
from isoformer.runtime import Package, Session
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.generation import Settings, stream
from isoformer.runtime.package import Signature
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks import translate
from tests.conftest import export_small

VOCABULARY, NEW, PAD = 61, 24, 0
PROMPTS = [
    np.random.default_rng([5, length]).integers(1, VOCABULARY, length).tolist()
    for length in (1, 2, 3, 5, 7, 8, 9, 11, 13, 14, 16, 17, 19, 20, 21, 22, 23, 25, 27, 29)
]
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 33,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 53,
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 47,
    "max_position_embeddings": 37,
    "scale_embedding": True,
}
T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 37,
    "d_kv": 11,
    "d_ff": 53,
    "num_layers": 2,
    "num_heads": 3,
    "n_positions": 37,
}
# What begins an answer, what never comes, what must come first and last.
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "marian": ("MarianMTModel", transformers.MarianConfig, {"decoder_start_token_id": PAD, "bad_words_ids": [[PAD]]}),
    "bart": ("BartForConditionalGeneration", transformers.BartConfig, {"decoder_start_token_id": 2}),
    "t5": ("T5ForConditionalGeneration", transformers.T5Config, {"decoder_start_token_id": PAD}),
}


@dataclass(frozen=True)
class Pair:
    """One set of weights, in transformers and as a package; `eos` is a token that ends some greedy answers early."""

    theirs: Any
    graphs: Any  # a mapping of names and sessions
    task: dict[str, Any]
    eos: int

    def expected(self, prompts: Sequence[list[int]], **settings: Any) -> list[list[int]]:
        """transformers' new tokens of one batch padded on the right, up to the end."""
        return [cut(row, self.eos) for row in their_tokens(self.theirs, prompts, **settings)]

    def found(self, prompts: Sequence[list[int]], **settings: Any) -> list[list[int]]:
        """Ours; a beam search takes one prompt at a time."""
        result: list[list[int]] = [[] for _ in prompts]
        task, decoder = self.task, CrossDecoder(self.graphs["decoder_model_merged"])
        chosen = translate.with_package(task, Settings(NEW, **settings))
        size = len(prompts) if chosen.beams == 1 else 1
        for start in range(0, len(prompts), size):
            arrays = batch(prompts[start : start + size])
            decoder.condition(translate.known(self.graphs, arrays, arrays["attention_mask"]))
            begins: dict[int, Sequence[int]] = {start + row: task["decoder_start"] for row in range(size)}
            for number, token in stream(decoder, begins, chosen):
                result[number].append(token)
        return result


def batch(prompts: Sequence[list[int]]) -> dict[str, np.ndarray]:
    width = max(map(len, prompts))
    return {
        "input_ids": np.array([prompt + [PAD] * (width - len(prompt)) for prompt in prompts]),
        "attention_mask": np.array([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]),
    }


def their_tokens(model: Any, prompts: Sequence[list[int]], **settings: Any) -> list[list[int]]:
    arrays = {name: torch.from_numpy(array) for name, array in batch(prompts).items()}
    return model.generate(**arrays, max_new_tokens=NEW, do_sample=False, **settings)[:, 1:].tolist()


def cut(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def random_model(kind: str) -> Any:
    """Weights whose answers depend on the text and on their own beginning, rather than repeat one token for ever."""
    name, config, generation = KINDS[kind]
    model = getattr(transformers, name)(config(**(T5_SIZES if kind == "t5" else SIZES), pad_token_id=PAD))
    if kind != "t5":  # tied to the table, a head behind a norm says again what it was told
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    drawn = torch.Generator().manual_seed(3 if kind == "marian" else 1)
    buffers = [(key, buffer) for key, buffer in model.named_buffers() if key == "final_logits_bias"]
    with torch.no_grad():
        for key, weight in [*model.named_parameters(), *buffers]:
            if kind == "marian" and "embed_positions" in key:  # which the library computes
                continue
            large = re.search(r"encoder_attn\.|EncDec|embed_positions|lm_head|relative", key) and weight.ndim == 2
            small = re.search(r"bias|fc\d", key) and not large
            norm = re.search(r"norm(_embedding)?\.weight", key)
            weight.normal_(1.0 if norm else 0.0, 1.0 if large else 0.15 if small else 0.3, generator=drawn)
    model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, **generation)
    return model.eval()


def some_end(rows: list[list[int]]) -> int:
    """The token that ends most of these early, but no more than two in three."""
    late = {token: sum(token in row[2:-2] and token not in row[:2] for row in rows) for token in range(1, VOCABULARY)}
    return max((count, token) for token, count in late.items() if 3 * count <= 2 * len(rows))[1]


def sessions(checkpoint: Any, folder: Path) -> dict[str, Session]:
    """The graphs of the checkpoint's model."""
    model: Any = checkpoint.model()
    result = {}
    for name, signature in encoder_decoder.signature(checkpoint.config).items():
        (folder / name).mkdir(parents=True)
        ir.save(to_onnx(model.graph(name), signature, 23), folder / name / "model.onnx")
        package = Package(folder / name, {"task": {"name": "translate"}}, Signature.read(signature.to_dict()))
        result[name] = Session(package)
    return result


KIND_AND_WAY = [*((kind, "graphs") for kind in KINDS), pytest.param(("t5", "package"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=KIND_AND_WAY, ids=lambda chosen: "-".join(chosen))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    (kind, way), folder = request.param, tmp_path_factory.mktemp("pair")
    transformers.logging.disable_progress_bar()
    theirs = random_model(kind)
    free = their_tokens(theirs, PROMPTS)
    eos = some_end(free)
    theirs.generation_config.eos_token_id = eos
    if kind != "t5":
        theirs.generation_config.forced_eos_token_id = eos
    if kind == "bart":
        theirs.generation_config.forced_bos_token_id = (eos + 1) % VOCABULARY
    theirs.save_pretrained(folder / "theirs")
    checkpoint = checkpoints.read(folder / "theirs")
    task = encoder_decoder.task(checkpoint.config)
    if way == "graphs":
        return Pair(theirs, sessions(checkpoint, folder / "ours"), task, eos)
    signature = encoder_decoder.signature(checkpoint.config)
    package = export_small(checkpoint.model(), signature, folder / "ours", task=task, files=checkpoint.files)
    return Pair(theirs, Graphs(package), package.task, eos)


def test_greedy(pair: Pair) -> None:
    expected = pair.expected(PROMPTS)
    assert len({len(row) for row in expected}) > 3  # some end early, some do not
    assert max(map(len, expected)) == NEW
    assert len({tuple(row) for row in expected}) > 12
    assert len({token for row in expected for token in row}) > VOCABULARY // 4
    assert pair.found(PROMPTS) == expected
    assert [pair.found([prompt])[0] for prompt in PROMPTS] == expected
    for number in (0, 9, 19):  # theirs, too, does not depend on the padding
        assert pair.expected([PROMPTS[number]]) == [expected[number]]


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"),
    [(1.0, False), (0.3, False), (2.0, True), pytest.param(2.0, False, marks=pytest.mark.slow)],
)
def test_beam_search(pair: Pair, length_penalty: float, early_stopping: bool) -> None:
    choice: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    expected = pair.expected(PROMPTS, num_beams=4, **choice)
    assert expected != pair.expected(PROMPTS)
    assert length_penalty == 2 or any(len(row) < NEW for row in expected)  # 2 favours the longest
    assert pair.found(PROMPTS, beams=4, **choice) == expected
    assert pair.expected([PROMPTS[7]], num_beams=4, **choice) == [expected[7]]
