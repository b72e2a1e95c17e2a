"""The real checkpoint on the whole grid, its 512 positions among it: what `make demo` does."""

from pathlib import Path

import pytest

from isoformer.export import export
from isoformer.export.source import resolve
from isoformer.runtime import Session
from isoformer.runtime.verify import verify


@pytest.mark.slow
def test_minilm_on_the_whole_grid(minilm: Path, tmp_path: Path) -> None:
    found = resolve(str(minilm))
    package = export(found.model, found.signature, tmp_path / "minilm", task=found.task, files=found.files)
    assert {"none-5x512", "sample-5x512"} <= package.manifest["grid"].keys()
    report = verify(package, Session(package).run, "onnxruntime cpu", seed=3)
    assert report.passed, [failure.line() for failure in report.failures]
