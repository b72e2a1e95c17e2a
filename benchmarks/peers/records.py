"""The results as they are kept: JSON lines, of which the first says on what machine and with which versions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import inputs, measures
from benchmarks.peers.engines import Engine
from benchmarks.peers.inputs import Shape

Row = dict[str, Any]


def measurement(engine: Engine, shape: Shape, turns: Sequence[Row], anchor: Sequence[Row]) -> Row:
    """The row of an engine at a shape: its turns, those of the anchor beside it, and what follows from them."""
    batch, length, real = shape
    own, other = ([round(turn["ms"], 4) for turn in found] for found in (turns, anchor))
    first, median, third = measures.quartiles(own)
    ratio = measures.ratios(other, own)
    exact = np.array(anchor[0]["answer"])
    difference = max(float(np.abs(np.array(turn["answer"]) - exact).max()) for turn in turns)
    row = {"engine": engine.name, "shape": inputs.name(shape), "batch": batch, "length": length, "real_tokens": real}
    row |= {"median_ms": round(median, 3), "quartiles_ms": [round(first, 3), round(third, 3)]}
    row |= {"times_faster_than_anchor": round(ratio[1], 3), "ratio_quartiles": [round(ratio[0], 3), round(ratio[2], 3)]}
    row |= {"least_ms": round(min(turn["least_ms"] for turn in turns), 3)}
    row |= {"waited": round(float(np.median([turn["waited"] for turn in turns])), 4)}
    row |= {"largest_difference": float(f"{difference:.3g}"), "peak_mb": round(max(turn["peak_mb"] for turn in turns))}
    return row | _described(engine) | {"turns_ms": own, "anchor_ms": other}


def accuracy_row(engine: Engine, reference: np.ndarray, found: np.ndarray) -> Row:
    """The row of an engine's embeddings of the sentences."""
    return {"accuracy": engine.name, "sentences": len(found)} | measures.accuracy(reference, found) | _described(engine)


def _described(engine: Engine) -> Row:
    return {"label": engine.label, "linear": engine.linear, "attention": engine.attention, "ours": engine.ours}


@dataclass
class Results:
    """head: machine, versions, date, roofline; measurements by (engine, shape); the others by engine."""

    head: Row
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    accuracies: dict[str, Row] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, here: Mapping[str, Any] | None = None) -> "Results":
        """The file's; empty ones where it is not there, or (here: machine and versions) is of other ones."""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        if here is None and not lines:
            raise SystemExit(f"{path} has no results; measure first")
        if not lines or (here and not _same(lines[0], here)):
            return cls(dict(here or {}))
        results = cls(lines[0] | dict(here or {}))
        for row in lines[1:]:
            results.put(row)
        return results

    def put(self, row: Row) -> None:
        """Takes a line in, in place of an older one of the same engine and shape."""
        if "accuracy" in row:
            self.accuracies[row["accuracy"]] = row
        elif "failed" in row:
            self.failures[row["failed"]] = row["why"]
        else:
            self.rows[row["engine"], row["shape"]] = row

    def note_failures(self, failed: Mapping[str, str], tried: Sequence[str]) -> None:
        """Engines that were tried: those that failed, and that the others did not."""
        self.failures = {name: why for name, why in self.failures.items() if name not in tried} | dict(failed)

    def has(self, engine: str, shape: Shape, turns: int) -> bool:
        row = self.rows.get((engine, inputs.name(shape)))
        return row is not None and len(row["turns_ms"]) >= turns

    def has_accuracy(self, engine: str) -> bool:
        return engine in self.accuracies

    def share(self, row: Row) -> float:
        """The least time that the machine allows for a measurement's real tokens, as a share of what it took."""
        shape = (row["batch"], row["length"], row["real_tokens"])
        floor = measures.floor_ms(inputs.row_lengths(shape), row["linear"], row["attention"], self.head["roofline"])
        return floor / row["median_ms"]

    def write(self, path: Path) -> None:
        """Beside, then renamed."""
        order = {inputs.name(shape): number for number, shape in enumerate(inputs.ALL)}
        rows = sorted(self.rows.values(), key=lambda row: order[row["shape"]])
        shown = [row | {"share_of_roofline": round(self.share(row), 4)} for row in rows]
        failed = [{"failed": name, "why": why} for name, why in self.failures.items()]
        text = "".join(json.dumps(line) + "\n" for line in (self.head, *failed, *self.accuracies.values(), *shown))
        beside = path.with_suffix(".partial")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


def _same(head: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether results of the one may stand beside results of the other: machine, and versions where both have them."""
    if head.get("machine") != here.get("machine"):
        return False
    kept, found = head.get("versions", {}), here.get("versions", {})
    return all(
        kept[name].get(package) == version
        for name, packages in found.items()
        if name in kept
        for package, version in packages.items()
        if package in kept[name]
    )
