"""The clients' interpreter, MiniLM and SmolLM2 as packages, and a small decoder."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, export_real
from tests.runtime.conftest import END, export_generator


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has the clients; a test that needs it fails without it."""
    path = ROOT / ".venv-clients/bin/python"
    if not list(path.parent.parent.glob(".installed-*")):
        pytest.fail("the clients are not there: make clients")
    return path


@pytest.fixture(scope="session")
def smollm2_package(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a package: the one at demo/smollm2 where it is, else exported, which takes many minutes."""
    made = ROOT / "demo/smollm2"
    if made.is_dir():
        return made
    return export_real(smollm2, tmp_path_factory.mktemp("smollm2") / "smollm2")


@pytest.fixture(scope="session")
def minilm_int8(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with its variant in 8 bits: the one at demo/minilm-all where it is, else exported."""
    made = ROOT / "demo/minilm-all"
    if made.is_dir():
        return made
    return export_real(minilm, tmp_path_factory.mktemp("int8") / "minilm", precision="int8")


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder of random weights whose heads of 6 no cache in place takes."""
    folder = tmp_path_factory.mktemp("growing")
    settings = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    return export_generator(folder, settings, hidden_size=18, num_heads=3, max_positions=70)
