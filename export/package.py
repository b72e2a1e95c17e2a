"""Writes packages: manifest, golden vectors, grid, model card. A folder appears whole or not at all."""

import contextlib
import glob
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from isoformer.export import golden as vectors
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence
from isoformer.export.variants import Made
from isoformer.models.signature import Signature
from isoformer.runtime import decoding, gates, padding, tasks
from isoformer.runtime.onnx_file import operators
from isoformer.runtime.package import MANIFEST, MODEL, SCHEMA, VARIANTS, sha256
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, Comparison, Report, by_mask_and_length
from isoformer.runtime.verify import GRID_FILE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MASK_CONTRACT = 1
LOCK = ".lock"  # in a folder that is being filled, beside what is filled


@contextlib.contextmanager
def staged(path: Path, *, force: bool, marker: str = MANIFEST) -> Iterator[Path]:
    """A folder to fill, beside `path`; it becomes `path` at the end, and nothing remains of it after an error.

    What a killed process left of one for the same `path` is removed. Raises ExportError as `refuse_taken` does.
    """
    refuse_taken(path, force=force, marker=marker)
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path.parent} cannot be written to: {error.strerror}") from None
    folder, lock = beside / path.name, None
    try:
        lock = _lock(beside)
        folder.mkdir()
        yield folder
        refuse_taken(path, force=force, marker=marker)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
            path.rename(old / path.name)
            try:
                folder.rename(path)
            except OSError:
                (old / path.name).rename(path)
                raise
            finally:
                shutil.rmtree(old)
        else:
            folder.rename(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if lock is not None:
            lock.close()


def _lock(beside: Path) -> IO[str] | None:
    """Locks the folder until the file is closed or the process ends, however; None where files have no locks.

    The lock is taken before its file has the name, so no other process sees it open.
    """
    if fcntl is None:
        return None
    file = (beside / f"{LOCK}-new").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(file.name).rename(beside / LOCK)
    except OSError:  # the folder will then be nobody's to remove
        file.close()
        return None
    return file


def _remove_left(path: Path) -> None:
    """Removes the folders beside `path` that `staged` made and whose process is gone, so that nobody has the lock."""
    if fcntl is None:
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError), (left / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)


def refuse_taken(path: Path, *, force: bool, marker: str = MANIFEST) -> None:
    """Raises ExportError unless `path` is free, or holds what may be replaced.

    marker: a file that says what the folder is: a package's manifest, or that of a layout.
    """
    what = "a package" if marker == MANIFEST else "a converted package"
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if not (path / marker).is_file():
        raise ExportError(f"{path} exists and is not {what}; choose another place")
    if not force:
        raise ExportError(f"{path} holds {what} already; --force replaces it")


@dataclass(frozen=True)
class Part:
    """One graph that has been measured, and its variants."""

    signature: Signature
    graph: ir.Model
    evidence: Evidence
    made: Made


