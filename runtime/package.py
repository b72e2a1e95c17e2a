"""Packages as the runtime reads them: one folder, one manifest, every file under its digest."""

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from isoformer.runtime.errors import PackageError
from isoformer.runtime.onnx_file import external_files, read_tensor

MANIFEST = "isoformer.json"
WEIGHTS = "model.onnx_data"  # where a graph's weights stand, if not in the graph's own file
MODEL = "model"  # the graph of a package that has one alone
REQUIRED = {"files", "name", "task", "versions"}
REQUIRED_OF_GRAPH = {"golden", "grid", "operators", "opset", "parameters", "parity", "precision"}
REQUIRED_OF_GRAPH |= {"signature", "tolerances"}
SCHEMA = 1
VARIANTS = "variants"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output, as the manifest's signature states it (see `isoformer.models.signature`)."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    kind: str = "value"
    low: int = 0
    high: int | None = None
    pad: int | None = None
    default: float | None = None
    along: str | None = None

    @property
    def masks(self) -> bool:
        """Whether the input says which keys take part."""
        return self.kind in ("mask", "lengths", "segments")

    @classmethod
    def read(cls, data: dict[str, Any]) -> "TensorSpec":
        return cls(**{**data, "axes": tuple(data["axes"])})


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs in the graph's order; `axes` maps a named axis to its (min, max or None).

    `sums` maps an axis to the axes whose sizes add up to its own; one may stand there several times. `products` maps
    one to the axes whose sizes are multiplied, and what is added to that.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, tuple[int, int | None]]
    padding: tuple[str, ...]
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    chunked: bool = False
    products: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)

    @property
    def free_axes(self) -> list[str]:
        """The named axes that are not sums or products of others."""
        return [axis for axis in self.axes if axis not in self.sums and axis not in self.products]

    def complete(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of the free axes → sizes of all."""
        products = {
            axis: math.prod(sizes[part] for part in parts) + plus for axis, (parts, plus) in self.products.items()
        }
        return sizes | products | {axis: sum(sizes[part] for part in parts) for axis, parts in self.sums.items()}

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Signature":
        return cls(
            tuple(TensorSpec.read(spec) for spec in data["inputs"]),
            tuple(TensorSpec.read(spec) for spec in data["outputs"]),
            {name: (axis["min"], axis["max"]) for name, axis in data["axes"].items()},
            tuple(data["padding"]),
            {
                name: (*axis["sum_of"],) * axis.get("times", 1)
                for name, axis in data["axes"].items()
                if axis.get("sum_of")
            },
            bool(data.get("chunked", False)),
            {
                name: ((*axis["product_of"],), axis["plus"])
                for name, axis in data["axes"].items()
                if axis.get("product_of")
            },
        )


@dataclass(frozen=True)
class Package:
    """A package whose manifest and digests have been checked, or one graph of it.

    parts: of a package of several graphs, each by its name; such a package has itself no inputs and outputs.
    """

    path: Path
    manifest: dict[str, Any]
    signature: Signature
    graph: str = MODEL
    parts: dict[str, "Package"] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.path / f"{self.graph}.onnx"

    @property
    def records(self) -> Path:
        """The folder of the graph's golden vectors and its grid."""
        return self.path if self.graph == MODEL else self.path / self.graph

    @property
    def graphs(self) -> dict[str, "Package"]:
        """Every graph by its name."""
        return self.parts or {self.graph: self}

    @property
    def task(self) -> dict[str, Any]:
        """The task and its settings, {} for a package that has none."""
        return self.manifest["task"] or {}

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Other graphs of the same model by name, <provider>-<precision>, as the manifest describes them."""
        return self.manifest.get("variants", {})

    def variant(self, name: str) -> dict[str, Any]:
        """One of them; PackageError with those that there are."""
        if name not in self.variants:
            raise PackageError(f"{self.path} has no variant {name}; it has {', '.join(self.variants) or 'none'}")
        return self.variants[name]

    def fastest(self, provider: str, precision: str | None = None) -> str | None:
        """The variant of a precision for a provider, None for the canonical graph.

        precision: None is the one that the package was exported for. Raises PackageError where there is none.
        """
        own = self.manifest["precision"]
        for wanted in (precision,) if precision else (self.manifest.get("preferred", own), own):
            if f"{provider}-{wanted}" in self.variants:
                return f"{provider}-{wanted}"
        if precision is not None:
            self.refuse_precision(provider, precision)
        return None

    def precision_of(self, variant: str | None) -> str:
        """The precision of a variant, None being the canonical graph."""
        return (self.manifest if variant is None else self.variant(variant))["precision"]

    def refuse_precision(self, provider: str, precision: str) -> None:
        """Raises PackageError unless a graph of the package has that precision for the provider."""
        there = list(dict.fromkeys(name for part in self.graphs.values() for name in part.precisions(provider)))
        if precision not in there:
            raise PackageError(
                f"{self.path} has no {precision} for {provider}, but {', '.join(there)}; "
                "export it again with --precision"
            )

    def precisions(self, provider: str) -> list[str]:
        """Those of the graph for a provider, the canonical one's first."""
        others = (variant["precision"] for variant in self.variants.values() if variant["provider"] == provider)
        return list(dict.fromkeys((self.manifest["precision"], *others)))

    def golden(self, variant: str | None = None) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """The golden vectors: name of the set, inputs and reference outputs by name.

        variant: one whose inputs are others than the canonical graph's, so that it has vectors of its own.
        """
        inputs = [spec.name for spec in self.signature.inputs]
        for name, recorded in (self.manifest if variant is None else self.variant(variant))["golden"].items():
            yield name, self._vectors(name, "input", inputs), self._vectors(name, "output", recorded)

    def _vectors(self, name: str, kind: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
        specs = self.signature.inputs if kind == "input" else self.signature.outputs
        vectors = {}
        for index, spec in enumerate(specs):
            if spec.name not in wanted:
                continue
            file = f"{name}/{kind}_{index}.pb"
            if file not in self.manifest["files"]:  # only what has been checked is opened
                raise PackageError(f"{self.path} is broken: {MANIFEST} does not list {file}")
            vectors[spec.name] = read_tensor(self.path / file)
        return vectors


def load(path: str | Path) -> Package:
    """Reads a package and checks it whole: schema version, every file's SHA-256, external data inside the folder.

    Raises PackageError that names the file that is missing, altered or outside.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, digest in manifest["files"].items():
        file = path / _inside(path, name)
        if not file.is_file():
            raise PackageError(f"{path} is broken: {name} is missing; export it again or copy it whole")
        if sha256(file) != digest:
            raise PackageError(f"{path} is broken: {name} is not the file that was exported (SHA-256 differs)")
    graphs = manifest.get("graphs") or {MODEL: manifest}
    for name in graphs:
        if f"{name}.onnx" not in manifest["files"]:
            raise PackageError(f"{path} is broken: {MANIFEST} does not list {name}.onnx")
    for name in manifest["files"]:
        if name.endswith(".onnx"):
            for location in external_files(path / name):
                relative = _inside(path, (PurePosixPath(name).parent / location).as_posix())
                shared = location == WEIGHTS and name.startswith(f"{VARIANTS}/") and WEIGHTS in manifest["files"]
                if relative not in manifest["files"] and not shared:
                    raise PackageError(f"{path}: {name} refers to {location!r}, which {MANIFEST} does not list")
    if "graphs" not in manifest:
        return Package(path, manifest, _checked_signature(path / MANIFEST, manifest))
    parts = {}
    for name, records in graphs.items():
        whole = {key: value for key, value in manifest.items() if key != "graphs"} | records
        parts[name] = Package(path, whole, _checked_signature(path / MANIFEST, whole), name)
    return Package(path, manifest, Signature((), (), {}, ()), parts=parts)


def _checked_signature(file: Path, manifest: dict[str, Any]) -> Signature:
    try:
        signature = Signature.read(manifest["signature"])
    except (KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{file}: the signature cannot be read ({error})") from None
    _check_records(file, manifest, signature)
    return signature


def _check_records(file: Path, manifest: dict[str, Any], signature: Signature) -> None:
    """Raises PackageError unless every output has its tolerance and, in every case, its shape and bound."""
    try:
        for spec in signature.outputs:
            float(manifest["tolerances"][spec.name]["absolute"])
            for case in (*manifest["golden"].values(), *manifest["grid"].values()):
                tuple(case[spec.name]["shape"])
                float(case[spec.name]["bound"])
        dict(manifest["task"] or {})
        for name, variant in manifest.get("variants", {}).items():
            if variant["path"] not in manifest["files"]:
                raise ValueError(f"the file of the variant {name} is not listed")
            if not all(isinstance(variant[key], str) for key in ("path", "provider", "precision", "cache")):
                raise ValueError(f"the variant {name} is not described by texts")
            for case in variant["decoding"].values():
                float(case["bound"])
            for case in variant.get("golden", {}).values():
                for record in case.values():
                    tuple(record["shape"])
                    float(record["bound"])
            if not variant["decoding"] or "tolerances" in variant:  # something holds every variant
                for spec in signature.outputs:
                    float(variant["tolerances"][spec.name]["absolute"])
        int(manifest["parameters"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"{file}: its parity records or its task cannot be read ({error!r})") from None


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir():
        raise PackageError(f"{path} is not a package: no such folder (make one with: isoformer export -m MODEL {path})")
    if not file.is_file():
        raise PackageError(f"{path} is not a package: it has no {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise PackageError(f"{file} is not a manifest: it has no schema number")
    if manifest["schema"] != SCHEMA:
        raise PackageError(
            f"{file} has schema {manifest['schema']}; this isoformer reads {SCHEMA}: install its version"
        )
    graphs = manifest.get("graphs", {MODEL: manifest})
    if not isinstance(graphs, dict) or not graphs or not all(isinstance(records, dict) for records in graphs.values()):
        raise PackageError(f"{file}: `graphs` is not an object of graphs and their records")
    lacking = sorted(REQUIRED - manifest.keys())
    for name, records in graphs.items():
        where = "" if records is manifest else f"{name}."
        lacking += sorted(f"{where}{key}" for key in REQUIRED_OF_GRAPH - records.keys())
    if lacking:
        raise PackageError(f"{file} lacks {', '.join(lacking)}")
    if not isinstance(manifest["files"], dict):
        raise PackageError(f"{file}: `files` is not an object of names and digests")
    return manifest


def _inside(path: Path, name: str) -> str:
    """The name if it leads to a place in the folder, also after symbolic links; else PackageError."""
    pure = PurePosixPath(name)
    try:
        target = (path / name).resolve()
        target.is_file()  # refuses what the file system cannot name
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: {name[:60]!r} is not a file name ({error})") from None
    if pure.is_absolute() or ".." in pure.parts or not target.is_relative_to(path.resolve()):
        raise PackageError(f"{path}: {name!r} leads out of the package; it is refused")
    return pure.as_posix()
