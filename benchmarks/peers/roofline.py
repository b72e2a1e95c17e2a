"""What this machine can do at most, measured: products of matrices in each precision, and reads of memory.

python -m benchmarks.peers.roofline        # one JSON object
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.measures import LINEAR_WEIGHTS

# rows, inner, columns: the model's own products at many rows, and large squares; the fastest is the peak
PRODUCTS = ((1024, 384, 1536), (1024, 1536, 384), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 1536, 1536))
SECONDS = 0.6


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of many runs."""
    run()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def torch_products(dtype: str) -> float:
    """Operations a second of torch's products."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    best = 0.0
    for rows, inner, columns in PRODUCTS:
        one, other = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((rows, inner), (columns, inner)))
        with torch.inference_mode():
            seconds = fastest(lambda one=one, other=other: torch.nn.functional.linear(one, other))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def integer_products() -> float:
    """Operations a second of ONNX Runtime's MatMulInteger, unsigned by signed numbers."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    best, rng = 0.0, np.random.default_rng(0)
    for rows, inner, columns in PRODUCTS:
        weight = rng.integers(-127, 128, (inner, columns)).astype(np.int8)
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, (rows, inner))],
            [helper.make_tensor_value_info("y", TensorProto.INT32, (rows, columns))],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.asarray(128, np.uint8), "zero")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {"x": rng.integers(0, 256, (rows, inner)).astype(np.uint8)}
        seconds = fastest(lambda session=session, feeds=feeds: session.run(None, feeds))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def read_speed(count: int) -> float:
    """Bytes a second when all cores read so many float32 numbers again and again."""
    import torch

    data = torch.ones(count)
    return data.numel() * 4 / fastest(data.sum)


def measure() -> dict[str, Any]:
    """products: operations a second by precision. memory: bytes a second of 1 GB; read: the same, or the weights'."""
    memory, weights = read_speed(2**28), read_speed(LINEAR_WEIGHTS)
    return {
        "products": {
            "float32": torch_products("float32"),
            "bfloat16": torch_products("bfloat16"),
            "int8": integer_products(),
        },
        "read": max(memory, weights),
        "memory": memory,
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
