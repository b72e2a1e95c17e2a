"""The command `isoformer verify`: one package in one runtime or in all that there are, and what they gave."""

import json
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from isoformer.runtime import decoding, matrix
from isoformer.runtime.baseline import Baseline, Compared, compare, fingerprints, sample
from isoformer.runtime.console import counter, err, export_half, out, print_matrix, progress
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.lanes import CANONICAL, Found, Lane, Samples, described, label_of, replayable
from isoformer.runtime.package import Package, load
from isoformer.runtime.parity import Comparison, Report, by_mask_and_length
from isoformer.runtime.providers import ProviderName, onnxruntime_module
from isoformer.runtime.runners import programs
from isoformer.runtime.session import Session
from isoformer.runtime.verify import replay_golden
from isoformer.runtime.verify import verify as run_checks

ALL = "all"
PASSED, FAILED = ("PASSED", "green"), ("FAILED", "red")


def verify(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="a package folder")],
    provider: Annotated[ProviderName, typer.Option(help="of ort; never falls back to another")] = "cpu",
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="ort, reference (the ONNX reference evaluator), ort==RELEASE, openvino, node, browser (and its "
            "webgpu), webgpu, c, or all; again for more (default: ort, and reference where onnx is installed)"
        ),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="this variant alone, or `canonical`; again for more (default: all)")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="of ort: threads of one operator (default: one a core)")] = None,
    seed: Annotated[int | None, typer.Option(help="of the fresh cases; by default another each time")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="what an earlier verify --json printed: tell what moved since"),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write the matrix as a page")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Replay the parity checks that PACKAGE carries, and check fresh cases. Exit status 1: a mismatch.

    ort does all of it in this Python. The other runtimes replay the golden vectors; their environments are made when
    they are first asked for.
    """
    loaded = load(package)
    _check_variants(loaded, variant or [])
    asked = list(dict.fromkeys(runtime or []))
    for name in asked:
        if name != ALL:
            programs.check(name)
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"--html {html}: its folder is not there")
    old = None if baseline is None else Baseline.read(baseline)
    seed = secrets.randbelow(2**31) if seed is None else seed
    found = Found(described=described(loaded))
    with progress() as show:
        for name in _expanded(asked, loaded):
            try:
                for lane in _lanes(name, loaded, variant or [], provider, threads, seed, show):
                    found.add(*lane)
            except programs.MissingError as error:
                if ALL not in asked and name in asked:
                    raise
                found.missing[name] = str(error)
    if not found.report.comparisons:
        raise IsoformerError(f"there was nothing to compare in {package}{_why(found)}")
    moved = None if old is None else compare(old, found, loaded)
    if html is not None:
        matrix.write_html(html, [(loaded.manifest["name"], found.rows())])
    if as_json:
        for comparison in found.report.comparisons:
            print(json.dumps(_line(comparison, found)))
        last = found.report.summary() | {"seed": seed, "package": str(package), "matrix": found.rows()}
        last |= {"place": str(package.absolute()), "fingerprints": fingerprints(loaded)}
        print(json.dumps(last if moved is None else last | {"baseline": moved.to_dict()}))
    else:
        _print(found, seed)
        if moved is not None:
            _print_moved(moved)
    if not found.report.passed or (moved is not None and not moved.within):
        raise typer.Exit(1)


def _expanded(asked: list[str], package: Package) -> list[str]:
    """The runtimes to try; none asked for are those that this Python has."""
    if not asked:
        return ["ort", "reference?"]
    names = []
    for name in asked:
        opset = max(part.manifest["opset"] for part in package.graphs.values())
        if name == ALL:
            names += [*programs.NAMES, *programs.older(opset)]
        else:
            names += [name, programs.WEBGPU] if name == "browser" else [name]
    return list(dict.fromkeys(names))


def _check_variants(package: Package, wanted: Sequence[str]) -> None:
    there = {CANONICAL, *(name for part in package.graphs.values() for name in part.variants)}
    for name in wanted:
        if name not in there:
            raise InputError(f"{package.path} has no variant {name}; it has {', '.join(sorted(there))}")


def _why(found: Found) -> str:
    return "".join(f"; {how}" for how in found.missing.values())


def _lanes(
    name: str,
    package: Package,
    variants: Sequence[str],
    provider: ProviderName,
    threads: int | None,
    seed: int,
    show: Any,
) -> Iterator[tuple[Lane, list[Comparison], Samples]]:
    """The lanes of one runtime; "reference?" leaves the reference evaluator out where it is not installed."""
    if name not in ("ort", "reference", "reference?"):
        total = sum(
            len(cases) for part in package.graphs.values() for cases in replayable(part, variants, name).values()
        )
        advance = counter(show, name, total)
        yield from programs.run(name, package, variants, programs.say, advance)
        return
    for part in package.graphs.values():
        if name == "ort":
            yield from _here(part, variants, provider, threads, seed, show)
        elif not variants or CANONICAL in variants:
            yield from _reference(part, seed, show, quiet=name.endswith("?"))


def _here(
    part: Package,
    variants: Sequence[str],
    provider: ProviderName,
    threads: int | None,
    seed: int,
    show: Any,
) -> Iterator[tuple[Lane, list[Comparison], Samples]]:
    """The canonical graph and the variants for the provider, in this Python's onnxruntime."""
    version = onnxruntime_module().__version__
    own = [name for name, entry in part.variants.items() if entry["provider"] == provider]
    # OpenVINO's provider is for the graphs that were made for it, where there are any.
    for variant in own if own and provider == "openvino" else [None, *own]:
        if variants and (variant or CANONICAL) not in variants:
            continue
        records = part.manifest if variant is None else part.variant(variant)
        label = label_of(part, f"onnxruntime {variant or provider}")
        lane = Lane(label, "ort", version, provider, records["precision"], part.graph, variant)
        samples: Samples = {}
        keep = partial(_keep, samples)
        session = Session(part, provider, threads=threads, variant=variant)
        if not session.shared_cache:
            advance = counter(show, label, len(part.manifest["golden"]) + len(part.manifest["grid"]))
            report = run_checks(part, session.run, label, seed=seed, variant=variant, progress=advance, keep=keep)
            yield lane, report.comparisons, samples
        elif variant is not None and "golden" in records:
            yield lane, list(replay_golden(part, decoding.plainly(session), label, variant, keep)), samples
        if part.manifest.get("decoding"):
            advance = counter(show, f"{label}, steps", len(part.manifest["decoding"]))
            steps = []
            for comparison in decoding.verify(part, session, label):
                advance(comparison.case)
                steps.append(comparison)
            yield lane, steps, {}


