"""Markdown tables of what was measured."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def merged(rows: list[dict[str, Any]], cells: Callable[[dict[str, Any]], tuple]) -> list[tuple]:
    """(tool, opsets, dtypes, rows, cells), where rows of one tool with the same cells are taken together."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["tool"], row["dtype"], cells(row)), []).append(row)
    lines: dict[tuple, list[dict[str, Any]]] = {}
    for (tool, _, found), group in groups.items():
        opsets = ", ".join(str(row["opset"] or "") for row in group)
        lines.setdefault((tool, opsets, found), []).extend(group)
    return [
        (tool, opsets, ", ".join(dict.fromkeys(row["dtype"] for row in group)), group, found)
        for (tool, opsets, found), group in lines.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """What one runtime answers."""
    lines = ["| tool | opset | dtype | masked row | masked sample | extreme scores | largest error of other rows |"]
    lines.append("|---" * 7 + "|")
    found = merged(rows, lambda row: (row["row"] or "–", row["sample"], row["extreme"]))
    for tool, opsets, dtypes, group, cells in found:
        errors: dict[str, list[float]] = {}
        for row in group:
            errors.setdefault(row["dtype"], []).append(np.nan if row["largest_error"] is None else row["largest_error"])
        sizes = ", ".join(f"{np.max(of_dtype):.0e}" for of_dtype in errors.values())
        lines.append("| " + " | ".join((tool, opsets, dtypes, *cells, sizes)) + " |")
    return "\n".join(lines)


def release_table(rows: list[dict[str, Any]]) -> str:
    """The graphs that releases of ONNX Runtime answer differently, a column a release.

    (!) stands where extreme scores are answered wrongly.
    """
    answers: dict[tuple, dict[str, str]] = {}
    for row in rows:
        said = row["sample"] if row["row"] in (None, row["sample"]) else f"{row['row']}, {row['sample']}"
        note = "" if row["extreme"] in ("right", "error") else " (!)"
        key = (row["tool"], row["opset"], row["dtype"])
        answers.setdefault(key, {})[row["runtime"]] = said + note
    runtimes = sorted({row["runtime"] for row in rows}, key=lambda name: [int(n) for n in name.split()[-1].split(".")])
    keyed = [dict(zip(("tool", "opset", "dtype"), key, strict=True)) | found for key, found in answers.items()]
    differing = [row for row in keyed if len({row[name] for name in runtimes}) > 1]
    lines = ["| graph | opset | dtype | " + " | ".join(name.split()[-1] for name in runtimes) + " |"]
    lines.append("|---" * (3 + len(runtimes)) + "|")
    for tool, opsets, dtypes, _, cells in merged(differing, lambda row: tuple(row[name] for name in runtimes)):
        lines.append("| " + " | ".join((tool, opsets, dtypes, *cells)) + " |")
    return "\n".join(lines)


def print_tables(rows: list[dict[str, Any]]) -> None:
    """A table each of PyTorch, the installed ONNX Runtime and the reference evaluator, and one of all releases."""
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    releases = [name for name in runtimes if name.startswith("ONNX Runtime")]
    for runtime in runtimes:
        if runtime not in releases[1:]:
            print(f"\n{runtime}\n\n{table([row for row in rows if row['runtime'] == runtime])}", file=sys.stderr)
    if releases[1:]:
        print("\nGraphs that releases of ONNX Runtime answer differently\n", file=sys.stderr)
        print(release_table([row for row in rows if row["runtime"] in releases]), file=sys.stderr)
