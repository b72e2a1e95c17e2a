"""A few inputs of every target, the same each time; `python -m tests.fuzz` tries as many as there is time for."""

import mmap
import random
import shutil
from pathlib import Path

import pytest

from isoformer.runtime import PackageError
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
        assert failure(target.run, watch, decoy.parent / name, made, most_memory=target.most_memory) is None, (
            f"{name}, seed {seed}"
        )
        if isinstance(target, PackageTarget):
            target.restore()


def test_what_is_opened_outside_is_seen(decoy: Path, tmp_path: Path, watch: Watch) -> None:
    def outside() -> None:
        (decoy / "secret").read_bytes()

    assert failure(outside, watch, tmp_path)
    assert failure(lambda: None, watch, tmp_path) is None


@pytest.mark.parametrize("hidden", [True, False])
def test_memory_that_is_not_there_is_seen_behind_an_error_of_one_line(tmp_path: Path, hidden: bool) -> None:
    def run() -> None:
        try:
            bytearray(2**60)
        except MemoryError as error:
            try:
                raise ValueError("between") from (None if hidden else error)
            except ValueError:
                raise PackageError("it does not fit") from None

    assert "out of memory, told as 'it does not fit'" in str(failure(run, None, tmp_path))
    assert failure(run, None, tmp_path, most_memory=None) is None


def test_memory_that_is_given_back_is_seen(tmp_path: Path) -> None:
    def run() -> None:  # from the system itself: a heap may hold as much free memory from the tests before
        with mmap.mmap(-1, 48 * 2**20) as memory:
            memory.write(b"x" * len(memory))

    for _ in range(2):  # the peak of the first does not hide that of the second
        assert "bytes of memory" in str(failure(run, None, tmp_path, most_memory=2**25))
    assert failure(run, None, tmp_path, most_memory=2**28) is None


def test_other_errors_are_seen(tmp_path: Path) -> None:
    assert "ZeroDivisionError" in str(failure(lambda: print(1 / 0), None, tmp_path))
