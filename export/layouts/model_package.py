"""A model package of ONNX Runtime: manifest.json, and for each graph a component with a variant for each provider.

ONNX Runtime 1.32 opens it from Python (ModelPackageContext). A decoder's variant is a folder of onnxruntime-genai
besides, which opens the package as well.
Sources: model_package/README.md and onnxruntime/core/session/model_package/README.md in ONNX Runtime's repository.
"""

import json
from pathlib import Path
from typing import Any

from isoformer.export.layouts import genai
from isoformer.export.layouts.choice import Choice
from isoformer.export.layouts.decoders import is_shared, path_of
from isoformer.export.layouts.files import TEXT_FILES, carry, place
from isoformer.runtime.package import Package

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
SESSION_OPTIONS = {"session.set_denormal_as_zero": "1"}


def write(package: Package, folder: Path, choice: Choice) -> None:
    """Fills the folder. Raises PackageError for a precision that the package does not have."""
    components = {name: {"variants": _variants(part, folder / name, choice)} for name, part in package.graphs.items()}
    if package.task.get("name") != "generate":
        carry(package, folder, TEXT_FILES)
    manifest = {"schema_version": "1.0", "package_name": package.manifest["name"], "components": components}
    for name, component in components.items():
        for variant, body in component["variants"].items():
            body["variant_directory"] = f"{name}/{variant}"
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _variants(part: Package, folder: Path, choice: Choice) -> dict[str, dict[str, Any]]:
    """One for each provider, since ONNX Runtime takes the first that its provider runs."""
    chosen = part.fastest("cpu", choice.precision)
    if is_shared(part, chosen) and part.task.get("name") == "generate":
        genai.write(part, folder / "cpu", choice)
        return {"cpu": _variant("cpu")}
    place(part, path_of(part, chosen), folder / "cpu" / FILE)
    found = {"cpu": _variant("cpu")}
    if openvino := part.fastest("openvino") if choice.precision is None else None:
        place(part, path_of(part, openvino), folder / "openvino" / FILE)
        found["openvino"] = _variant("openvino")
    return found


def _variant(provider: str) -> dict[str, Any]:
    info = {"model_file": FILE, "session_options": SESSION_OPTIONS}
    return {"ep": PROVIDERS[provider], "device": "cpu", "executor_info": {"ort": info}}
