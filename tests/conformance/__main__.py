"""Runs ONNX's own node tests of Attention, RotaryEmbedding, RMSNormalization and TensorScatter.

    make conformance      # or: python -m tests.conformance [--write]

Against our PyTorch, our graphs in ONNX Runtime, and ONNX Runtime alone. Exit code 1 when fewer cases
pass than `report.REQUIRED`, or when onnx ships fewer than `cases.NUMBERS`. --write also writes
docs/conformance.md.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.conformance import cases, report

PAGE = Path(__file__).resolve().parents[2] / "docs/conformance.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md too")
    arguments = parser.parse_args()
    try:
        collected = cases.collect()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    progress = track(collected, "node tests", console=Console(stderr=True))
    results = [report.measure(case) for case in progress]
    Console(width=None if sys.stdout.isatty() else 140).print(report.table(results))
    for result in results:
        for column, error in result.errors.items():
            if error is not None:
                print(f"{result.case}, {column}: {error}")
    if arguments.write:
        PAGE.write_text(report.page(results), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    short = report.shortfalls(results)
    for line in short:
        print(line, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
