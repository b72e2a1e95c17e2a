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


def failure(run: Callable[[], None], watch: Watch | None, *folders: Path) -> str | None:
    """What is wrong with the way `run` ends, None where it returns or raises one line for people.

    folders: it may open files below them.
    """
    if watch is None:
        return _trouble(run)
    with watch.over(*folders) as opened:
        found = _trouble(run)
    return f"opened {opened[0]}" if opened else found


def _trouble(run: Callable[[], None]) -> str | None:
    try:
        run()
    except EXPECTED as error:
        text = str(error)
        if "\n" in text or not text or len(text) > LONGEST:
            return f"the error is not one line: {text[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    return None
