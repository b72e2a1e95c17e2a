"""What a run on one input must not do: open files outside its folder, take much memory, fail in another way."""

import ctypes
import os
import resource
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from isoformer.export.errors import ExportError
from isoformer.models.checkpoints import CheckpointError
from isoformer.runtime.errors import IsoformerError

EXPECTED = (IsoformerError, CheckpointError, ExportError)
MEMORY = 2**30  # bytes by which an input may make the process grow
LONGEST = 4000  # characters of an error's line
IN_ACCESS, IN_OPEN, IN_NONBLOCK = 1, 32, 0o4000


def limit_memory(more: int) -> None:
    """Lets this process's memory grow by so many bytes from here on; what asks for more gets none."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Watch:
    """Tells of files that Python opens outside the allowed folders, and of any opening of what lies below `decoys`.

    The second is told by the kernel (inotify), so libraries in other languages are seen as well.
    """

    def __init__(self, decoys: list[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(IN_NONBLOCK)
        for path in decoys:
            if self._libc.inotify_add_watch(self._inotify, os.fsencode(path), IN_ACCESS | IN_OPEN) < 0:
                raise OSError(ctypes.get_errno(), f"{path} cannot be watched")
        self._inside: tuple[str, ...] | None = None
        self._seen: list[str] = []
        libraries = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])}
        self._libraries = (*libraries, "/proc/", "/sys/", "/dev/", "/etc/localtime", "/usr/share/zoneinfo", "/usr/lib")
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self._inside is not None and event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]).split("\0")[0])
            if not path.startswith((*self._inside, *self._libraries)):
                self._seen.append(path)

    @contextmanager
    def over(self, *folders: Path) -> Iterator[list[str]]:
        """The list that is filled with what is opened outside the folders during the block."""
        self._seen = []
        self._inside = tuple(str(folder.resolve()) for folder in folders)
        try:
            yield self._seen
        finally:
            self._inside = None
            try:
                if os.read(self._inotify, 2**16):
                    self._seen.append("a decoy")
            except BlockingIOError:
                pass


def failure(
    run: Callable[[], None], watch: Watch | None, *folders: Path, most_memory: int | None = MEMORY
) -> str | None:
    """What is wrong with the way `run` ends, None where it returns or raises one line for people.

    folders: it may open files below them. most_memory: bytes that it may take, also if it gives them back; None for
    a graph that is run, whose memory is its own affair.
    """
    if watch is None:
        return _within(run, most_memory)
    with watch.over(*folders) as opened:
        found = _within(run, most_memory)
    return f"opened {opened[0]}" if opened else found


def _within(run: Callable[[], None], most: int | None) -> str | None:
    """As `_trouble`, and what `run` takes at its peak if that is more than the most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on: proc(5)
    before = _kilobytes("VmRSS")
    found = _trouble(run, out_of_memory=most is not None)
    taken = (_kilobytes("VmHWM") - before) * 1024
    return f"took {taken:,} bytes of memory" if found is None and most is not None and taken > most else found


def _kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split(f"{name}:")[1].split()[0])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it, also where it was raised `from None`."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _trouble(run: Callable[[], None], *, out_of_memory: bool) -> str | None:
    """out_of_memory: whether that is a failure too where it was turned into one line."""
    try:
        run()
    except EXPECTED as error:
        text = str(error)
        for behind in _chain(error) if out_of_memory else ():
            if isinstance(behind, MemoryError):
                return (
                    f"out of memory, told as {text[:200]!r}\n{''.join(traceback.format_tb(behind.__traceback__)[-4:])}"
                )
        if "\n" in text or not text or len(text) > LONGEST:
            return f"the error is not one line: {text[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    return None
