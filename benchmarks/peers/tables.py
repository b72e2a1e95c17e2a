"""What the report says in numbers: engines by class of precision, the best peer, and ratios beside it."""

from collections.abc import Sequence
from typing import Any

from benchmarks.latency import SHAPES
from benchmarks.peers import inputs, measures
from benchmarks.peers.records import Results, Row

MAIN = tuple(inputs.name(shape) for shape in SHAPES)
EXACT, LOWER = "float32", "lower precision"
CLASSES = (EXACT, LOWER)
OPTIMUM = ("optimum", "optimum-O1", "optimum-O2", "optimum-O3")
# Threads that waited for a processor for more than half of the time (all threads' waits added up): the time says more
# about what else ran on the machine than about the engine.
DISTURBED, MARK = 0.5, "†"
BEST_OPTIMUM = "Optimum, best graph"  # of its export and of O1 to O3


def group(row: Row) -> str:
    """The class of precision of a measurement or an accuracy."""
    return EXACT if row["linear"] == row["attention"] == "float32" else LOWER


def title(shape: str) -> str:
    """batch×length (real tokens)."""
    batch, length, real = shape.split("x")
    return f"{batch}×{length} ({real})"


def engines(results: Results, which: str) -> list[Row]:
    """One row of each engine of a class, ours first, in the order in which they were measured."""
    found: dict[str, Row] = {}
    for row in results.rows.values():
        if group(row) == which:
            found.setdefault(row["engine"], row)
    return sorted(found.values(), key=lambda row: not row["ours"])


def best_peer(results: Results, shape: str, which: str) -> Row | None:
    """The peer of a class that was the fastest at a shape, by its ratio to the anchor; None without any."""
    rows = [row for (_, at), row in results.rows.items() if at == shape and group(row) == which and not row["ours"]]
    return max(rows, key=lambda row: row["times_faster_than_anchor"], default=None)


def beside(own: Row, other: Row) -> list[float]:
    """How many times faster than the other, as quartiles: turn by turn where both took the same turns.

    Measured at different times, both are taken by their ratio to the anchor; then the quartiles are all the same.
    """
    if own["anchor_ms"] == other["anchor_ms"]:
        return measures.ratios(other["turns_ms"], own["turns_ms"])
    return [own["times_faster_than_anchor"] / other["times_faster_than_anchor"]] * 3


def beside_best(results: Results, own: Row) -> list[float] | None:
    """How many times faster than the best peer of its class, as quartiles; None without a peer."""
    peer = best_peer(results, own["shape"], group(own))
    return None if peer is None else beside(own, peer)


def speed(results: Results, engine: str, shapes: Sequence[str] = MAIN) -> float | None:
    """Geometric mean over the shapes of how many times faster than the anchor; None where one is missing."""
    rows = [results.rows.get((engine, shape)) for shape in shapes]
    if not all(rows):
        return None
    return measures.geometric_mean([row["times_faster_than_anchor"] for row in rows if row])


def over_best(results: Results, engine: str) -> float | None:
    """Geometric mean over the main shapes of the ratio to each one's best peer; None where one is missing."""
    rows = [results.rows.get((engine, shape)) for shape in MAIN]
    found = [beside_best(results, row) for row in rows if row]
    if len(found) < len(MAIN) or not all(found):
        return None
    return measures.geometric_mean([ratio[1] for ratio in found if ratio])


def rows_of(results: Results, which: str) -> dict[str, list[str]]:
    """A class's engines by label; Optimum's graphs in float32 as one, of which the fastest counts at each shape."""
    found: dict[str, list[str]] = {}
    for row in engines(results, which):
        label = BEST_OPTIMUM if row["engine"] in OPTIMUM else row["label"]
        found.setdefault(label, []).append(row["engine"])
    return found


def quickest(results: Results, names: Sequence[str], shape: str) -> Row | None:
    """The engine's row at a shape that was the fastest, by its ratio to the anchor; None where there is none."""
    rows = [results.rows[name, shape] for name in names if (name, shape) in results.rows]
    return max(rows, key=lambda row: row["times_faster_than_anchor"], default=None)


def markdown(results: Results) -> str:
    """The main shapes as a table for a README: medians in milliseconds, and of ours the ratio to the best peer."""
    lines = []
    for which in CLASSES:
        head = [which, *map(title, MAIN)]
        lines += [_line(head), _line(["---"] * len(head))]
        for label, names in rows_of(results, which).items():
            lines.append(_line([label, *(_cell(results, names, shape) for shape in MAIN)]))
        lines.append("")
    return "\n".join(lines)


def disturbed(row: Row) -> bool:
    """Whether other work on the machine had too much of a share in the time."""
    return row["waited"] > DISTURBED


def milliseconds(row: Row) -> str:
    """The median, marked where it was disturbed."""
    return number(row["median_ms"]) + (MARK if disturbed(row) else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(results: Results, names: Sequence[str], shape: str) -> str:
    row = quickest(results, names, shape)
    if row is None:
        return "–"
    ratio = beside_best(results, row) if row["ours"] else None
    return milliseconds(row) + (f" ({ratio[1]:.2f})" if ratio else "")


def number(value: Any) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
