"""A package of its canonical graph alone, which is what the runners' own tests count in."""

import json
import shutil
from pathlib import Path

import pytest

from isoformer.runtime.package import MANIFEST


@pytest.fixture(scope="module")
def tiny_package(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("canonical") / "tiny"))
    manifest = json.loads((copied / MANIFEST).read_text(encoding="utf-8"))
    (copied / MANIFEST).write_text(json.dumps(manifest | {"variants": {}}), encoding="utf-8")
    return copied
