"""What the training examples share: the command line, progress, pictures, the export, and tables of what came out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
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
from isoformer.export.errors import ExportError
from isoformer.export.package import refuse_taken
from isoformer.export.source import recorded
from isoformer.runtime.package import Package

CHECKPOINT = "checkpoint.pt"

Target = Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")]
Minutes = Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the epoch or round.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")]


@contextmanager
def program(package: Path, unit: str = "epoch") -> Iterator[tuple[Console, Console, Path]]:
    """(what is said, what is said of the progress, the folder of the training, which stands beside the package).

    What goes wrong by a mistake, as a folder at `package` that is none, or by Ctrl-C ends the program with one line.
    """
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    try:
        refuse_taken(package, force=True)
        yield out, err, folder
    except (ExportError, OSError, ValueError) as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(f"stopped; --resume goes on from the last whole {unit} ({folder / CHECKPOINT})", soft_wrap=True)
        raise typer.Exit(130) from None


def progress_bar(console: Console) -> Progress:
    """A line with what is done, a bar and times, where the console is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


def new_figure(width: float, height: float, dpi: int = 120) -> Figure:
    """A figure of inches that `savefig` writes as a PNG."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path, *, xlabel: str, ylabel: str) -> None:
    """Each curve over 1, 2, 3 …, as a PNG."""
    figure = new_figure(7, 4)
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
    family: ModuleType,
    model: nn.Module,
    path: Path,
    console: Console,
    *,
    example: str,
    weights: str,
    data: str,
    files: Sequence[Any] = (),
) -> Package:
    """The package of a family's model, verified, its progress shown; one that stands at `path` is replaced.

    The manifest tells what the weights come from: which example's file, from which weights and how long they were
    trained, on which data and under which terms. Raises ExportError.
    """
    config = model.config
    provenance = {
        "family": family.__name__.rpartition(".")[2],
        "config": recorded(config),
        "source": {"name": f"examples/{Path(example).name}", "weights": weights, "data": data},
    }
    with progress_bar(console) as bar:
        lines: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                lines[stage] = bar.add_task(stage, total=total)
            bar.update(lines[stage], completed=done)

        return export(
            model,
            family.signature(config),
            path,
            task=family.task(config),
            files=files,
            provenance=provenance,
            force=True,
            progress=show,
        )


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows that begin with a name and go on with a value of each heading."""
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for heading in headings:
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def side_by_side(
    metrics: Mapping[str, tuple[str, str]], in_torch: np.ndarray, in_onnx_runtime: np.ndarray, what: str
) -> Table:
    """A table of each metric from PyTorch and from ONNX Runtime, and how many of the predictions are the same.

    metrics: name → both values as they are to be read; predictions: one row an item. what: names the items.
    """
    same = (in_torch == in_onnx_runtime).reshape(len(in_torch), -1).all(1)
    rows = [(name, *values) for name, values in metrics.items()]
    rows.append(("same prediction", "", f"{int(same.sum())} of {len(same)} ({same.mean():.2%})"))
    if not same.all():
        places = np.flatnonzero(~same)
        rows.append(("different at", "", ", ".join(str(place) for place in places[:10]) + " …" * (len(places) > 10)))
    return table(f"{what}, {len(in_torch)} items", ("PyTorch", "ONNX Runtime"), rows)
