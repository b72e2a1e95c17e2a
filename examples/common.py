"""What the training examples share: progress, checkpoints, pictures, the export, and predictions side by side."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import nn

from isoformer.export import export
from isoformer.models.signature import Signature
from isoformer.runtime.package import Package


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread: faster for matrices this small, and the same result on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bar(console: Console) -> Progress:
    """A line with what is done, a bar and times, where the console is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a training's state beside `path` and renames it, so that a whole one always stands there."""
    partial = path.with_name(f".{path.name}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, made_with: str) -> dict[str, Any]:
    """What `save_state` wrote, tensors and plain data alone.

    Raises ValueError, one line, when there is none, it is not whole, or its "made_with" is another.
    """
    try:
        state = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: start without --resume") from None
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole checkpoint ({type(error).__name__}): start without --resume") from None
    if not isinstance(state, dict) or state.get("made_with") != made_with:
        raise ValueError(f"{path} is of other settings or other data: start without --resume")
    return state


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path, *, xlabel: str, ylabel: str) -> None:
    """Each curve over 1, 2, 3 …, as a PNG."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, values in curves.items():
        marker = "o" if len(values) == 1 else None  # one point makes no line
        axes.plot(range(1, len(values) + 1), values, marker=marker, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(bottom=min([0.0, *(value for values in curves.values() for value in values)]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def export_package(
    model: nn.Module,
    signature: Signature | dict[str, Signature],
    path: Path,
    console: Console,
    *,
    task: dict[str, Any] | None,
    provenance: dict[str, Any],
    files: Sequence[Any] = (),
) -> Package:
    """`isoformer.export.export` with its progress shown; a package that stands at `path` is replaced.

    Raises ExportError.
    """
    with progress_bar(console) as bar:
        lines: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                lines[stage] = bar.add_task(stage, total=total)
            bar.update(lines[stage], completed=done)

        return export(
            model,
            signature,
            path,
            task=task,
            files=files,
            provenance=provenance,
            force=True,
            progress=show,
        )


def side_by_side(
    metrics: Mapping[str, tuple[str, str]], in_torch: np.ndarray, in_onnx_runtime: np.ndarray, what: str
) -> Table:
    """A table of each metric from PyTorch and from ONNX Runtime, and how many of the predictions are the same.

    metrics: name → both values as they are to be read; predictions: one row an item. what: names the items.
    """
    same = (in_torch == in_onnx_runtime).reshape(len(in_torch), -1).all(1)
    table = Table(title=f"{what}, {len(in_torch)} items", title_justify="left")
    table.add_column("")
    for heading in ("PyTorch", "ONNX Runtime"):
        table.add_column(heading, justify="right")
    for name, (ours, theirs) in metrics.items():
        table.add_row(name, ours, theirs)
    table.add_row("same prediction", "", f"{int(same.sum())} of {len(same)} ({same.mean():.2%})")
    if not same.all():
        places = np.flatnonzero(~same)
        table.add_row("different at", "", ", ".join(str(place) for place in places[:10]) + " …" * (len(places) > 10))
    return table
