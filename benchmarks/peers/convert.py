"""MiniLM's weights in a peer's form, made in the peer's environment by the peer's own tools.

python -m benchmarks.peers.convert FORM CHECKPOINT FORMS
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATION = 300


def _optimum(*arguments: str) -> None:
    command = str(Path(sys.executable).with_name("optimum-cli"))
    subprocess.run([command, *arguments], check=True)  # noqa: S603


def optimum(checkpoint: Path, forms: Path) -> None:
    """`optimum-cli export onnx`: attention taken apart."""
    arguments = ("--library", "transformers", "--task", "feature-extraction", "--model", str(checkpoint))
    _optimum("export", "onnx", *arguments, str(forms / "optimum"))


def optimised(level: str) -> Callable[[Path, Path], None]:
    """`optimum-cli onnxruntime optimize` at a level."""

    def make(_: Path, forms: Path) -> None:
        target = str(forms / f"optimum-{level}")
        _optimum("onnxruntime", "optimize", "--onnx_model", str(forms / "optimum"), f"-{level}", "-o", target)

    return make


def optimum_int8(_: Path, forms: Path) -> None:
    """`optimum-cli onnxruntime quantize`, dynamic, a scale a column, for processors with VNNI."""
    how = ("--avx512_vnni", "--per_channel", "-o", str(forms / "optimum-int8"))
    _optimum("onnxruntime", "quantize", "--onnx_model", str(forms / "optimum"), *how)


def openvino(_: Path, forms: Path) -> None:
    """OpenVINO's reading of Optimum's export; the weights stay float32."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    model = ov.convert_model(forms / "optimum/model.onnx")
    ov.save_model(model, forms / "openvino/model.xml", compress_to_fp16=False)


def openvino_int8(_: Path, forms: Path) -> None:
    """NNCF's post-training quantisation for Transformers, calibrated on sentences that are not measured."""
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino as ov  # pyright: ignore[reportMissingImports]

    with np.load(forms / "inputs/calibration.npz") as file:
        ids, mask = file["input_ids"], file["attention_mask"]

    def feeds(row: int) -> dict[str, Any]:
        here = slice(row, row + 1), slice(int(mask[row].sum()))
        return {"input_ids": ids[here], "attention_mask": mask[here], "token_type_ids": np.zeros_like(ids[here])}

    model = ov.Core().read_model(forms / "openvino/model.xml")
    data = nncf.Dataset([feeds(row) for row in range(len(ids))])
    small = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(ids))
    ov.save_model(small, forms / "openvino-int8/model.xml", compress_to_fp16=False)


def ctranslate2(checkpoint: Path, forms: Path) -> None:
    """CTranslate2's own converter; the precision is chosen when it is opened."""
    from ctranslate2.converters import TransformersConverter  # pyright: ignore[reportMissingImports]

    TransformersConverter(str(checkpoint)).convert(str(forms / "ctranslate2"))


# form → the environment in which it is made, and how; each may need the ones before it
FORMS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "optimum": ("optimum", optimum),
    "optimum-O1": ("optimum", optimised("O1")),
    "optimum-O2": ("optimum", optimised("O2")),
    "optimum-O3": ("optimum", optimised("O3")),
    "optimum-int8": ("optimum", optimum_int8),
    "openvino": ("openvino", openvino),
    "openvino-int8": ("openvino", openvino_int8),
    "ctranslate2": ("ctranslate2", ctranslate2),
}
NEEDS = {
    "optimum-O1": "optimum",
    "optimum-O2": "optimum",
    "optimum-O3": "optimum",
    "optimum-int8": "optimum",
    "openvino": "optimum",
    "openvino-int8": "openvino",
}


if __name__ == "__main__":
    FORMS[sys.argv[1]][1](Path(sys.argv[2]), Path(sys.argv[3]))
