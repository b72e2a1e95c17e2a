"""A small package for generation: random weights, a byte-level tokenizer, a chat template."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from isoformer.models.families import decoder
from isoformer.runtime import Session
from tests.conftest import export_small

POSITIONS = 150
START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE with two merges' worth of words: most of what is not ASCII is several tokens a character."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[START, END],
        show_progress=False,
    )
    made.train_from_iterator(["once upon a time there was a fox", "there was a time"], trainer)
    return made


def export_generator(folder: Path, settings: dict[str, Any], end: str | None = None, **config: Any) -> Path:
    """A small decoder of random weights and its byte-level tokenizer as a package in the folder.

    settings: tokenizer_config.json. end: the token of generation_config.json, if there is one.
    """
    tokenizer, written = byte_tokenizer(), {"tokenizer_config.json": settings}
    tokenizer.save(str(folder / "tokenizer.json"))
    if end is not None:
        written["generation_config.json"] = {"eos_token_id": [tokenizer.token_to_id(end)]}
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    vocab_size = tokenizer.get_vocab_size()
    made = decoder.Config(vocab_size, num_layers=2, intermediate_size=20, tied_embeddings=False, **config)
    torch.manual_seed(3)
    model = decoder.Model(made)
    with torch.no_grad():  # the head's start leaves all tokens nearly as likely
        model.head.weight.mul_(7)
    return export_small(
        model,
        decoder.signature(made),
        folder / "package",
        task=decoder.task(made),
        files=[folder / name for name in ("tokenizer.json", *written)],
        provenance={"config": dataclasses.asdict(made)},
    ).path


@pytest.fixture(scope="session")
def generator_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified package for the task generate."""
    return export_generator(
        tmp_path_factory.mktemp("generator"),
        {"eos_token": END, "chat_template": CHATML},
        end=END,
        hidden_size=16,
        num_heads=2,
        max_positions=POSITIONS,
        sliding_window=9,
        window_layers=(True, False),
    )


@pytest.fixture(scope="session", params=[None, "cpu-float32"], ids=["canonical", "in place"])
def generator(generator_package: Path, request: pytest.FixtureRequest) -> Session:
    """Its canonical graph, and the one that writes the cache in place."""
    return Session(generator_package, variant=request.param)


@pytest.fixture
def ids(generator: Session) -> Callable[[str], list[int]]:
    """A function from a text to its tokens."""
    tokenizer = Tokenizer.from_file(str(generator.package.path / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids
