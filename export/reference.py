"""The ONNX reference evaluator as a runtime: plain numpy, written by the authors of the standard, slow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx.reference import ReferenceEvaluator

from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import IsoformerError

NAME = "onnx reference evaluator"


def runner(model: Path, weights: Path | None = None) -> Callable[[Arrays], Arrays]:
    """Runs the graph in `model`, arrays in and arrays out. weights: the folder of its external data, if another one.

    Raises IsoformerError when it cannot.
    """
    try:
        evaluator = ReferenceEvaluator(_whole(model, weights or model.parent))
    except Exception as error:  # whatever a malformed file makes of the parser
        raise IsoformerError(f"the ONNX reference evaluator cannot open {model}: {error}") from error

    def run(inputs: Arrays) -> Arrays:
        try:
            with np.errstate(all="ignore"):  # a softmax over -inf is meant, and settled behind it
                outputs = evaluator.run(None, inputs)
        except Exception as error:  # it raises what numpy raises
            raise IsoformerError(f"the ONNX reference evaluator failed: {error}") from error
        return {str(name): np.asarray(array) for name, array in zip(evaluator.output_names, outputs, strict=True)}

    return run


def _whole(path: Path, weights: Path) -> onnx.ModelProto:
    """The model with its weights in it, which stand in the folder `weights`.

    onnx itself refuses a file of weights that stands in a second folder too, where `isoformer convert` has put a link.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in filter(uses_external_data, model.graph.initializer):
        place = ExternalDataInfo(tensor)
        with (weights / place.location).open("rb") as file:
            file.seek(place.offset or 0)
            tensor.raw_data = file.read(-1 if place.length is None else place.length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model
