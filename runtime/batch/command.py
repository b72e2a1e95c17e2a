"""isoformer batch"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from isoformer.runtime.batch import job as jobs
from isoformer.runtime.errors import InputError
from isoformer.runtime.options import PackagePath, Precision, Provider, Threads, precision_name

LINE_EVERY = 30.0  # seconds, where there is no terminal for a bar


def batch(
    package: PackagePath,
    source: Annotated[Path, typer.Argument(metavar="IN", help="rows: .jsonl, .csv or .parquet")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the same rows with new columns; the suffix says how")],
    column: Annotated[str, typer.Option(help="the column of IN that holds the texts, or names of files")] = "text",
    prefix: Annotated[
        str | None, typer.Option(help="of the new columns' names; default: none if they are free")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: actors of Ray Data, here or on a cluster")] = "local",
    workers: Annotated[int, typer.Option(help="ray: actors, a session each")] = 1,
    provider: Provider = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="cut texts that are too long for the model")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="generate, translate: new tokens at most")] = None,
    temperature: Annotated[float | None, typer.Option(help="generate: 0 the likeliest token, above 0 draws")] = None,
    top_p: Annotated[float | None, typer.Option(help="generate: draw among tokens that have P together")] = None,
    beams: Annotated[int | None, typer.Option(help="generate, translate: beams of the search")] = None,
    seed: Annotated[int, typer.Option(help="generate: of the draws")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="generate: a string that ends a text (again for more)")] = None,
    language: Annotated[str | None, typer.Option(help="transcribe: spoken, such as de")] = None,
    part_rows: Annotated[int | None, typer.Option(help="rows of a part, what a kill loses (default: by task)")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace OUT, and what is left of another job")] = False,
) -> None:
    """Do PACKAGE's task on every row of IN. Killed at any moment, the same command goes on where it was."""
    if engine not in ("local", "ray"):
        raise InputError(f"engine {engine!r} is not one of local, ray")
    for name, value in (("--part-rows", part_rows), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "beams": beams}
    settings = {name: value for name, value in settings.items() if value is not None}
    if settings.get("temperature") or "top_p" in settings:
        settings["seed"] = seed
    job = jobs.Job(
        package,
        source,
        output,
        column,
        prefix,
        provider,
        None if precision is None else precision_name(precision),
        threads,
        {"truncate": truncate, "settings": settings, "stop": tuple(stop or ()), "language": language},
        part_rows,
    )
    with _shown() as progress:
        found = jobs.run(job, force=force, engine=_engine(engine, workers), progress=progress)
    rate = f", {found.computed / found.seconds:,.0f} rows/s" if found.computed else ""
    print(f"wrote {output}: {found.rows:,} rows{rate}", file=sys.stderr)
    if found.rejected is not None:
        print(f"{found.bad:,} bad rows, with the reason of each: {found.rejected}", file=sys.stderr)


def _engine(name: str, workers: int) -> jobs.Engine:
    if name == "local":
        return jobs.in_turn
    from isoformer.runtime.batch.ray_engine import on_ray

    return on_ray(workers)


@contextmanager
def _shown() -> Iterator[jobs.Progress]:
    """Rows, their rate and the time that is left: a bar on a terminal, else a line now and then."""
    console, start = Console(stderr=True), time.monotonic()
    last, first_rows, first_share = start, None, 0.0
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)

        def show(rows: int, bad: int, share: float) -> None:
            nonlocal last, first_rows, first_share
            now = time.monotonic()
            if first_rows is None:  # what an earlier run did says nothing of the rate
                first_rows, first_share = rows, share
                bar.update(task, completed=share, description=f"{rows:,} rows")
                return
            rate = (rows - first_rows) / max(now - start, 1e-9)
            text = f"{rows:,} rows{f', {bad:,} bad' if bad else ''}, {rate:,.0f} rows/s"
            bar.update(task, completed=share, description=text)
            if not console.is_terminal and now - last >= LINE_EVERY:
                last = now
                left = (now - start) * (1 - share) / max(share - first_share, 1e-9)
                print(f"{share:.0%}, {text}, {left:,.0f} s left", file=sys.stderr, flush=True)

        yield show
