"""What runs a model file on inputs and gives back all its outputs: for bisecting, where no package is at hand."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from isoformer.runtime.bisect import Arrays, Engine
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.providers import open_session
from isoformer.runtime.runners import programs
from isoformer.runtime.session import first_line


def here(model: Path, weights: Path, inputs: Arrays) -> Arrays:
    """This Python's onnxruntime on the CPU."""
    try:
        session = open_session(str(model), weights=str(weights.absolute()))
        names = [value.name for value in session.get_outputs()]
        found = session.run(names, {value.name: inputs[value.name] for value in session.get_inputs()})
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        raise IsoformerError(first_line(error)) from error
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def reference(model: Path, weights: Path, inputs: Arrays) -> Arrays:
    """ONNX's reference evaluator, which needs onnx."""
    from isoformer.runtime.console import export_half

    return export_half("reference").runner(model, weights)(inputs)


def of(name: str) -> Engine:
    """The engine of a runtime: ort, reference, openvino or ort==RELEASE. Raises IsoformerError for another."""
    if name == "ort":
        return here
    if name == "reference":
        return reference
    if name not in ("openvino",) and not name.startswith("ort=="):
        raise IsoformerError(f"the values between the nodes cannot be had from {name}; use ort, ort==RELEASE, openvino")
    command = programs.command(name, programs.say)

    def run(model: Path, weights: Path, inputs: Arrays) -> Arrays:
        with tempfile.TemporaryDirectory() as folder:
            given, taken = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            np.savez(given, **inputs)  # pyright: ignore[reportArgumentType]
            words = [*command, "--values", "--weights", str(weights.absolute()), str(model), str(given), str(taken)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                raise IsoformerError(f"{name}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1][:300]}")
            with np.load(taken, allow_pickle=False) as arrays:
                names = [str(value) for value in arrays["names"]]
                return {value: arrays[str(number)] for number, value in enumerate(names)}

    return run
