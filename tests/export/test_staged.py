"""Folders that are being filled: what becomes of those that a killed process leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isoformer.export.package import LOCK, staged

KILLED = """
import os, signal, sys
from pathlib import Path
from isoformer.export.package import staged

with staged(Path(sys.argv[1]), force=False) as folder:
    (folder / "half").write_text("a half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    out = tmp_path / "o[u]t"  # no pattern
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*/*/half")
    with staged(out, force=False) as folder:
        assert not left.exists()
        (folder / "isoformer.json").write_text("{}")
    assert entries(tmp_path) == ["o[u]t"]
    assert entries(out) == ["isoformer.json"]


def test_what_is_not_left_by_a_kill_stays(tmp_path: Path) -> None:
    strangers = [".out.partial-mine", ".other.partial-1", ".out.old-1", "out.partial-1"]
    for name in strangers:
        (tmp_path / name).mkdir()
        if name != ".out.partial-mine":
            (tmp_path / name / LOCK).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK).touch()
    (tmp_path / ".out.partial-link").symlink_to(tmp_path / "elsewhere")
    with staged(tmp_path / "out", force=False) as first, staged(tmp_path / "out", force=False) as second:
        assert first.is_dir()  # whose process is this one
        assert second.is_dir()
    assert entries(tmp_path) == sorted([*strangers, "elsewhere", ".out.partial-link", "out"])
    assert entries(tmp_path / "elsewhere") == [LOCK]


def test_a_folder_has_the_usual_permissions_and_no_lock(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with staged(tmp_path / "out", force=False):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert entries(tmp_path / "out") == []
    with pytest.raises(KeyError), staged(tmp_path / "other", force=False):
        raise KeyError
    assert entries(tmp_path) == ["out", "usual"]
