"""A package, ready to run: inputs are checked before ONNX Runtime sees them, outputs come back by name."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from isoformer.runtime import tuning
from isoformer.runtime.by_shape import ByPadding, ByShape, Chooser, key_mask
from isoformer.runtime.checks import SeenShapes
from isoformer.runtime.cost import PACKED, cost_on
from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.package import PADDED, Package, Signature, TensorSpec, load
from isoformer.runtime.providers import ProviderName, open_session
from isoformer.runtime.subnormals import flushed
from isoformer.runtime.tuning import Choice

ORT_TYPES = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class Session:
    """Runs the package at `path` on one provider.

        session = Session("minilm")
        outputs = session.run({"input_ids": ids, "attention_mask": mask})

    path: a package folder, or a Package that `load` has checked. threads: of one operator; None
    leaves the choice to ONNX Runtime (one a core). variant: another graph of the same model, by its name in
    `Package.variants`; see `fastest`. spinning: threads that wait for work keep their cores busy, which is faster
    unless something else needs these. fusions: also the graph optimizers that are off for being slower mostly.
    chooser: says which graph each batch runs in; variant, threads, spinning and fusions are then those that it says.

    cost: what a batch costs here, by which lists of texts are cut into batches.

    Raises PackageError for a broken package and ProviderError when the provider does not run the
    graph here; it never falls back to another.
    """

    def __init__(
        self,
        path: str | Path | Package,
        provider: ProviderName = "cpu",
        *,
        threads: int | None = None,
        variant: str | None = None,
        spinning: bool = True,
        fusions: bool = False,
        chooser: Chooser | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        self.package = path if isinstance(path, Package) else load(path)
        if self.package.parts:
            raise PackageError(
                f"{self.package.path} has the graphs {', '.join(self.package.parts)}; open them with Graphs"
            )
        self.provider = provider
        self.cost = cost_on(provider)
        self.text_encoders: dict[bool, Any] = {}  # see `text.text_encoder`
        self.signature = self.package.edge(variant)
        self._inputs = {spec.name: spec for spec in self.signature.inputs}
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._seen = SeenShapes()
        self.variant = variant
        if variant is not None and self.package.variant(variant)["provider"] != provider:
            raise InputError(f"{variant} is for {self.package.variant(variant)['provider']}, not for {provider}")
        self.shared_cache = variant is not None and self.package.variant(variant)["cache"] == "shared"
        self._by_shape = None if chooser is None else _Opened(self.package, provider, chooser)
        # onnxruntime's InferenceSession; where the graph is chosen by each batch, that of the first choice
        if self._by_shape is None:
            self.inference = _open(self.package, provider, threads, variant, spinning=spinning, fusions=fusions)
        else:
            self.inference = self._by_shape.first

    @classmethod
    def fastest(
        cls,
        path: str | Path | Package,
        provider: ProviderName = "cpu",
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> "Session":
        """The session of the package's fastest graph of a precision, by default the one it was exported for.

        Where a package has a graph for batches with padding besides, as those for OpenVINO do, these run in it. It is
        opened, which takes as long as the first did, with the first batch that has enough padding, and holds weights
        of its own in memory; hidden states at padding are 0 in such a batch, and anything in others.
        Where `isoformer tune` has measured this machine, each batch runs in the graph that was the fastest at the most
        similar batch that was measured, of at least that precision; a graph is opened when the first batch needs it,
        and then holds its own weights in memory. Without that, or with `threads`, it is the precision's variant.

        Raises as the constructor does, and PackageError for a precision that the package does not have, and for a
        tuning.json that cannot be read.
        """
        package = path if isinstance(path, Package) else load(path)
        record = None if threads is not None else tuning.in_use(package, provider, precision)
        if record is None:
            name = package.fastest(provider, precision)
            chooser = _by_padding(package, name, threads)
            session = cls(package, provider, threads=threads, variant=name, chooser=chooser)
            if chooser is not None:
                session.cost = PACKED
            return session
        several = ByShape(package.signature, record.table) if len(record.choices) > 1 else None
        session = cls(package, provider, **record.choices[0].options(), chooser=several)
        usual = PACKED if tuning.for_padding(package, record.choices) else session.cost
        session.cost = record.cost or usual
        return session

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs by name, all of them or the ones named.

        inputs: arrays by name, of the dtype and rank that the signature states; a mask may have any
        dtype that holds 0 and 1. Inputs with a default may be left out.

        Raises InputError, one line, for a wrong name, dtype, rank, size or value.
        """
        if self.shared_cache:
            raise InputError(f"{self.variant} writes its cache in place; isoformer.runtime.binding.Decoder runs it")
        feeds = self._seen.feeds(inputs)
        if feeds is None:
            feeds = check_inputs(self._inputs, self.signature.axes, inputs, self.signature.sums)
            self._seen.add(inputs, feeds, _largest(self._inputs, feeds))
        names = self._outputs if outputs is None else self._named(outputs)
        if not names:
            return {}  # to ONNX Runtime no name means all
        try:
            inference = self.inference if self._by_shape is None else self._by_shape.inference(feeds)
            with flushed():
                values = inference.run(names, feeds)
        except IsoformerError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            raise IsoformerError(f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def _named(self, outputs: Sequence[str]) -> list[str]:
        unknown = [name for name in outputs if name not in self._outputs]
        if unknown:
            raise InputError(f"there is no output {', '.join(unknown)}; there are {', '.join(self._outputs)}")
        return list(outputs)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.inference, self._by_shape


def _by_padding(package: Package, variant: str | None, threads: int | None) -> ByPadding | None:
    """What sends batches with padding to a graph of their own, None where the variant has none."""
    if variant is None or f"{variant}{PADDED}" not in package.variants:
        return None
    whole, padded = package.variant(variant), package.variant(f"{variant}{PADDED}")
    same = all(whole[key] == padded[key] for key in ("provider", "precision", "cache"))
    if not same or not padded.get("padded"):
        raise PackageError(
            f"{package.path} is broken: {variant}{PADDED} is no graph for the padded batches of {variant}"
        )
    choices = (Choice(name, threads or 0) for name in (variant, f"{variant}{PADDED}"))
    return ByPadding(package.signature, *choices) if key_mask(package.signature) is not None else None


class _Opened:
    """The graphs that were chosen for the batches that came so far."""

    def __init__(self, package: Package, provider: str, chooser: Chooser) -> None:
        self._package, self._provider = package, provider
        self._chooser = chooser
        self._sessions: dict[tuning.Choice, Any] = {}
        self._lock = Lock()
        self.first = self._open(chooser.first)

    def inference(self, feeds: Mapping[str, np.ndarray]) -> Any:
        """The InferenceSession for these inputs."""
        choice = self._chooser.choose(feeds)
        return self._sessions.get(choice) or self._open(choice)

    def _open(self, choice: tuning.Choice) -> Any:
        with self._lock:
            if choice not in self._sessions:
                self._sessions[choice] = _open(self._package, self._provider, **choice.options(), shared=True)
            return self._sessions[choice]


class Graphs(Mapping[str, Session]):
    """The sessions of a package's graphs by name: "encoder_model", "decoder_model_merged", …, or "model" alone.

        graphs = Graphs("fr-en")
        outputs = graphs["encoder_model"].run({"input_ids": ids})

    Arguments as `Session.fastest` takes them; a graph without the precision, where another has it, runs in its own.
    Raises as it does.
    """

    def __init__(
        self,
        path: str | Path | Package,
        provider: ProviderName = "cpu",
        *,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.package = path if isinstance(path, Package) else load(path)
        self.provider = provider
        if precision is not None:
            self.package.refuse_precision(provider, precision)
        self._sessions = {
            name: Session.fastest(
                part, provider, precision=precision if precision in part.precisions(provider) else None, threads=threads
            )
            for name, part in self.package.graphs.items()
        }

    def __getitem__(self, name: str) -> Session:
        if name not in self._sessions:
            raise PackageError(f"{self.package.path} has no graph {name}, but {', '.join(self._sessions)}")
        return self._sessions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)


def open_fastest(
    path: str | Path | Package,
    provider: ProviderName = "cpu",
    *,
    precision: str | None = None,
    threads: int | None = None,
) -> Session | Graphs:
    """What a task's `run` takes: the fastest Session of a package, or the Graphs of one of several.

    Raises as `Session.fastest` does.
    """
    package = path if isinstance(path, Package) else load(path)
    make = Graphs if package.parts else Session.fastest
    return make(package, provider, precision=precision, threads=threads)


def check_inputs(
    specs: Mapping[str, TensorSpec],
    axes: Mapping[str, tuple[int, int | None]],
    inputs: Mapping[str, np.ndarray],
    sums: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays to feed: every one checked, masks converted, defaults filled in. Raises InputError."""
    unknown = inputs.keys() - specs.keys()
    if unknown:
        raise InputError(f"there is no input {', '.join(sorted(unknown))}; there are {', '.join(specs)}")
    sizes: dict[str, int] = {}
    feeds: dict[str, np.ndarray] = {}
    absent: list[TensorSpec] = []
    for name, spec in specs.items():
        if name in inputs:
            feeds[name] = _checked(spec, inputs[name], sizes, axes)
        elif spec.default is None:
            raise InputError(f"the input {name} is missing; it is {_describe(spec)}")
        else:
            absent.append(spec)
    for axis, parts in (sums or {}).items():
        if all(part in sizes for part in parts):
            total = sum(sizes[part] for part in parts)
            if sizes.setdefault(axis, total) != total:
                each = {part: parts.count(part) for part in parts}
                terms = (f"{f'{n} × ' if n > 1 else ''}{part} {sizes[part]}" for part, n in each.items())
                raise InputError(f"{axis} is {sizes[axis]}; {' + '.join(terms)} is {total}")
        elif axis in sizes and len(set(parts)) == 1:  # no input has the part itself
            (part,), (low, high) = set(parts), axes[parts[0]]
            count, rest = divmod(sizes[axis], len(parts))
            if rest or count < low or (high is not None and count > high):
                upwards = "up" if high is None else f"to {high * len(parts)}"
                raise InputError(
                    f"{axis} is {sizes[axis]}; it is a multiple of {len(parts)}, from {low * len(parts)} {upwards}"
                )
            sizes[part] = count
    for name, array in feeds.items():
        _check_range(specs[name], array, sizes)
    for spec in absent:
        unbound = [axis for axis in spec.axes if isinstance(axis, str) and axis not in sizes]
        if unbound:
            raise InputError(f"the input {spec.name} is missing, and nothing tells its {', '.join(unbound)}")
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        feeds[spec.name] = np.full(shape, spec.default, spec.dtype)
    return feeds


def _checked(
    spec: TensorSpec, array: np.ndarray, sizes: dict[str, int], axes: Mapping[str, tuple[int, int | None]]
) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{spec.name} is a {type(array).__name__}; pass a numpy array, {_describe(spec)}")
    if array.ndim != len(spec.axes):
        raise InputError(f"{spec.name} has {array.ndim} axes, {array.shape}; it is {_describe(spec)}")
    for axis, size in zip(spec.axes, array.shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                raise InputError(f"{spec.name} has shape {array.shape}; it is {_describe(spec)}")
            continue
        if sizes.setdefault(axis, size) != size:
            raise InputError(f"{spec.name} has {axis} {size}, but an earlier input has {sizes[axis]}")
        low, high = axes[axis]
        if size < low:
            raise InputError(f"{spec.name} has shape {array.shape}: {axis} is {size}, the least is {low}")
        if high is not None and size > high:
            raise InputError(f"{spec.name} has {axis} {size}; this model takes {high} at most: truncate or split")
    if spec.kind == "mask":
        return _mask(spec, array)
    if array.dtype != spec.dtype:
        raise InputError(f"{spec.name} has dtype {array.dtype}; it is {_describe(spec)}")
    return array


def _range(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, int | None] | None:
    """The least and the largest integer that it holds, along an axis by its size; None where anything goes."""
    if spec.kind == "mask" or (spec.kind == "value" and (spec.high is None or spec.dtype.startswith("float"))):
        return None
    low, most = spec.low, spec.high - 1 if spec.high is not None else None
    if spec.along is not None:
        size = sizes.get(spec.along)
        most = size - 1 if size is not None and spec.kind == "indices" else size
    return low, most


def _largest(specs: Mapping[str, TensorSpec], feeds: Mapping[str, np.ndarray]) -> dict[str, int] | None:
    """The largest value of each input whose values are checked; None unless they are whole numbers from 0 on."""
    sizes = {str(axis): n for name, a in feeds.items() for axis, n in zip(specs[name].axes, a.shape, strict=True)}
    found: dict[str, int] = {}
    for name, array in feeds.items():
        spec = specs[name]
        ends = (0, 1) if spec.kind == "mask" else _range(spec, sizes)
        if ends is None or array.dtype == bool:
            continue
        low, most = ends
        if low != 0 or array.dtype.kind not in "iu" or (spec.along is not None and spec.along not in sizes):
            return None
        found[name] = int(np.iinfo(array.dtype).max) if most is None else most
    return found


def _check_range(spec: TensorSpec, array: np.ndarray, sizes: Mapping[str, int]) -> None:
    """Raises InputError for integers out of their range."""
    ends = _range(spec, sizes)
    if ends is None:
        return
    low, most = ends
    if array.size and (array.min() < low or (most is not None and array.max() > most)):
        upwards = "up" if most is None else f"to {most}"
        raise InputError(f"{spec.name} holds values from {array.min()} to {array.max()}; they go from {low} {upwards}")


def _mask(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """The mask in the graph's dtype: the contract takes 0 and 1 of any dtype, and nothing else."""
    if array.dtype == bool:
        return array.astype(spec.dtype)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{spec.name} has dtype {array.dtype}; it is {_describe(spec)}")
    if array.dtype.kind in "iu":
        wrong = array.size and (array.min() < 0 or array.max() > 1)
    else:
        wrong = not np.isin(array, (0, 1)).all()
    if wrong:
        raise InputError(f"{spec.name} holds values other than 0 and 1; 1 means that a key takes part")
    return array.astype(spec.dtype, copy=False)


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join(str(axis) for axis in spec.axes)})"


