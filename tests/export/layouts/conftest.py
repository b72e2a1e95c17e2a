"""A small encoder and a small decoder, each with the files that other programs read."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from isoformer.models.families import decoder, encoder
from isoformer.runtime.package import Package, load
from tests.conftest import export_small
from tests.runtime.conftest import END, byte_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int, list[Path]]:
    """Words, the token that ends a text, and the tokenizer's files."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    end = tokenizer.token_to_id(END)
    assert end is not None
    return (
        tokenizer.get_vocab_size(),
        end,
        [folder / "tokenizer.json", folder / "tokenizer_config.json"],
    )


def settings(folder: Path, model_type: str, **more: int) -> list[Path]:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | more))
    return [folder / "config.json"]


@pytest.fixture(scope="session")
def small_encoder(files: tuple[int, int, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("encoder")
    config = dataclasses.replace(encoder.TINY, vocab_size=files[0])
    torch.manual_seed(5)
    carried = files[2] + settings(folder, "bert")
    task = encoder.task(config)
    signature = encoder.signature(config)
    return export_small(encoder.Model(config), signature, folder / "small", task=task, files=carried)


@pytest.fixture(scope="session")
def small_decoder(files: tuple[int, int, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("decoder")
    config = decoder.Config(
        vocab_size=files[0],
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        num_layers=2,
        intermediate_size=20,
        max_positions=70,
    )
    torch.manual_seed(3)
    path = export_small(
        decoder.Model(config),
        decoder.signature(config),
        folder / "small",
        task=decoder.task(config),
        files=files[2] + settings(folder, "llama", num_hidden_layers=2, eos_token_id=files[1]),
        provenance={"config": dataclasses.asdict(config)},
    ).path
    return load(path)
