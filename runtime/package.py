"""Packages as the runtime reads them: one folder, one manifest, every file under its digest."""

import hashlib
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from isoformer.runtime import manifest as forms
from isoformer.runtime import task_settings
from isoformer.runtime.errors import PackageError
from isoformer.runtime.forms import FormError, listing, one_line, read_json, shown
from isoformer.runtime.onnx_file import external_files, read_tensor

MANIFEST = "isoformer.json"
WEIGHTS = "model.onnx_data"  # where a graph's weights stand, if not in the graph's own file
MODEL = "model"  # the graph of a package that has one alone
REQUIRED = {"files", "name", "task", "versions"}
REQUIRED_OF_GRAPH = {"golden", "grid", "operators", "opset", "parameters", "parity", "precision"}
REQUIRED_OF_GRAPH |= {"signature", "tolerances"}
MAX_GRAPHS = 100
MAX_ENTRIES = 100_000  # files and folders below the package's
SCHEMA = 1
VARIANTS = "variants"
PAST, PRESENT = "past_key_values.", "present."  # what the names of a cache's inputs and outputs begin with
PADDED = "-padded"  # ends the name of the variant that takes the batches with padding of the one before


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
    def files(self) -> Collection[str]:
        """The files that the manifest lists; of a package that is being written, those that are there."""
        if "files" in self.manifest:
            return self.manifest["files"]
        return {file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file()}

    def has(self, name: str) -> bool:
        """Whether the package has a file of that name."""
        return name in self.files

    def file(self, name: str) -> Path:
        """Where a file of the package lies. What the manifest does not list is under no digest, and is not opened.

        Raises PackageError for such a file.
        """
        if not self.has(name):
            raise PackageError(f"{self.path} is broken: {MANIFEST} does not list {name}")
        return self.path / name

    def record(self, name: str) -> Path:
        """Where one of the files that belong to the graph lies, such as its grid; PackageError as `file`."""
        return self.file(name if self.graph == MODEL else f"{self.graph}/{name}")

    def model_file(self, variant: str | None) -> tuple[Path, Path]:
        """The file of the canonical graph or of a variant, and the folder in which its weights are named."""
        name = f"{self.graph}.onnx" if variant is None else self.variant(variant)["path"]
        return self.file(name), self.path / weights_folder(name, self.files)

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
        if precision is not None:
            self.refuse_precision(provider, precision)
        for wanted in (precision,) if precision else (self.manifest.get("preferred", own), own):
            if f"{provider}-{wanted}" in self.variants:
                return f"{provider}-{wanted}"
        return None

    def edge(self, variant: str | None) -> Signature:
        """The inputs and outputs of a variant: the signature's, but its cache may be of another dtype."""
        dtype = None if variant is None else self.variant(variant).get("cache_dtype")
        if dtype is None:
            return self.signature

        def own(spec: TensorSpec) -> TensorSpec:
            return replace(spec, dtype=dtype) if spec.name.startswith((PAST, PRESENT)) else spec

        inputs, outputs = (tuple(map(own, specs)) for specs in (self.signature.inputs, self.signature.outputs))
        return replace(self.signature, inputs=inputs, outputs=outputs)

    def precision_of(self, variant: str | None) -> str:
        """The precision of a variant, None being the canonical graph."""
        return (self.manifest if variant is None else self.variant(variant))["precision"]

    def refuse_precision(self, provider: str, precision: str) -> None:
        """Raises PackageError unless a graph of the package has that precision for the provider."""
        there = list(dict.fromkeys(name for part in self.graphs.values() for name in part.precisions(provider)))
        if precision not in there:
            raise PackageError(
                f"{self.path} has no {precision} for {provider}, but {', '.join(there)}; "
                f"export it again with {'--precision' if provider == 'cpu' else f'--provider {provider}'}"
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
            vectors[spec.name] = read_tensor(self.file(f"{name}/{kind}_{index}.pb"))
        return vectors


def load(path: str | Path) -> Package:
    """Reads a package and checks it whole: the manifest's form, every file's SHA-256, external data inside the folder.

    Nothing that a package holds is run or unpickled, and nothing outside its folder is opened (docs/security.md).
    Raises PackageError that names the file that is missing, altered or outside, or the entry that is wrong.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    _refuse_links_out(path)
    for name, digest in manifest["files"].items():
        file = _inside(path, name)
        if not file.is_file():
            raise PackageError(f"{path} is broken: {name} is missing; export it again or copy it whole")
        if sha256(file) != digest:
            raise PackageError(f"{path} is broken: {name} is not the file that was exported (SHA-256 differs)")
    graphs = manifest.get("graphs") or {MODEL: manifest}
    for name in graphs:
        if f"{name}.onnx" not in manifest["files"]:
            raise PackageError(f"{path} is broken: {MANIFEST} does not list {name}.onnx")
    models = [name for name in manifest["files"] if name.endswith(".onnx")]
    if len(models) > MAX_GRAPHS:
        raise PackageError(f"{path} has {len(models)} files of graphs; {MAX_GRAPHS} are the most")
    for name in models:
        _check_external(path, name, manifest["files"])
    if "graphs" not in manifest:
        return Package(path, manifest, Signature.read(manifest["signature"]))
    parts = {}
    for name, records in graphs.items():
        whole = {key: value for key, value in manifest.items() if key != "graphs"} | records
        parts[name] = Package(path, whole, Signature.read(whole["signature"]), name)
    return Package(path, manifest, Signature((), (), {}, ()), parts=parts)


def weights_folder(name: str, files: Collection[str]) -> PurePosixPath:
    """The folder, in the package, in which a graph's weights are named: its own, or of a variant without any the root.

    A variant may read the weights of the package's own folder, which is not the one that it stands in.
    """
    own = PurePosixPath(name).parent
    shares = name.startswith(f"{VARIANTS}/") and WEIGHTS in files and (own / WEIGHTS).as_posix() not in files
    return PurePosixPath() if shares else own


def _check_external(path: Path, name: str, files: Collection[str]) -> None:
    """Raises PackageError unless every file that a graph names is listed, so that it is inside and under its digest."""
    folder, beside = weights_folder(name, files), PurePosixPath(name).parent / WEIGHTS
    if folder != beside.parent and (path / beside).exists():
        raise PackageError(f"{path}: {MANIFEST} does not list {beside}, which would take the place of {WEIGHTS}")
    for location in external_files(path / name):
        where = (folder / location).as_posix()
        _inside(path, where if location else "")
        if where not in files or (folder != beside.parent and location != WEIGHTS):
            raise PackageError(f"{path}: {name} refers to {shown(location)}, which {MANIFEST} does not list")


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, whose form is what the runtime relies on."""
    file = path / MANIFEST
    if not path.is_dir():
        raise PackageError(f"{path} is not a package: no such folder (make one with: isoformer export -m MODEL {path})")
    if not _inside(path, MANIFEST).is_file():
        raise PackageError(f"{path} is not a package: it has no {MANIFEST}")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise PackageError(f"{file} is not a manifest: it has no schema number")
    if manifest["schema"] != SCHEMA:
        raise PackageError(
            f"{file} has schema {shown(manifest['schema'])}; this isoformer reads {SCHEMA}: install its version"
        )
    graphs = manifest.get("graphs", {MODEL: manifest})
    if not isinstance(graphs, dict) or not graphs or not all(isinstance(records, dict) for records in graphs.values()):
        raise PackageError(f"{file}: `graphs` is not an object of graphs and their records")
    lacking = sorted(REQUIRED - manifest.keys())
    for name, records in graphs.items():
        where = "" if records is manifest else f"{name}."
        lacking += sorted(f"{where}{key}" for key in REQUIRED_OF_GRAPH - records.keys())
    if lacking:
        raise PackageError(f"{file} lacks {listing(lacking)}")
    try:
        forms.digests(manifest["files"], "files")
        forms.WHOLE(manifest, "")
        task_settings.check(manifest["task"] or {})
        for records in graphs.values():
            forms.check_graph(records, manifest["files"])
    except FormError as error:
        raise PackageError(f"{file} cannot be read: {one_line(error)}") from None
    return manifest


def _refuse_links_out(path: Path) -> None:
    """Raises PackageError for a symbolic link that leads out of the folder, also one that the manifest does not list.

    So nothing that later opens a file below the folder, in whatever language, can be led elsewhere.
    """
    root, seen = path.resolve(), 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            seen += 1
            if seen > MAX_ENTRIES:
                raise PackageError(f"{path} has more than {MAX_ENTRIES:,} files and folders; a package has a few dozen")
            entry = Path(folder, name)
            if entry.is_symlink() and not _leads_into(entry, root):
                raise PackageError(
                    f"{path}: {shown(entry.relative_to(path).as_posix())} leads out of the package; it is refused"
                )


def _leads_into(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _inside(path: Path, name: str) -> Path:
    """The file, if its name leads to a place in the folder, also after symbolic links; else PackageError."""
    if why := forms.file_name(name):
        raise PackageError(f"{path}: {shown(name)} {why}")
    try:
        target = (path / name).resolve()
        target.is_file()  # refuses what the file system cannot name
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise PackageError(f"{path}: {shown(name)} is not a file name ({one_line(error)})") from None
    if not target.is_relative_to(path.resolve()):
        raise PackageError(f"{path}: {shown(name)} leads out of the package; it is refused")
    return path / name
