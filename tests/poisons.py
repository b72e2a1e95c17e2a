"""Packages changed in the two ways that every runtime must notice: one weight, and a mask that is not looked at."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from isoformer.runtime.package import MANIFEST, sha256

WEIGHT = "blocks.1.feed_forward.up.weight"


def change_weight(package: Path, name: str = WEIGHT) -> None:
    """Adds 1e-2 to one number of the weight."""
    model = onnx.load(package / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[5] += np.float32(1e-2)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    _save(package, model)


def ignore_mask(package: Path) -> None:
    """Takes the mask away from every Attention, as a runtime would that does not know the input."""
    model = onnx.load(package / "model.onnx")
    layers = [node for node in model.graph.node if node.op_type == "Attention"]
    assert layers
    for node in layers:
        assert node.input[3]
        node.input[3] = ""
    _save(package, model)


def sign(package: Path) -> None:
    """Writes the digests anew, as somebody who knows the format would."""
    manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {name: sha256(package / name) for name in manifest["files"]}
    (package / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _save(package: Path, model: onnx.ModelProto) -> None:
    onnx.save(model, package / "model.onnx")
    sign(package)
