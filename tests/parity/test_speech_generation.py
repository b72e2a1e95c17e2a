"""Whisper beside transformers' on the same random weights, from the folder that it saves to ONNX Runtime's answers:
the tokens of greedy and beam search are the same.

The rules of transcribing (timestamps, silence) are left out on both sides; tests/runtime/tasks has those.
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
from isoformer.models import checkpoints, registry
from isoformer.models.families import speech
from isoformer.runtime import Package, Session
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.generation import Settings, stream
from isoformer.runtime.package import Signature
from isoformer.runtime.tasks import translate

VOCABULARY, NEW, COUNT, MELS, FRAMES = 61, 20, 20, 11, 26
FEATURES = np.random.default_rng(7).standard_normal((COUNT, MELS, FRAMES)).astype(np.float32)


@dataclass(frozen=True)
class Pair:
    """One set of weights in transformers and as graphs; `eos` is a token that ends some greedy answers early."""

    theirs: Any
    graphs: Any
    eos: int

    def expected(self, **settings: Any) -> list[list[int]]:
        return [row[: row.index(self.eos) + 1] if self.eos in row else row for row in answers(self.theirs, **settings)]

    def found(self, **settings: Any) -> list[list[int]]:
        """A batch of all; a beam search takes one at a time."""
        decoder, result = CrossDecoder(self.graphs["decoder_model_merged"]), [[] for _ in range(COUNT)]
        chosen = Settings(NEW, eos=(self.eos,), **settings)
        size = COUNT if chosen.beams == 1 else 1
        for start in range(0, COUNT, size):
            mask = np.ones((size, FRAMES // 2), np.int64)
            arrays = {"input_features": FEATURES[start : start + size], "attention_mask": mask}
            decoder.condition(translate.known(self.graphs, arrays, mask))
            begins: dict[int, Sequence[int]] = {start + row: [3, 5] for row in range(size)}
            for number, token in stream(decoder, begins, chosen):
                result[number].append(token)
        return result


def answers(model: Any, **settings: Any) -> list[list[int]]:
    """transformers' new tokens behind a prompt of two, by its general search."""
    prompt = torch.tensor([[3, 5]] * COUNT)
    mixin: Any = transformers.GenerationMixin
    made = mixin.generate(
        model, torch.from_numpy(FEATURES), decoder_input_ids=prompt, max_new_tokens=NEW, do_sample=False, **settings
    )
    return torch.as_tensor(made)[:, 2:].tolist()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=MELS,
        d_model=42,
        encoder_layers=1,
        encoder_attention_heads=3,
        encoder_ffn_dim=53,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=47,
        max_source_positions=FRAMES // 2,
        max_target_positions=37,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():  # answers that depend on the sound and on their own beginning
        for key, weight in theirs.named_parameters():
            large = re.search(r"encoder_attn\.|embed_positions|conv", key) and weight.ndim >= 2
            norm = re.search(r"norm\.weight", key)
            weight.normal_(1.0 if norm else 0.0, 1.0 if large else 0.3, generator=drawn)
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=0, decoder_start_token_id=3)
    free = answers(theirs)
    late = {token: sum(token in row[2:-2] and token not in row[:2] for row in free) for token in range(6, VOCABULARY)}
    eos = max((count, token) for token, count in late.items() if 3 * count <= 2 * COUNT)[1]
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = eos
    theirs.save_pretrained(folder / "theirs")
    return Pair(theirs, sessions(folder), eos)


def sessions(folder: Path) -> dict[str, Session]:
    """The graphs behind the spectrogram, of the folder's checkpoint."""
    checkpoint = checkpoints.read(folder / "theirs")
    parts, result = registry.graphs(checkpoint.model(), speech.signature(checkpoint.config)), {}
    for name in ("encoder_model", "decoder_model_merged"):
        model, signature = parts[name]
        (folder / name).mkdir()
        ir.save(to_onnx(model, signature, 23), folder / name / "model.onnx")
        result[name] = Session(Package(folder / name, {}, Signature.read(signature.to_dict())))
    return result


def test_greedy(pair: Pair) -> None:
    expected = pair.expected()
    assert len({len(row) for row in expected}) > 3  # some end early, some do not
    assert len({tuple(row) for row in expected}) > 10
    assert len({token for row in expected for token in row}) > 10
    assert pair.found() == expected


@pytest.mark.parametrize(("length_penalty", "early_stopping"), [(1.0, False), (0.3, False), (2.0, True)])
def test_beam_search(pair: Pair, length_penalty: float, early_stopping: bool) -> None:
    expected = pair.expected(num_beams=4, length_penalty=length_penalty, early_stopping=early_stopping)
    assert expected != pair.expected()
    assert pair.found(beams=4, length_penalty=length_penalty, early_stopping=early_stopping) == expected
