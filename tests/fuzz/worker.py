"""Tries inputs one after the other until it is stopped: python -m tests.fuzz.worker TARGET MATERIAL FOLDER SEED STEP.

Which seed it is at stands in FOLDER/at, so that the one who started it knows what a crash or a hang was about; what
goes wrong otherwise is noted in FOLDER/failures.
"""

import json
import mmap
import random
import struct
import sys
import time
from pathlib import Path

from tests.fuzz.guards import Watch, failure, limit_memory
from tests.fuzz.targets import TARGETS, PackageTarget

MEMORY = 3 * 2**30  # bytes more than the libraries and the good input take
PLACE = struct.Struct("<qdqd")  # seed, when it began (0 while between), inputs tried, when that was


def main() -> None:
    name, material, folder, seed, step = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:6])
    decoy = folder / "decoy"
    decoy.mkdir(parents=True, exist_ok=True)
    (decoy / "secret").write_bytes(bytes(2**16))
    with (folder / "at").open("r+b") as file:
        at = mmap.mmap(file.fileno(), PLACE.size)
    target = TARGETS[name](material, folder / "input", decoy)
    warm()
    limit_memory(MEMORY)
    watch = Watch([decoy])
    tried = 0
    while True:
        found = target.make(random.Random(seed))  # noqa: S311
        target.put(found)
        at[:] = PLACE.pack(seed, time.monotonic(), tried, 0)
        wrong = failure(target.run, watch, folder / "input")
        tried += 1
        at[:] = PLACE.pack(seed, 0, tried, time.monotonic())
        if wrong is not None:
            with (folder / "failures").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, "wrong": wrong}) + "\n")
        if isinstance(target, PackageTarget):
            target.restore()
        seed += step


def warm() -> None:
    """Imports what the first input would, before files are watched."""
    import gguf  # noqa: F401
    import pyarrow.parquet  # noqa: F401


if __name__ == "__main__":
    main()
