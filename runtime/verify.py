"""`isoformer verify`: replays what a package carries and holds it to relations on fresh inputs.

golden    the whole outputs of a few cases, in ONNX's own test-runner convention
grid      batch × length × mask: inputs and sampled values of the float64 reference (parity.npz)
relation  see `relations.py`

None of them needs torch: the reference was computed when the package was exported.
"""

import math
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from isoformer.runtime import npz, padding
from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import IsoformerError, PackageError
from isoformer.runtime.forms import one_line
from isoformer.runtime.package import Package, Signature
from isoformer.runtime.parity import Comparison, Report, comparable, compare, sample_indices
from isoformer.runtime.relations import relations

GRID_FILE = "parity.npz"
Keep = Callable[[str, str, np.ndarray], None]  # case, output, its value
# The ONNX reference evaluator computes in plain numpy: it takes the cases of up to this many rows of an input.
SMALL = 64
SMALL_WORK = 64 * 25_000_000


def verify(
    package: Package,
    run: Callable[[Arrays], Arrays],
    runtime: str,
    *,
    seed: int,
    small: bool = False,
    golden_alone: bool = False,
    variant: str | None = None,
    progress: Callable[[str], None] = lambda _case: None,
    keep: Keep = lambda _case, _output, _value: None,
) -> Report:
    """Every check of the package through `run`, which takes and returns arrays by name.

    runtime: what `run` is called in the report. small: golden and grid cases of up to SMALL tokens only.
    golden_alone: no grid and no relations.
    variant: what `run` runs, if not the canonical graph; of another precision its own tolerances are the bounds.
    progress: called with the name of each case. keep: given each output of the golden vectors.

    Raises PackageError for a package whose parts do not belong together, so that there is nothing to run.
    """
    report = Report()
    records = package.manifest if variant is None else package.variant(variant)
    tolerances = {name: entry["absolute"] for name, entry in records["tolerances"].items()}
    own_bounds = variant is not None and records["precision"] != package.manifest["precision"]

    def compared(inputs: Arrays) -> Arrays:
        return comparable(package.signature, run(inputs))

    grid = iter(()) if golden_alone else read_grid(package)
    for check, cases in (("golden", package.golden()), ("grid", grid)):
        for name, inputs, outputs, recorded in _paired(
            package, check, cases, records.get("zero_at_padding", ()), small
        ):
            progress(name)
            if own_bounds:
                recorded = {output: record | {"bound": tolerances[output]} for output, record in recorded.items()}
            taken = partial(keep, name) if check == "golden" else _forget
            report.comparisons += _replay(recorded, compared, (runtime, check, name), inputs, outputs, taken)
    if not small and not golden_alone:
        for comparison in relations(package.signature, tolerances, compared, runtime, np.random.default_rng(seed)):
            progress(comparison.case)
            report.comparisons.append(comparison)
    return report


def _paired(
    package: Package, check: str, cases: Iterator[tuple[str, Arrays, Arrays]], unpadded: Collection[str], small: bool
) -> Iterator[tuple[str, Arrays, Arrays, dict[str, dict]]]:
    """The cases as a run is held to them: name, inputs, the reference's outputs, what the manifest records of them.

    Raises PackageError where these do not belong together: each has its form, and still they may be of two models.
    What the one who asks for the next case does meanwhile is none of it.
    """
    try:
        for name, inputs, outputs in cases:
            if small and not is_small(package.signature, inputs, package.manifest["parameters"]):
                continue
            if check == "golden":  # the grid has them so already
                outputs = comparable(package.signature, outputs)
            yield (
                name,
                inputs,
                padding.without(package.signature, unpadded, inputs, outputs),
                package.manifest[check][name],
            )
    except IsoformerError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        what = one_line(error)[:300]
        why = f"its parts do not belong together ({type(error).__name__}: {what})"
        raise PackageError(f"{package.path} cannot be verified: {why}") from error


def replay_golden(
    package: Package, run: Callable[[Arrays], Arrays], runtime: str, variant: str, keep: Keep
) -> Iterator[Comparison]:
    """The golden vectors of a variant that has some of its own, through `run`; keep is given each output."""
    recorded = package.variant(variant)["golden"]
    for name, inputs, outputs in package.golden(variant):
        yield from _replay(recorded[name], run, (runtime, "golden", name), inputs, outputs, partial(keep, name))


def _forget(_output: str, _value: np.ndarray) -> None:
    """Keeps nothing."""


def is_small(signature: Signature, inputs: Arrays, parameters: int = 0) -> bool:
    """Whether the sizes of the first two named axes of every input multiply to SMALL or less.

    Of a model with more parameters fewer: tokens times parameters stay under SMALL_WORK.
    """
    most = min(SMALL, SMALL_WORK // max(parameters, 1))
    for spec in signature.inputs:
        shape = zip(spec.axes, inputs[spec.name].shape, strict=True)
        # A multiple of one axis, as samples are of frames, counts as that axis.
        multiples = {axis: len(parts) for axis, parts in signature.sums.items() if len(set(parts)) == 1}
        sizes = [n // multiples.get(axis, 1) for axis, n in shape if isinstance(axis, str)]
        if math.prod(sizes[:2]) > most:
            return False
    return True


def read_grid(package: Package) -> Iterator[tuple[str, Arrays, Arrays]]:
    """The grid's cases: name, inputs, sampled values of the reference outputs.

    Raises PackageError when parity.npz cannot be read or lacks an array.
    """
    with npz.read(package.record(GRID_FILE)) as arrays:
        for name in package.manifest["grid"]:
            yield (
                name,
                {spec.name: arrays[f"{name}/{spec.name}"].astype(spec.dtype) for spec in package.signature.inputs},
                {spec.name: arrays[f"{name}/{spec.name}"] for spec in package.signature.outputs},
            )


def _replay(
    recorded: dict[str, dict],
    run: Callable[[Arrays], Arrays],
    where: tuple[str, str, str],
    inputs: Arrays,
    outputs: Arrays,
    keep: Callable[[str, np.ndarray], None],
) -> Iterator[Comparison]:
    """The candidate's outputs against the reference's, within the bounds that the export recorded."""
    try:
        candidate = run(inputs)
    except IsoformerError as error:
        yield Comparison(*where, "run", 0, float("inf"), 0.0, str(error))
        return
    for name, reference in outputs.items():
        value, shape, allowed = candidate[name], tuple(recorded[name]["shape"]), recorded[name]["bound"]
        keep(name, value)
        if value.shape == shape and reference.shape != shape:
            # Every value must be finite, and the sampled ones close.
            finite = np.isfinite(value).all()
            value = value.reshape(-1)
            value = value[sample_indices(value.size)] if finite else np.full_like(reference, np.nan)
        yield compare(*where, name, value, reference, allowed)