def _keep(samples: Samples, case: str, output: str, value: np.ndarray) -> None:
    samples[case, output] = sample(value)


def _reference(part: Package, seed: int, show: Any, *, quiet: bool) -> Iterator[tuple[Lane, list[Comparison], Samples]]:
    """The cases that are small enough for ONNX's reference evaluator."""
    try:
        reference = export_half("reference")
    except IsoformerError as error:
        if quiet:
            return
        raise programs.MissingError(str(error)) from None
    if quiet and reference.NAME not in part.manifest["parity"]:
        return  # it could not run the graph at export either; the manifest's notes say why
    label = label_of(part, reference.NAME)
    lane = Lane(
        label, "reference", installed("onnx"), "numpy", part.manifest["precision"], part.graph, asked="reference"
    )
    samples: Samples = {}
    advance = counter(show, label, len(part.manifest["golden"]) + len(part.manifest["grid"]))
    run, keep = reference.runner(part.model), partial(_keep, samples)
    found = run_checks(part, run, label, seed=seed, small=True, progress=advance, keep=keep).comparisons
    if not found:
        err.print(f"{label}: no case of {part.path} is small enough for it", highlight=False, markup=False)
    else:
        yield lane, found, samples


def _line(comparison: Comparison, found: Found) -> dict[str, Any]:
    values = found.samples.get((comparison.runtime, comparison.case, comparison.output))
    kept = {"sample": values} if comparison.check == "golden" and values is not None else {}
    return comparison.to_dict() | found.lanes[comparison.runtime].to_dict() | kept


def _print_moved(moved: Compared) -> None:
    """What moved since the baseline, the furthest first, and where it begins."""
    count = len(moved.moved)
    out.print(f"since the baseline {count} of {count + moved.still} outputs moved", highlight=False, soft_wrap=True)
    for one in moved.moved[:10]:
        out.print(one.line(), style="" if one.share <= 1 else "red", highlight=False, markup=False, soft_wrap=True)
    for label, first in moved.first.items():
        out.print(f"{label}: it begins at {first.line()}", highlight=False, markup=False, soft_wrap=True)
    for note in moved.notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)


def _print(found: Found, seed: int) -> None:
    report = found.report
    for runtime in found.lanes:
        part = [c for c in report.comparisons if c.runtime == runtime]
        if cells := by_mask_and_length(part):
            print_matrix(runtime, cells)
        for check in ("golden", "relation", "decoding"):
            some = Report([c for c in part if c.check == check])
            if some.comparisons:
                out.print(
                    f"{runtime}: {some.cases} {check} cases, largest error {some.worst():.2g} of its bound",
                    highlight=False,
                    soft_wrap=True,
                )
    if {lane.runtime for lane in found.lanes.values()} - {"ort", "reference"} or found.missing:
        out.print(matrix.table(found.rows()))
    for failure in report.failures[:20]:
        lane = found.lanes[failure.runtime]
        what = found.described.get((lane.graph, lane.variant, failure.case))
        case = f" ({what})" if what and failure.check == "golden" else ""
        out.print(Text.assemble(FAILED, f" {failure.line()}{case}"), highlight=False, soft_wrap=True)
    if len(report.failures) > 20:
        out.print(Text.assemble(FAILED, f" … and {len(report.failures) - 20} more"), highlight=False)
    said = f": {report.cases} cases, {report.values:,} values compared, {len(report.failures)} failures "
    out.print(
        Text.assemble(PASSED if report.passed else FAILED, f"{said}(fresh cases: --seed {seed})"),
        highlight=False,
        soft_wrap=True,
    )
