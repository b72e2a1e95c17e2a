"""isoformer batch: how fast beside a loop over Session.run, how much memory, and what twenty kills do to it.

    python -m benchmarks.batch PACKAGE --turns 3 --rows 8000            # a ratio of rates, turn by turn
    python -m benchmarks.batch PACKAGE --kills 20 --rows 100000         # memory, and equal rows after the kills

Prints one JSON object a line. The loop reads the same JSON lines, tokenises, sorts all texts by length and runs
batches of 32; its vectors stay in memory, and it writes nothing. Each side is a process of its own, and they take
turns. Kills are SIGKILL at random moments; a kill counts when the process was still at work.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.turns import ROOT, take_turns
from isoformer.runtime import Session
from isoformer.runtime.batch import Job, run
from isoformer.runtime.tasks import embed

SYLLABLES = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]
WARM = 0.1  # of the output is there: memory from then on is compared


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--words", type=int, default=9, help="of a text, at most")
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("loop", "batch"), help="be one side (internal)")
    arguments = parser.parse_args()
    if arguments.engine:
        work(arguments.engine, arguments.package)
        return
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "texts.jsonl"
        write_texts(source, arguments.rows, arguments.words, arguments.seed)
        if arguments.turns:
            compare(arguments.package, source, arguments.turns)
        if arguments.kills:
            kill(arguments.package, source, arguments.kills, arguments.seed)


def write_texts(path: Path, rows: int, most: int, seed: int) -> None:
    """Rows of an id and 2 to `most` made-up words."""
    draw = random.Random(seed)  # noqa: S311
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(
                json.dumps({"id": number, "text": " ".join(draw.choices(words, k=draw.randint(2, most)))}) + "\n"
            )


def compare(package: Path, source: Path, turns: int) -> None:
    base = [sys.executable, "-m", "benchmarks.batch", str(package.absolute()), "--engine"]
    rates: dict[str, list[float]] = {"loop": [], "batch": []}
    for answer in take_turns({name: [*base, name] for name in rates}, [str(source)], turns):
        rates[answer["engine"]].append(answer["rows_per_s"])
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    row = {"measure": "throughput", "rows": sum(1 for _ in source.open()), "turns": turns, **medians}
    ratios = [b / a for a, b in zip(rates["loop"], rates["batch"], strict=True)]
    print(json.dumps(row | {"ratios": [round(r, 3) for r in ratios], "ratio": round(float(np.median(ratios)), 3)}))


def work(engine: str, package: Path) -> None:
    """One side: reads names of files, answers with rates. The loop's session stays open, that of batch does not."""
    session = Session.fastest(package) if engine == "loop" else None
    for line in sys.stdin:
        source = Path(line.strip())
        start = time.perf_counter()
        if session is not None:
            with source.open(encoding="utf-8") as file:
                texts = [json.loads(row)["text"] for row in file]
            rows = len(embed.embeddings(session, texts))
        else:
            rows = run(Job(package, source, source.with_name("out.jsonl")), force=True).rows
        print(json.dumps({"engine": engine, "rows_per_s": rows / (time.perf_counter() - start)}), flush=True)


def kill(package: Path, source: Path, kills: int, seed: int) -> None:
    whole, killed = source.with_name("whole.jsonl"), source.with_name("killed.jsonl")
    start = time.perf_counter()
    sizes = watch(command(package, source, whole), whole)
    seconds = time.perf_counter() - start
    rows = sum(1 for _ in whole.open("rb"))
    warm = [size for share, size in sizes if share >= WARM]
    memory = {"warm_mb": warm[0], "least_mb": min(warm), "most_mb": max(warm), "last_mb": warm[-1]}
    print(json.dumps({"measure": "memory", "rows": rows, "seconds": round(seconds, 1), **memory}), flush=True)
    draw, done, runs = random.Random(seed), 0, 0  # noqa: S311
    while not killed.exists():
        process, runs = start_process(command(package, source, killed)), runs + 1
        try:
            process.wait(draw.uniform(0.5, 1.2 * seconds / kills) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    same = digest(whole) == digest(killed)
    left = [entry.name for entry in source.parent.glob(".*")]
    print(json.dumps({"measure": "kills", "rows": rows, "kills": done, "runs": runs, "equal": same, "left": left}))
    if not same or left or done < kills:
        sys.exit(1)


def command(package: Path, source: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "isoformer.runtime.cli", "batch", str(package), str(source), str(output)]


def start_process(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)  # noqa: S603


def watch(command: list[str], output: Path) -> list[tuple[float, float]]:
    """(share of the parts' bytes, resident MB) of the process, twice a second."""
    process, samples = start_process(command), []
    folder = output.with_name(f".{output.name}.partial")
    while process.poll() is None:
        done = sum(file.stat().st_size for file in sorted(folder.glob("part-*.jsonl"))) if folder.is_dir() else 0
        samples.append((done, resident_mb(process.pid)))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return [(done / max(1, output.stat().st_size), size) for done, size in samples if size]


def resident_mb(pid: int) -> float:
    """The resident size of a process in MB (10^6 bytes), 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
