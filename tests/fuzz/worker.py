"""Tries inputs one after the other until it is stopped.

Which seed it is at stands in FOLDER/at, so that the one who started it knows what a crash or a hang was about; what
goes wrong otherwise is noted in FOLDER/failures.
"""

import json
import mmap
import os
import random
import struct
import time
from pathlib import Path

from tests.fuzz.guards import Watch, failure, limit_memory
from tests.fuzz.targets import TARGETS, PackageTarget

MEMORY = 3 * 2**30  # bytes more than the libraries and the good input take
PLACE = struct.Struct("<qdq")  # seed, when its run began (0 between runs), inputs tried


def work(name: str, material: Path, folder: Path, seed: int) -> None:
    """Never returns. folder: for the input, the notes and what is written to standard output and error."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(said, stream)
    decoy = folder / "decoy"
    decoy.mkdir(parents=True, exist_ok=True)
    (decoy / "secret").write_bytes(bytes(2**16))
    with (folder / "at").open("r+b") as file:
        at = mmap.mmap(file.fileno(), PLACE.size)
    target = TARGETS[name](material, folder / "input", decoy)
    limit_memory(MEMORY)
    watch, tried = Watch([decoy]), 0
    while True:
        target.put(target.make(random.Random(seed)))  # noqa: S311
        at[:] = PLACE.pack(seed, time.monotonic(), tried)
        wrong = failure(target.run, watch, folder / "input", material, most_memory=target.most_memory)
        tried += 1
        at[:] = PLACE.pack(seed, 0, tried)
        if wrong is not None:
            with (folder / "failures").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, "wrong": wrong}) + "\n")
        if isinstance(target, PackageTarget):
            target.restore()
        seed += 1
