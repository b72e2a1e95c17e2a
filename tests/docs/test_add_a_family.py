"""docs/add-a-family.md: the file on the page is a family, and passes what every family must."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoformer.export.errors import ExportError
from isoformer.models import families, registry
from isoformer.runtime import Session, load
from isoformer.runtime.verify import verify
from tests.models import test_registry as promises
from tests.parity import test_families as parity

PAGE = (Path(__file__).resolve().parents[2] / "docs/add-a-family.md").read_text(encoding="utf-8")
NAME = "toy"
COMMAND = """
import sys
from isoformer.models import families
families.__path__.append(sys.argv.pop(1))
from isoformer.runtime.cli import main
main()
"""


def code() -> str:
    """The file that the page shows."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that the registry looks into as well, with the page's file."""
    place = tmp_path / "families"
    place.mkdir()
    (place / f"{NAME}.py").write_text(code(), encoding="utf-8")
    families.__path__.append(str(place))
    try:
        yield place
    finally:
        families.__path__.remove(str(place))
        sys.modules.pop(f"{families.__name__}.{NAME}", None)
        if hasattr(families, NAME):
            delattr(families, NAME)


def test_the_registry_finds_it_and_it_keeps_the_promises(folder: Path):
    assert NAME in registry.names()
    promises.test_every_family_gives_what_the_registry_promises(NAME)
    promises.test_every_family_computes_what_its_signature_says(NAME)
    assert registry.load(NAME).__file__ == str(folder / f"{NAME}.py")


def slow(opset: int):
    return pytest.param(opset, marks=pytest.mark.slow)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("opset", [slow(20), 23, slow(25)])
def test_it_is_exported_and_verified(tmp_path: Path, opset: int):
    package = parity.exported(NAME, opset, tmp_path / "package")
    parity.test_export_measures_every_mask_in_both_runtimes(package)
    parity.test_verify_passes_and_counts_what_it_compared(package)
    parity.test_sizes_that_no_sample_had(package)


def spoil(folder: Path, right: str, wrong: str) -> None:
    """Writes the page's file with one place changed."""
    assert code().count(right) == 1
    spoiled = code().replace(right, wrong).replace("from torch import", "import torch\nfrom torch import")
    (folder / f"{NAME}.py").write_text(spoiled, encoding="utf-8")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("masks.padding(attention_mask) & near", "near"),
        ("positions.count_real(attention_mask)", "torch.arange(length).expand(batch, -1)"),
    ],
    ids=["padding is seen", "columns are counted"],
)
def test_the_checks_see_what_the_page_warns_of(folder: Path, tmp_path: Path, right: str, wrong: str):
    """With one of its rules broken it is a graph like any other, but the relations between its answers fail."""
    spoil(folder, right, wrong)
    ((package, _, _),) = parity.exported(NAME, 23, tmp_path / "package")
    report = verify(package, Session(package).run, "onnxruntime cpu", seed=3)
    assert {failure.check for failure in report.failures} == {"relation"}


def test_a_size_that_is_baked_in_is_refused(folder: Path, tmp_path: Path):
    spoil(folder, "self.head(x)}", "self.head(x) + torch.ones(1, 7, 1)}")
    with pytest.raises(ExportError):
        parity.exported(NAME, 23, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_the_command_of_the_page(folder: Path, tmp_path: Path):
    command = "isoformer export -m toy demo/toy"
    assert command in PAGE
    arguments = [*command.split()[1:], "-o", "num_layers=2"]
    found = subprocess.run(
        [sys.executable, "-c", COMMAND, str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    package = load(tmp_path / "demo/toy")
    assert package.manifest["family"] == NAME
    assert json.loads(json.dumps(package.manifest["config"]))["num_layers"] == 2
