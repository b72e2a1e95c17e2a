"""What stands beside OUT until it is done: `.OUT.partial/` with the job, its journal and its finished parts.

A part is written beside and renamed, then its line is added to the journal, each on the disk before the next. So a
kill at any moment leaves whole parts that the journal names, perhaps a part that it does not (it is made again, and
is the same), perhaps half a line at its end (it is cut off).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoformer.runtime.batch.rows import Place
from isoformer.runtime.errors import InputError, IsoformerError

JOB, JOURNAL, LOCK = "job.json", "journal.jsonl", "lock"


@dataclass(frozen=True)
class Part:
    """A line of the journal. good, bad: its rows; columns: of its good rows, in order."""

    number: int
    start: Place
    end: Place
    good: int
    bad: int
    columns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Part":
        places = {name: Place(*data[name]) for name in ("start", "end")}
        return cls(**{**data, **places, "columns": tuple(data["columns"])})


class Folder:
    """The folder of the job that writes `output`; `parts` are those that its journal has."""

    def __init__(self, output: Path) -> None:
        self.path = output.absolute().with_name(f".{output.name}.partial")
        self.parts: dict[int, Part] = {}
        self.whole = False  # all parts are there

    def part(self, number: int, suffix: str) -> Path:
        return self.path / f"part-{number:06d}.{suffix}"

    def job(self) -> dict[str, Any] | None:
        """What the job was, None where there is none that had begun."""
        try:
            return json.loads((self.path / JOB).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / JOB} cannot be read: {error}; remove the folder to begin anew") from None

    def begin(self, job: dict[str, Any]) -> None:
        """Writes the job down, in place of whatever was there."""
        for file in self.path.iterdir():
            if file.name != LOCK:
                file.unlink()
        self.parts, self.whole = {}, False
        write_whole(self.path / JOB, json.dumps(job, ensure_ascii=False, indent=1).encode() + b"\n")

    def read_journal(self) -> None:
        """Fills `parts`; half a line at the journal's end is cut off."""
        file = self.path / JOURNAL
        content = file.read_bytes() if file.exists() else b""
        lines = content[: content.rfind(b"\n") + 1]
        if len(lines) != len(content):
            os.truncate(file, len(lines))
        try:
            for data in map(json.loads, lines.splitlines()):
                if data == "whole":
                    self.whole = True
                else:
                    part = Part.read(data)
                    self.parts[part.number] = part
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file} cannot be read: {error!r}; remove the folder to begin anew") from None

    def add(self, part: Part) -> None:
        """Notes a part whose files are on the disk."""
        self._append(json.dumps(part.to_dict()) + "\n")
        self.parts[part.number] = part

    def finish(self) -> None:
        """Notes that all parts are there."""
        self._append(json.dumps("whole") + "\n")
        self.whole = True

    def _append(self, line: str) -> None:
        with (self.path / JOURNAL).open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The folder is no longer needed. It goes in one step; what a kill leaves after that is no job any more."""
        self.path.rename(self._done)
        shutil.rmtree(self._done)

    @property
    def _done(self) -> Path:
        return self.path.with_name(f"{self.path.name}-done")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes out of it; a lock ends with its process.

        Raises InputError when another has it. Windows has no such lock, and none is taken there.
        """
        self.path.mkdir(exist_ok=True)
        with (self.path / LOCK).open("w") as file:
            _lock(file, self.path)
            try:
                shutil.rmtree(self._done, ignore_errors=True)
                yield
            finally:
                if self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= {LOCK}:
                    shutil.rmtree(self.path, ignore_errors=True)  # nothing had begun


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise IsoformerError(f"another process works in {path}; wait for it") from None


def write_whole(path: Path, content: bytes | Iterator[bytes]) -> None:
    """The bytes, or the pieces one after the other, at `path`, whole or not at all, and on the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
