"""What other tools answer for a query row without any key, beside isoformer.

    python -m benchmarks.masks [--releases 1.23.2,1.32.0] [--optimum] [--tools TEXT] [--out FILE.jsonl]

Every tool computes the same small attention three times (`problems`): with a mask that leaves one row
and one whole sample without keys, with key padding that leaves one sample without keys, and with
scores of 60000 on a masked key and -60000 on the others. JSON lines: machine and versions, then one
object a tool and dtype. The tables for people are Markdown, on standard error: the ones in
docs/masks.md. `--releases` also runs the graphs in other releases of ONNX Runtime and `--optimum`
exports BERT with optimum-onnx, in virtual environments that are made with pip and thrown away.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from benchmarks.latency import environment
from benchmarks.masks.run import install, measure_eager, measure_graphs, measure_reference, optimum_tools, write_graphs
from benchmarks.masks.tables import print_tables
from benchmarks.masks.tools import Tool, eager_tools, graph_tools


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--releases", type=numbers, default=[], help="of onnxruntime on PyPI, with commas")
    parser.add_argument("--optimum", action="store_true", help="also BERT as optimum-onnx exports it")
    parser.add_argument("--tools", default="", help="only those whose name holds this text")
    parser.add_argument("--out", type=Path, help="write the JSON lines here, not to standard output")
    arguments = parser.parse_args()
    rows = list(measure(arguments.tools, arguments.releases, arguments.optimum))
    if not rows:
        parser.error(f"no tool's name holds {arguments.tools!r}")
    first = environment()
    first["versions"] |= {name: version(name) for name in ("onnx", "onnxscript")}
    text = "".join(json.dumps(line) + "\n" for line in (first, *rows))
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    print_tables(rows)


def numbers(text: str) -> list[str]:
    """The releases in "1.23.2,1.32.0"."""
    found = text.split(",")
    wrong = [release for release in found if not re.fullmatch(r"\d+(\.\d+)+", release)]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no release such as 1.32.0")
    return found


def measure(text: str, releases: Sequence[str] = (), optimum: bool = False) -> Iterator[dict[str, Any]]:
    """One dict a runtime, tool, opset and dtype, of the tools whose name holds the text."""

    def rows(runtime: str, tools: list[Tool], results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for tool, result in zip(tools, results, strict=True):
            yield {"runtime": runtime, "tool": tool.name, "opset": tool.opset, "dtype": tool.dtype} | result

    eager = [tool for tool in eager_tools() if text in tool.name]
    yield from rows(f"PyTorch {torch.__version__}", eager, map(measure_eager, eager))
    graphs = [tool for tool in graph_tools() if text in tool.name]
    if not graphs:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs += optimum_tools(folder) if optimum else []
        failed = write_graphs(graphs, folder)
        pythons = {onnxruntime.__version__: sys.executable}
        pythons |= {release: install(folder / release, f"onnxruntime=={release}") for release in releases}
        for release, python in pythons.items():
            yield from rows(f"ONNX Runtime {release}", graphs, measure_graphs(graphs, failed, folder, python))
    standard_ones = [tool for tool in graphs if tool.name.startswith(("isoformer", "standard"))]
    yield from rows(
        f"reference evaluator of onnx {onnx.__version__}", standard_ones, map(measure_reference, standard_ones)
    )


if __name__ == "__main__":
    main()
