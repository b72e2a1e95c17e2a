"""Which half may import which, and what the runtime gets along without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"models": {"isoformer.export", "isoformer.runtime"}, "runtime": {"isoformer.models", "torch", "onnx"}}


def test_the_runtime_imports_neither_torch_nor_onnx():
    code = """
import importlib, pkgutil, sys
import isoformer.runtime
for module in pkgutil.walk_packages(isoformer.runtime.__path__, "isoformer.runtime."):
    importlib.import_module(module.name)
found = {name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "onnxscript", "onnx_ir", "transformers"}
assert not found, found
assert "isoformer.models" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("half", FORBIDDEN)
def test_imports_point_one_way(half):
    found = []
    for file in (ROOT / half).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.name}: {n}" for n in names for bad in FORBIDDEN[half] if f"{n}.".startswith(f"{bad}.")]
    assert not found
