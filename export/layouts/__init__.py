"""Packages in the folders that other programs open. Weights are hard links where the file system has them.

triton            a model repository of NVIDIA's Triton Inference Server
transformers.js   a model folder of the library of that name
genai             a model folder of onnxruntime-genai
ort               a model package of ONNX Runtime
"""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from isoformer.export.errors import ExportError
from isoformer.export.layouts import genai, model_package, transformers_js, triton
from isoformer.export.layouts.choice import Choice
from isoformer.export.package import refuse_taken, staged
from isoformer.runtime.package import Package, load

LAYOUTS: dict[str, Callable[[Package, Path, Choice], None]] = {
    "triton": triton.write,
    "transformers.js": transformers_js.write,
    "genai": genai.write,
    "ort": model_package.write,
}
__all__ = ["LAYOUTS", "Choice", "check", "convert"]
MARKER = "isoformer-layout.json"  # says that a folder was made here, so that --force may replace it


def convert(package: str | Path, output: str | Path, layout: str, choice: Choice | None = None) -> Path:
    """Writes the package at `package` to `output` in a layout, whole or not at all; returns `output`.

    choice: precision, provider, and whether another layout's folder at `output` is replaced.
    Raises PackageError for a broken package, and ExportError where the layout does not take it or the place is taken.
    """
    choice, output = choice or Choice(), Path(output)
    check(output, layout, choice)
    source = load(package)
    _refuse_nested(source.path, output)
    with staged(output, force=choice.force, marker=MARKER) as folder:
        LAYOUTS[layout](source, folder, choice)
        record = {"layout": layout, "package": source.manifest["name"], "isoformer": version("isoformer")}
        (folder / MARKER).write_text(json.dumps(record) + "\n", encoding="utf-8")
    return output


def check(output: Path, layout: str, choice: Choice) -> None:
    """Raises ExportError for a layout that there is not, a provider that it has no use for, a place that is taken."""
    if layout not in LAYOUTS:
        raise ExportError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if choice.provider != "cpu" and layout != "triton":
        raise ExportError(f"--provider {choice.provider} is for triton; the layout {layout} has none of its own")
    if choice.provider not in ("cpu", "cuda"):
        raise ExportError(f"provider {choice.provider!r} is not one of cpu, cuda: Triton has no other for these graphs")
    refuse_taken(output, force=choice.force, marker=MARKER)


def _refuse_nested(package: Path, output: Path) -> None:
    one, other = package.resolve(), output.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ExportError(f"{output} and {package} lie within one another; choose another place")
