import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from isoformer.runtime import huge_pages

HUGE = 2 << 20
PLACES = 5


@pytest.fixture
def region() -> np.ndarray:
    """Memory of its own for five huge pages, which begins at one."""
    memory = mmap.mmap(-1, (PLACES + 1) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    skip = -array.ctypes.data % HUGE
    return array[skip : skip + PLACES * HUGE]


def span(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def resident() -> int:
    return int(Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]) * 1024


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel is asked to move, and a kernel that can."""
    calls: list[tuple[int, int]] = []

    class Library:
        def __init__(self, _name: None) -> None:
            def madvise(address: int, size: int, advice: int) -> int:
                assert advice == huge_pages.COLLAPSE
                calls.append((address, size))
                return 0 if len(calls) % 2 else -1  # every other part is refused

            self.madvise = madvise

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(huge_pages, "_size", lambda: HUGE)
    return calls


def test_only_parts_that_are_in_memory_are_moved(region: np.ndarray, asked: list[tuple[int, int]]) -> None:
    region[: 3 * HUGE] = 7
    region[3 * HUGE] = 7  # one small page of the fourth
    begin, end = span(region)
    assert huge_pages.collapse([(begin + 1, end)]) == HUGE  # the first does not begin within the span
    assert asked == [(begin + HUGE, HUGE), (begin + 2 * HUGE, HUGE)]


def test_what_is_moved_stays_the_same_and_takes_no_memory(region: np.ndarray) -> None:
    values = np.random.default_rng(3).integers(0, 256, 3 * HUGE).astype(np.uint8)
    region[: 3 * HUGE] = values
    before = resident()
    moved = huge_pages.collapse([span(region)])
    assert moved in {0, HUGE, 2 * HUGE, 3 * HUGE}  # 0 where the kernel is older or set otherwise
    assert resident() - before < HUGE // 2  # of the two parts that were never written, nothing
    assert np.array_equal(region[: 3 * HUGE], values)
    assert not region[3 * HUGE :].any()


def test_memory_that_is_gone_is_passed_over() -> None:
    memory = mmap.mmap(-1, 2 * HUGE)
    begin, end = span(np.frombuffer(memory, np.uint8))
    memory.close()
    assert huge_pages.collapse([(begin, end)]) == 0


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None], ids=["off", "another system"])
def test_nothing_is_asked_where_huge_pages_are_off(
    region: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", None)
    region[:] = 1
    assert huge_pages.collapse([span(region)]) == 0


def test_new_memory_is_what_was_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "anonymous", lambda: [(10, 50), (60, 70), (80, 95)])
    assert huge_pages.grown([(0, 12), (20, 30), (60, 70), (90, 100)]) == [(12, 20), (30, 50), (80, 90)]
    assert huge_pages.grown([]) == [(10, 50), (60, 70), (80, 95)]


def test_anonymous_memory_is_found(region: np.ndarray) -> None:
    begin, end = span(region)
    found = huge_pages.anonymous()
    assert any(low <= begin and end <= high for low, high in found)
    assert found == sorted(found)


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.anonymous() == []