def write(
    folder: Path,
    parts: dict[str, Part],
    task: dict[str, Any] | None,
    opset: int,
    provenance: dict[str, Any],
    preferred: str,
    name: str,
) -> None:
    """Everything but the graphs themselves and the carried files, the manifest last."""
    records = {graph: _records(folder, graph, part, opset, preferred) for graph, part in parts.items()}
    manifest = {
        "schema": SCHEMA,
        "name": name,
        **provenance,
        "task": task,
        "mask_contract": MASK_CONTRACT,
        "versions": {
            "python": platform.python_version(),
            **{
                package: version(package)
                for package in ("isoformer", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")
            },
            "onnxruntime": _onnxruntime_version(),
        },
        **(records[MODEL] if list(records) == [MODEL] else {"graphs": records}),
    }
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    manifest["files"] = {file: sha256(folder / file) for file in names}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _records(folder: Path, name: str, part: Part, opset: int, preferred: str) -> dict[str, Any]:
    """The manifest's records of one graph, whose golden vectors and grid are written."""
    signature, evidence, made = part.signature, part.evidence, part.made
    beside = folder if name == MODEL else folder / name
    beside.mkdir(exist_ok=True)
    golden = {}
    for number, (case, (inputs, outputs)) in enumerate(evidence.golden.items()):
        target = beside / f"test_data_set_{number}"
        vectors.save(target, "input", signature.inputs, inputs)
        vectors.save(target, "output", signature.outputs, outputs)
        golden[target.relative_to(folder).as_posix()] = evidence.records[case]
    for entry in made.variants.values():
        if zero := entry.get("zero_at_padding"):
            entry |= _unpadded_vectors(folder, name, entry, zero, evidence, signature)
    np.savez_compressed(beside / GRID_FILE, **evidence.grid_arrays)  # pyright: ignore[reportArgumentType]
    if made.arrays:
        np.savez_compressed(beside / decoding.FILE, **made.arrays)  # pyright: ignore[reportArgumentType]
    precision = "float16" if any(spec.dtype == "float16" for spec in signature.outputs) else "float32"
    return {
        "precision": precision,
        "preferred": preferred if f"cpu-{preferred}" in made.variants and preferred != "float32" else precision,
        "variants": made.variants,
        "decoding": made.decoding,
        "opset": opset,
        "signature": signature.to_dict(),
        "operators": dict(sorted(operators(folder / f"{name}.onnx").items())),
        "parameters": sum(int(np.prod(v.shape.numpy())) for v in part.graph.graph.initializers.values() if v.shape),
        "tolerances": evidence.tolerances,
        "parity": parity_table(evidence.comparisons),
        "notes": sorted({*evidence.notes, *made.notes}),
        "golden": golden,
        "golden_cases": dict(zip(golden, evidence.golden, strict=True)),
        "grid": evidence.grid,
    }


def _unpadded_vectors(
    folder: Path, name: str, entry: dict[str, Any], zero: Sequence[str], evidence: Evidence, signature: Signature
) -> dict[str, Any]:
    """Writes the golden vectors of a graph whose outputs are 0 at padding, and what its entry in the manifest says."""
    plain, own = RuntimeSignature.read(signature.to_dict()), entry["precision"] == "float32"
    at = f"{VARIANTS}/{name}" if name != MODEL else VARIANTS
    golden, cases = {}, {}
    for number, (case, (inputs, outputs)) in enumerate(evidence.golden.items()):
        target = f"{at}/test_data_set_{number}"
        vectors.save(folder / target, "input", signature.inputs, inputs)
        vectors.save(folder / target, "output", signature.outputs, padding.without(plain, zero, inputs, outputs))
        cases[target] = case
        golden[target] = {
            output: record if own else record | {"bound": entry["tolerances"][output]["absolute"]}
            for output, record in evidence.records[case].items()
        }
    return {"golden": golden, "golden_cases": cases}


def parity_table(comparisons: list[Comparison]) -> dict[str, Any]:
    """Runtime → cases, values and the largest error as a share of the bound, whole and by mask and length."""
    table = {}
    for runtime in dict.fromkeys(c.runtime for c in comparisons):
        report = Report([c for c in comparisons if c.runtime == runtime])
        table[runtime] = {
            "cases": report.cases,
            "values": report.values,
            "worst_share_of_bound": report.worst(),
            "by_mask_and_length": by_mask_and_length(report.comparisons),
        }
    return table


def card(manifest: dict[str, Any]) -> str:
    """The model card: what the package is, how it is called, how closely it was checked."""
    graphs = manifest.get("graphs", {MODEL: manifest})
    task = manifest["task"] or {}
    run = f"isoformer run . {tasks.example(task)}     # task: {task['name']}\n" if "name" in task else ""
    first, opened = next(iter(graphs)), 'Session(".")'
    if len(graphs) > 1:
        opened = f'Graphs(".")["{first}"]'
    parameters = sum(records["parameters"] for records in graphs.values())
    sections = "\n".join(_card_of_graph(name, records, len(graphs)) for name, records in graphs.items())
    return f"""# {manifest["name"]}

An isoformer package: {parameters:,} parameters, {graphs[first]["precision"]}, ONNX opset \
{graphs[first]["opset"]}, standard operators only.

```
{run}isoformer verify .              # replays the parity checks
```
```python
from isoformer.runtime import {opened.partition("(")[0]}

outputs = {opened}.run({{"{graphs[first]["signature"]["inputs"][0]["name"]}": ...}})
```

A mask holds 1 where a key takes part. A query that is left without any key attends to nothing: its
attention is exactly zero.

The reference of the parity tables is the PyTorch model in float64. The bound of each case is {FACTOR:g} times the \
error of PyTorch's
own float32 on the same inputs; the last column is the largest error as a share of that bound.
{sections}
Latency on your machine: `isoformer bench .`
"""


def _card_of_graph(name: str, records: dict[str, Any], count: int) -> str:
    """The card's part on one graph: its edge and its parity."""
    rows = "\n".join(
        f"| `{spec['name']}` | {direction} | {spec['dtype']} | {', '.join(str(a) for a in spec['axes'])} |"
        for direction in ("inputs", "outputs")
        for spec in records["signature"][direction]
    )
    parity = "\n".join(
        f"| {runtime} | {entry['cases']} | {entry['values']:,} | {entry['worst_share_of_bound']:.2f} |"
        for runtime, entry in records["parity"].items()
    )
    title = f"\n## {name}.onnx\n" if count > 1 else ""
    return f"""{title}
| tensor | | dtype | axes |
|---|---|---|---|
{rows}

{"##" if count == 1 else "###"} Parity

| runtime | cases | values | largest share |
|---|---|---|---|
{parity}
{_variants(records)}"""


def _variants(manifest: dict[str, Any]) -> str:
    """The card's part on the other graphs; nothing where there are none."""
    rows = []
    for name, variant in manifest["variants"].items():
        quality = gates.line(variant["gate"]) if "gate" in variant else "as the canonical graph"
        cache = variant["cache"] + (f", {variant['cache_dtype']}" if "cache_dtype" in variant else "")
        cache += ", reproducible" if variant.get("reproducible") else ""
        rows.append(f"| {name} | {cache} | {quality} |")
    if not rows:
        return ""
    return "\n".join(
        [
            "",
            f"## Variants\n\n`isoformer run` takes {manifest['preferred']} unless `--precision` says otherwise. "
            "Quality is measured on the text that comes with isoformer, or on the text or recording that was given at "
            "export: a perplexity is that of its own tokens, or where a model answers, of float32's answers.\n",
            "| variant | cache | quality |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__
