"""Writes packages: manifest, golden vectors, grid, model card. A folder appears whole or not at all."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence
from isoformer.export.variants import Made
from isoformer.models.signature import Signature
from isoformer.runtime import decoding
from isoformer.runtime.onnx_file import operators
from isoformer.runtime.package import MANIFEST, SCHEMA, sha256
from isoformer.runtime.parity import FACTOR, Comparison, Report, by_mask_and_length
from isoformer.runtime.verify import GRID_FILE

MASK_CONTRACT = 1


@contextmanager
def staged(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill, beside `path`; it becomes `path` at the end, and nothing remains of it after an error.

    Raises ExportError when `path` is taken: by something else than a package, or by one and not `force`.
    """
    refuse_taken(path, force=force)
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path.parent} cannot be written to: {error.strerror}") from None
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        refuse_taken(path, force=force)
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
        shutil.rmtree(folder, ignore_errors=True)


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raises ExportError unless `path` is free, or holds a package that may be replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise ExportError(f"{path} exists and is not a package; choose another place")
    if not force:
        raise ExportError(f"{path} holds a package already; --force replaces it")


def write(
    folder: Path,
    signature: Signature,
    graph: ir.Model,
    task: dict[str, Any] | None,
    opset: int,
    provenance: dict[str, Any],
    evidence: Evidence,
    made: Made,
    preferred: str,
    name: str,
) -> None:
    """Everything but the model itself and the carried files, the manifest last."""
    golden = {}
    for number, (case, (inputs, outputs)) in enumerate(evidence.golden.items()):
        target = folder / f"test_data_set_{number}"
        target.mkdir()
        for kind, specs, arrays in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
            for index, spec in enumerate(specs):
                tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(arrays[spec.name]), spec.name)
                (target / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString())
        golden[target.name] = evidence.grid[case]
    np.savez_compressed(folder / GRID_FILE, **evidence.grid_arrays)  # pyright: ignore[reportArgumentType]
    if made.arrays:
        np.savez_compressed(folder / decoding.FILE, **made.arrays)  # pyright: ignore[reportArgumentType]
    precision = "float16" if any(spec.dtype == "float16" for spec in signature.outputs) else "float32"
    manifest = {
        "schema": SCHEMA,
        "name": name,
        **provenance,
        "task": task,
        "precision": precision,
        "preferred": precision if preferred == "float32" else preferred,
        "variants": made.variants,
        "decoding": made.decoding,
        "opset": opset,
        "signature": signature.to_dict(),
        "mask_contract": MASK_CONTRACT,
        "operators": dict(sorted(operators(folder / "model.onnx").items())),
        "parameters": sum(int(np.prod(v.shape.numpy())) for v in graph.graph.initializers.values() if v.shape),
        "versions": {
            "python": platform.python_version(),
            **{
                package: version(package)
                for package in ("isoformer", "torch", "onnx", "onnxscript", "onnx-ir", "numpy")
            },
            "onnxruntime": _onnxruntime_version(),
        },
        "tolerances": evidence.tolerances,
        "parity": parity_table(evidence.comparisons),
        "notes": sorted({*evidence.notes, *made.notes}),
        "golden": golden,
        "grid": evidence.grid,
    }
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    manifest["files"] = {file: sha256(folder / file) for file in names}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


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
    task = (manifest["task"] or {}).get("name")
    rows = "\n".join(
        f"| `{spec['name']}` | {direction} | {spec['dtype']} | {', '.join(str(a) for a in spec['axes'])} |"
        for direction in ("inputs", "outputs")
        for spec in manifest["signature"][direction]
    )
    parity = "\n".join(
        f"| {runtime} | {entry['cases']} | {entry['values']:,} | {entry['worst_share_of_bound']:.2f} |"
        for runtime, entry in manifest["parity"].items()
    )
    run = f'isoformer run . "some text"     # task: {task}\n' if task else ""
    return f"""# {manifest["name"]}

An isoformer package: {manifest["parameters"]:,} parameters, {manifest["precision"]}, ONNX opset \
{manifest["opset"]}, standard operators only.

| tensor | | dtype | axes |
|---|---|---|---|
{rows}

A mask holds 1 where a key takes part. A query that is left without any key attends to nothing: its
attention is exactly zero.

```
{run}isoformer verify .              # replays the parity checks
```
```python
from isoformer.runtime import Session

outputs = Session(".").run({{"{manifest["signature"]["inputs"][0]["name"]}": ...}})
```

## Parity

The reference is the PyTorch model in float64. The bound of each case is {FACTOR:g} times the error of PyTorch's
own float32 on the same inputs; the last column is the largest error as a share of that bound.

| runtime | cases | values | largest share |
|---|---|---|---|
{parity}
{_variants(manifest)}
Latency on your machine: `isoformer bench .`
"""


def _variants(manifest: dict[str, Any]) -> str:
    """The card's part on the other graphs; nothing where there are none."""
    rows = []
    for name, variant in manifest["variants"].items():
        gate = variant.get("gate")
        quality = f"{gate['perplexity']:.2f} | {gate['ratio']:.3f} | {gate['agreement']:.3f}" if gate else "| |"
        rows.append(f"| {name} | {variant['cache']} | {quality} |")
    if not rows:
        return ""
    return "\n".join(
        [
            "",
            f"## Variants\n\n`isoformer run` takes {manifest['preferred']} unless `--precision` says otherwise. The "
            "perplexity is that of the text that comes with isoformer, or was given at export.\n",
            "| variant | cache | perplexity | of float32's | same likeliest token |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
