"""Runs the tools: in PyTorch, in ONNX Runtime releases, in the reference evaluator."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from benchmarks.masks import bert, ort
from benchmarks.masks.problem import Array, judge
from benchmarks.masks.tools import OptimumTool, Tool


def measure_eager(tool: Tool) -> dict[str, Any]:
    """The tool in PyTorch on the CPU."""
    module = tool.make().to(getattr(torch, tool.dtype)).eval()
    outputs: dict[str, Array | str] = {}
    for name in tool.problems():
        tensors = [as_tensor(array, tool.dtype) for array in tool.feeds(name).values()]
        try:
            with torch.no_grad():
                outputs[name] = module(*tensors).double().numpy()
        except (RuntimeError, ValueError) as error:
            outputs[name] = first_line(error)
    return judge(outputs, tool.dtype)


def as_tensor(array: Array, dtype: str) -> Tensor:
    """The array; bfloat16, which torch does not take from numpy, by way of float64."""
    if array.dtype.kind in "bi":
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float64)).to(getattr(torch, dtype))


def write_graphs(tools: list[Tool], folder: Path) -> dict[str, str]:
    """Graphs and inputs for `ort`, by number; what could not be made, with the reason."""
    failed = {}
    for number, tool in enumerate(tools):
        for name in tool.problems():
            np.savez(folder / f"{number}.{name}.npz", **tool.feeds(name))  # pyright: ignore[reportArgumentType]
        try:
            onnx.save(tool.make(), folder / f"{number}.onnx")
        except Exception as error:  # an exporter's failure is a result here
            failed[str(number)] = first_line(error)
    return failed


def measure_graphs(tools: list[Tool], failed: dict[str, str], folder: Path, python: str) -> Iterator[dict[str, Any]]:
    """The graphs of the folder in the ONNX Runtime of that Python."""
    for left in (*folder.glob("*.npy"), *folder.glob("*.error")):
        left.unlink()
    subprocess.run([python, ort.__file__, str(folder)], check=False)  # noqa: S603

    def output(feeds: Path) -> Array | str:
        said = feeds.with_suffix(".error")
        if said.exists():
            return failed.get(feeds.name.split(".")[0]) or first_line(said.read_text("utf-8"))
        return np.load(feeds.with_suffix(".npy")) if feeds.with_suffix(".npy").exists() else "the process stopped"

    for number, tool in enumerate(tools):
        yield judge({name: output(folder / f"{number}.{name}.npz") for name in tool.problems()}, tool.dtype)


def measure_reference(tool: Tool) -> dict[str, Any]:
    """A graph in ONNX's reference evaluator."""
    evaluator = ReferenceEvaluator(tool.make())
    outputs: dict[str, Array | str] = {}
    for name in tool.problems():
        with np.errstate(all="ignore"):
            outputs[name] = np.asarray(evaluator.run(None, dict(tool.feeds(name)))[0])  # pyright: ignore
    return judge(outputs, tool.dtype)


def install(folder: Path, *requirements: str) -> str:
    """The Python of a new virtual environment that holds them."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "-qq", *requirements]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        sys.exit(f"pip cannot install {' '.join(requirements)}; what it said is above")
    return str(python)


def optimum_tools(folder: Path) -> list[Tool]:
    """BERT as optimum-onnx exports it, in a virtual environment with the transformers that it takes."""
    torch_release = "torch==" + torch.__version__.split("+")[0]
    python = install(folder / "optimum", "optimum-onnx", "transformers<4.58", torch_release, "onnxruntime")
    tools = [
        OptimumTool(f"optimum-onnx BERT {kind}", partial(onnx.load, folder / kind / "model.onnx"), "keys")
        for kind in bert.KINDS
    ]
    np.save(folder / "embeddings.npy", tools[0].table())
    command = [python, bert.__file__, str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # noqa: S603
        sys.exit("optimum-onnx failed")
    opset = max(entry.version for entry in tools[0].make().opset_import if not entry.domain)
    return [replace(tool, opset=opset) for tool in tools]


def first_line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
