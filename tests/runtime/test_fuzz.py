"""A few inputs of every target, the same each time; `python -m tests.fuzz` tries as many as there is time for."""

import random
import shutil
from pathlib import Path

import pytest

from tests.fuzz import material
from tests.fuzz.guards import Watch, failure
from tests.fuzz.targets import TARGETS, PackageTarget

FEW = 8


@pytest.fixture(scope="module")
def made(embedder: Path, generator_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    shutil.copytree(embedder, folder / "embedder")
    shutil.copytree(generator_package, folder / "generator")
    material.checkpoints(folder)
    material.rows(folder)
    return folder


@pytest.fixture(scope="module")
def decoy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "decoy"
    folder.mkdir()
    (folder / "secret").write_bytes(bytes(100))
    return folder


@pytest.fixture(scope="module")
def watch(decoy: Path) -> Watch:
    return Watch([decoy])


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_one_line(name: str, made: Path, decoy: Path, watch: Watch) -> None:
    target = TARGETS[name](made, decoy.parent / name, decoy)
    for seed in range(FEW):
        target.put(target.make(random.Random(seed)))  # noqa: S311
        assert failure(target.run, watch, decoy.parent / name, made) is None, f"{name}, seed {seed}"
        if isinstance(target, PackageTarget):
            target.restore()


def test_what_is_opened_outside_is_seen(decoy: Path, tmp_path: Path, watch: Watch) -> None:
    def outside() -> None:
        (decoy / "secret").read_bytes()

    assert failure(outside, watch, tmp_path)
    assert failure(lambda: None, watch, tmp_path) is None


def test_other_errors_are_seen(tmp_path: Path) -> None:
    assert "ZeroDivisionError" in str(failure(lambda: print(1 / 0), None, tmp_path))
