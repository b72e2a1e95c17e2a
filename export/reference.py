"""The ONNX reference evaluator as a runtime: plain numpy, written by the authors of the standard, slow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator

from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import IsoformerError

NAME = "onnx reference evaluator"


def runner(model: Path) -> Callable[[Arrays], Arrays]:
    """Runs the graph in `model`, arrays in and arrays out. Raises IsoformerError when it cannot."""
    try:
        evaluator = ReferenceEvaluator(str(model))
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
