"""A small package for generation: random weights, a byte-level tokenizer, a chat template."""

import json
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture(scope="session")
def generator_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified package for the task generate."""
    folder = tmp_path_factory.mktemp("generator")
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "chat_template": CHATML}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    config = decoder.Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_heads=2,
        num_layers=2,
        intermediate_size=20,
        max_positions=POSITIONS,
        sliding_window=9,
        window_layers=(True, False),
        tied_embeddings=False,
    )
    torch.manual_seed(3)
    model = decoder.Model(config)
    with torch.no_grad():  # the head's start leaves all tokens nearly as likely
        model.head.weight.mul_(7)
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")]
    return export_small(
        model, decoder.signature(config), folder / "package", task=decoder.task(config), files=files
    ).path


@pytest.fixture(scope="session", params=[None, "cpu-float32"], ids=["canonical", "in place"])
def generator(generator_package: Path, request: pytest.FixtureRequest) -> Session:
    """Its canonical graph, and the one that writes the cache in place."""
    return Session(generator_package, variant=request.param)


@pytest.fixture
def ids(generator: Session) -> Callable[[str], list[int]]:
    """A function from a text to its tokens."""
    tokenizer = Tokenizer.from_file(str(generator.package.path / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids
