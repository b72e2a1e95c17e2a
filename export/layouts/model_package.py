"""A model package of ONNX Runtime: manifest.json, and for each graph a component with a variant for each provider.

ONNX Runtime 1.32 opens it from Python (ModelPackageContext). It takes the first variant of its provider, so there is
one a provider, at the precision that is asked for.
Sources: model_package/README.md and onnxruntime/core/session/model_package/README.md in ONNX Runtime's repository.
"""

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from isoformer.export.layouts.choice import Choice
from isoformer.export.layouts.decoders import is_shared, path_of, whole_prompts
from isoformer.export.layouts.files import TEXT_FILES, carry, place
from isoformer.runtime.package import Package

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}  # both on the processor
SESSION_OPTIONS = {"session.set_denormal_as_zero": "1"}


def write(package: Package, folder: Path, choice: Choice) -> None:
    """Fills the folder. Raises PackageError for a precision that the package does not have."""
    if choice.precision is not None:
        package.refuse_precision("cpu", choice.precision)
    components = {name: {"variants": _variants(part, folder, choice)} for name, part in package.graphs.items()}
    carry(package, folder, TEXT_FILES)
    manifest = {"schema_version": "1.0", "package_name": package.manifest["name"], "components": components}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _variants(part: Package, folder: Path, choice: Choice) -> dict[str, dict[str, Any]]:
    """Provider → the variant's description; its graph is placed."""
    found = {}
    for provider, name in PROVIDERS.items():
        precision = choice.precision if choice.precision in part.precisions(provider) else None
        variant = part.fastest(provider, precision)
        if variant is None and provider != "cpu":
            continue  # the canonical graph is no graph for it
        directory = f"{part.graph}/{provider}"
        edit = _for_whole_prompts if is_shared(part, variant) else None
        place(part, path_of(part, variant), folder / directory / FILE, edit)
        found[provider] = {
            "variant_directory": directory,
            "ep": name,
            "device": "cpu",
            "executor_info": {"ort": {"model_file": FILE, "session_options": SESSION_OPTIONS}},
        }
    return found


def _for_whole_prompts(model: ir.Model) -> None:
    whole_prompts(model.graph)