def _open(package: Package, provider: str, threads: int | None, variant: str | None, **options: bool) -> Any:
    """The InferenceSession of a graph, whose edge is the package's."""
    model, folder = package.model_file(variant)
    try:
        weights = None if folder == model.parent else str(folder.absolute())
        precision = "float32" if variant is None else package.variant(variant)["precision"]
        session = open_session(str(model), provider, threads, weights=weights, precision=precision, **options)
    except IsoformerError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        raise PackageError(f"ONNX Runtime cannot open {model}: {first_line(error)}") from error
    _refuse_other_edge(session, package, package.edge(variant))
    return session


def _refuse_other_edge(session: Any, package: Package, signature: Signature) -> None:
    """Raises PackageError unless the graph's inputs and outputs are those of the signature, in its order."""
    for kind, values, specs in (
        ("inputs", session.get_inputs(), signature.inputs),
        ("outputs", session.get_outputs(), signature.outputs),
    ):
        found = [(value.name, ORT_TYPES.get(value.type, value.type), len(value.shape)) for value in values]
        stated = [(spec.name, spec.dtype, len(spec.axes)) for spec in specs]
        if found != stated:
            one, other = (", ".join(f"{n} {d} of rank {r}" for n, d, r in edge) for edge in (found, stated))
            raise PackageError(f"{package.model} has the {kind} {one}; the manifest says {other}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, without ONNX Runtime's own prefix."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.removeprefix("[ONNXRuntimeError] : ")
