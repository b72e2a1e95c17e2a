"""Weights in huge pages, where Linux has them: a step of a decoder reads all of them, and 4 KB pages cost it a tenth.

Moving them takes as long as some hundred tokens save, so `Decoder` asks for it once a session has decoded that many.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Span = tuple[int, int]  # addresses from … to
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1; an older kernel refuses it, and nothing changes


def anonymous() -> list[Span]:
    """The process's private memory that no file backs, in order; nothing but on Linux."""
    if not sys.platform.startswith("linux"):
        return []
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_, last = line.split()
        if rights == "rw-p" and (last == "0" or last == "[heap]"):  # the last of an unnamed one is its inode
            begin, end = (int(address, 16) for address in span.split("-"))
            found.append((begin, end))
    return found


def grown(before: list[Span]) -> list[Span]:
    """What of `anonymous` is new since then."""
    found = []
    for begin, end in anonymous():
        for old_begin, old_end in before:
            if old_end > begin and old_begin < end:
                if old_begin > begin:
                    found.append((begin, old_begin))
                begin = min(old_end, end)
        if begin < end:
            found.append((begin, end))
    return found


def collapse(spans: list[Span]) -> int:
    """Moves the full parts of the spans into huge pages; returns how many bytes are there now.

    What is there stays as it is. A part with a page that was never written stays too: moving it would take memory.
    Nothing is done where the administrator has turned huge pages off, or the kernel cannot.
    """
    size = _size()
    if not size:
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(size for begin in _full(spans, size) if advise(begin, size, COLLAPSE) == 0)


def _size() -> int:
    """Bytes of a huge page; 0 where they are not to be had."""
    try:
        if "[never]" in (SETTINGS / "enabled").read_text():
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):  # another system, a sandbox
        return 0


def _full(spans: list[Span], size: int) -> Iterator[int]:
    """Where within the spans a huge page could stand whose small pages are all in memory."""
    pages = size // mmap.PAGESIZE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            for begin, end in spans:
                for address in range(-(-begin // size) * size, end - size + 1, size):
                    file.seek(address // mmap.PAGESIZE * 8)
                    entries = np.frombuffer(file.read(pages * 8) or b"", np.uint64)
                    if len(entries) == pages and (entries >> np.uint64(63)).all():  # the bit for "present"
                        yield address
    except OSError:  # a sandbox without /proc
        return
