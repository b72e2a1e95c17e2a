"""What several commands print with: consoles, progress bars, one table."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from isoformer.runtime.errors import IsoformerError

# Names and texts of packages are shown as they stand: what looks like markup in them is none.
out = Console(soft_wrap=False, markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


def export_half(name: str) -> ModuleType:
    """A module of isoformer.export, which only some commands need and which needs torch."""
    try:
        return importlib.import_module(f"isoformer.export.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "gguf"):
            raise IsoformerError(f"{error.name} is not installed: pip install 'isoformer[export]'") from None
        raise


def print_matrix(runtime: str, matrix: dict[str, dict[str, float]]) -> None:
    """mask × length: the largest error as a share of its bound; over 1 is a failure."""
    lengths = list(dict.fromkeys(length for cells in matrix.values() for length in cells))
    table = Table(title=f"{runtime}: largest error as a share of its bound", title_justify="left")
    table.add_column("mask \\ length")
    for length in lengths:
        table.add_column(length, justify="right", min_width=5)
    for mask, cells in matrix.items():
        shares = [cells.get(length) for length in lengths]
        table.add_row(mask, *(Text("") if s is None else _share(s) for s in shares))
    out.print(table)


def _share(share: float) -> Text:
    return Text(f"{share:.2f}") if share <= 1 else Text(f"{share:.2g}", style="red")


def counter(show: Callable[[str, int, int], None], stage: str, total: int) -> Callable[[str], None]:
    """A function that counts its calls on the bar of `stage`."""
    calls = count(1)
    return lambda _case: show(stage, min(next(calls), total), total)


@contextmanager
def progress() -> Iterator[Any]:
    """A function (stage, done, total) that draws a bar on standard error, where that is a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        stages: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total)
            bar.update(stages[stage], completed=done)

        yield show
