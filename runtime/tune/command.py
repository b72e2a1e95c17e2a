"""isoformer tune"""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from isoformer.runtime.console import err, out, progress
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.options import PackagePath, Precision, precision_name
from isoformer.runtime.package import MODEL, Package, load
from isoformer.runtime.providers import ProviderName, installed
from isoformer.runtime.tune import decide, job
from isoformer.runtime.tune.inputs import shapes_of
from isoformer.runtime.tune.workers import Workers
from isoformer.runtime.tuning import FILE, Choice, Record, Shape

MANY = 0.2  # of the turns were disturbed, and the user is told


def tune(
    package: PackagePath,
    provider: Annotated[
        ProviderName | None, typer.Option(help="this one alone; default: all that are installed and have graphs here")
    ] = None,
    precision: Precision = None,
    shapes: Annotated[
        str | None,
        typer.Option(help="rows x length, and real tokens where some are padding: 1x16,8x128:697 (default: several)"),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="of measuring for each graph; it can go on later")] = 3.0,
    anew: Annotated[bool, typer.Option("--anew", help="forget what was measured before")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Measure PACKAGE's equal graphs on this machine, and run each batch in the fastest from then on.

    The canonical graph, the variants down to --precision, threads, spinning, fusions: each in a process, in turns, and
    only what passes its parity here. What is kept is PACKAGE/tuning.json, for this machine alone. Killed at any moment,
    the same command goes on where it was.
    """
    loaded = load(package)
    jobs = list(_jobs(loaded, provider, precision, shapes, minutes))
    if not jobs:
        raise InputError(f"{package} has no graph to tune: those of rows and one length are, and decoders of text")
    for one in jobs:
        record = job.begin(one, anew=anew)
        with progress() as show, Workers(one.package, one.provider) as workers:
            try:
                job.run(one, record, workers, show)
            except KeyboardInterrupt:
                err.print("interrupted; what was measured is kept, and the same command goes on", soft_wrap=True)
                raise typer.Exit(130) from None
            finally:
                _warn(record)
        if as_json:
            for line in lines(one, record):
                print(json.dumps(line))
        else:
            _print(one, record)


def _jobs(
    package: Package, provider: str | None, precision: str | None, shapes: str | None, minutes: float
) -> Iterator[job.Job]:
    """One for each graph and provider."""
    bound = None if precision is None else precision_name(precision)
    providers = [provider] if provider else offered(package, bound)
    if bound is not None:
        for name in providers:
            package.refuse_precision(name, bound)
    for part in package.graphs.values():
        found = tuple(shapes_of(part, shapes))
        for name in providers if found else []:
            own = bound if bound in part.precisions(name) else None
            yield job.Job(part, name, part.precision_of(part.fastest(name, own)), found, minutes)


def offered(package: Package, bound: str | None) -> list[str]:
    """The providers that are installed and that the package has graphs for, of that precision if one is given.

    The canonical graph counts for the CPU alone; CUDA must be asked for.
    """
    parts = package.graphs.values()
    own = {"cpu"} | {v["provider"] for part in parts for v in part.variants.values() if v["provider"] != "cuda"}
    found = [name for name in installed() if name in own]
    if bound is None:
        return found
    return [name for name in found if any(bound in part.precisions(name) for part in parts)] or found[:1]


def _warn(record: Record) -> None:
    """What the user should know of how it was measured, a line each."""
    if record.disturbed > MANY:
        err.print(
            f"in {record.disturbed:.0%} of the turns others held the processors: tune --anew on a quiet machine",
            highlight=False,
            soft_wrap=True,
        )
    for choice, reason in record.refused.items():
        err.print(f"{choice} is refused: {reason}", highlight=False, markup=False, soft_wrap=True)


def lines(done: job.Job, record: Record) -> Iterator[dict[str, Any]]:
    """JSON-ready: each choice at each shape, then what was refused, then how it stands."""
    where = {"graph": done.package.graph, "provider": done.provider, "precision": done.precision}
    for shape in record.shapes:
        for choice in _measured(record, shape):
            found = decide.ratios(record.rounds, shape, choice, done.baseline)
            yield where | {
                "shape": str(shape),
                "batch": shape.batch,
                "length": shape.length,
                "real_tokens": shape.real,
                "choice": str(choice),
                **choice.options(),
                "median_ms": round(decide.median_ms(record.rounds, shape, choice, done.baseline), 4),
                "times_faster": round(float(np.median(found)), 3),
                "quartiles": [round(float(q), 3) for q in np.quantile(found, (0.25, 0.75))],
                "turns": len(found),
                "chosen": record.table.get(shape) == choice,
            }
    for choice, reason in record.refused.items():
        yield where | {"choice": str(choice), "refused": reason}
    yield where | {
        "file": str(done.package.path / FILE),
        "finished": record.finished,
        "disturbed": round(record.disturbed, 3),
        "table": {str(shape): str(choice) for shape, choice in record.table.items()},
        "cost": record.to_dict()["cost"],
    }


def _measured(record: Record, shape: Shape) -> list[Choice]:
    return list(dict.fromkeys(choice for one in record.rounds if one.shape == shape for choice in one.times))


def _print(done: job.Job, record: Record) -> None:
    title = f"{done.provider}, down to {done.precision}" + (
        "" if done.package.graph == MODEL else f", {done.package.graph}"
    )
    table = Table(title=f"{title}: median ms, times faster than {done.baseline} (quartiles)", title_justify="left")
    default = Choice(done.package.fastest(done.provider, done.precision) or "")
    table.add_column("rows x length")
    for name in dict.fromkeys((done.baseline, default)):
        table.add_column(str(name), justify="right")
    table.add_column("chosen")
    table.add_column("ms", justify="right")
    table.add_column("times faster")
    for shape in record.shapes:
        if shape not in record.table:
            continue
        chosen = record.table[shape]
        found = decide.ratios(record.rounds, shape, chosen, done.baseline)
        low, high = np.quantile(found, (0.25, 0.75))
        table.add_row(
            str(shape),
            *(_ms(record, shape, name, done.baseline) for name in dict.fromkeys((done.baseline, default))),
            str(chosen),
            _ms(record, shape, chosen, done.baseline),
            f"{np.median(found):.2f} ({low:.2f} to {high:.2f})",
        )
    out.print(table)
    if not record.table:
        raise IsoformerError("the time was too short to decide anything: the same command goes on, see --minutes")
    rest = "" if record.finished else "; the same command goes on measuring"
    out.print(f"wrote {done.package.path / FILE}{rest}", highlight=False, markup=False, soft_wrap=True)


def _ms(record: Record, shape: Shape, choice: Choice, baseline: Choice) -> str:
    if not len(decide.ratios(record.rounds, shape, choice, baseline)):
        return ""
    return f"{decide.median_ms(record.rounds, shape, choice, baseline):.3g}"
