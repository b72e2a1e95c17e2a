"""Single operators of ONNX Runtime, whose speeds decided how graphs are made (docs/decisions).

    python -m benchmarks.operators

One session at a time; medians in milliseconds, as JSON lines.
"""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from isoformer.runtime.saturation import EXACT
from isoformer.runtime.subnormals import flushed

MICROSOFT = "com.microsoft"
LENGTH, HEADS, KV_HEADS, SIZE = 512, 9, 3, 64
INPUTS, OUTPUTS = 576, 3072


def median(
    nodes: list[onnx.NodeProto], feeds: dict[str, np.ndarray], constants: dict, *, flush: bool = False, exact: str = "0"
) -> float:
    """Of 40 runs of a graph that gives y. exact: with products of 8 bits that are exact without VNNI."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(
        nodes,
        "operators",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.set_denormal_as_zero", "1" if flush else "0")
    options.add_session_config_entry(EXACT, exact)
    model = helper.make_model(graph, opset_imports=imports, ir_version=11).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(40):
        with flushed() if flush else nullcontext():  # the option is for the session's own threads
            at = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - at)
    return float(np.median(times)) * 1e3


def attention(rng: np.random.Generator) -> None:
    """Masked keys get subnormal weights: the same layer without a mask, causal, and causal with subnormals as zero."""
    widths = {"q": HEADS * SIZE, "k": KV_HEADS * SIZE, "v": KV_HEADS * SIZE}
    feeds = {name: rng.standard_normal((1, LENGTH, width)).astype(np.float32) for name, width in widths.items()}
    causal = {"mask": np.tril(np.ones((1, 1, LENGTH, LENGTH), bool))}
    for what, constants, flush in (
        ("no mask", {}, False),
        ("causal", causal, False),
        ("causal, flushed", causal, True),
    ):
        node = helper.make_node("Attention", [*feeds, *constants], ["y"], q_num_heads=HEADS, kv_num_heads=KV_HEADS)
        print(
            json.dumps({"Attention": what, "ms": round(median([node], feeds, constants, flush=flush), 3)}), flush=True
        )


def eight_bits(rng: np.random.Generator) -> None:
    """Signed and unsigned activations."""
    weight = rng.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8)
    scales = {"unit": np.float32(0.01), "scale": np.full(OUTPUTS, 0.01, np.float32)}
    for dtype, zero in ((np.int8, 0), (np.uint8, 128)):
        feeds = {"x": rng.integers(0, 127, (LENGTH, INPUTS)).astype(dtype)}
        node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "unit", "scale", "zero"], ["y"], domain=MICROSOFT)
        found = median([node], feeds, scales | {"w": weight, "zero": dtype(zero)})
        print(json.dumps({"MatMulIntegerToFloat": np.dtype(dtype).name, "ms": round(found, 3)}), flush=True)
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "unit", "scale", "zero"], ["y"], domain=MICROSOFT)
    for rows in (1, LENGTH):
        feeds = {"x": rng.integers(0, 256, (rows, INPUTS)).astype(np.uint8)}
        for exact in ("0", "1"):
            found = median([node], feeds, scales | {"w": weight, "zero": np.uint8(128)}, exact=exact)
            print(json.dumps({"rows": rows, EXACT: exact, "ms": round(found, 3)}), flush=True)


def four_bits(rng: np.random.Generator) -> None:
    """One row: no offsets, float zero points, and offsets as a product of their own."""
    blocks = INPUTS // 32
    packed = rng.integers(0, 256, (OUTPUTS, blocks, 16)).astype(np.uint8)
    constants = {"w": packed, "scale": np.full(OUTPUTS * blocks, 0.01, np.float32)}
    points = {"zero": np.full(OUTPUTS * blocks, 7.3, np.float32)}
    ones = np.kron(np.eye(blocks, dtype=np.float32), np.ones((32, 1), np.float32))
    offsets = {"ones": ones, "offset": np.full((blocks, OUTPUTS), 0.1, np.float32)}
    feeds = {"x": rng.standard_normal((1, INPUTS)).astype(np.float32)}
    attributes = {"K": INPUTS, "N": OUTPUTS, "bits": 4, "block_size": 32, "accuracy_level": 4, "domain": MICROSOFT}

    def product(inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node("MatMulNBits", inputs, [output], **attributes)

    sums = [
        product(["x", "w", "scale"], "p"),
        helper.make_node("MatMul", ["x", "ones"], ["s"]),
        helper.make_node("MatMul", ["s", "offset"], ["o"]),
        helper.make_node("Add", ["p", "o"], ["y"]),
    ]
    for what, nodes, more in (
        ("no offsets", [product(["x", "w", "scale"], "y")], {}),
        ("float zero points", [product(["x", "w", "scale", "zero"], "y")], points),
        ("offsets as a product", sums, offsets),
    ):
        print(json.dumps({"MatMulNBits": what, "ms": round(median(nodes, feeds, constants | more), 3)}), flush=True)


def one_row(rng: np.random.Generator) -> None:
    """Microseconds of one of 60 operators: products with weights of their own, so that none is in a cache; Divs."""
    blocks, count, width = INPUTS // 32, 60, INPUTS * 8 // 3
    attributes = {"K": INPUTS, "N": width, "bits": 4, "block_size": 32, "domain": MICROSOFT}
    feeds = {"x": rng.standard_normal((1, 1, INPUTS)).astype(np.float32), "p": np.ones((1, 1, 1), np.float32)}
    feeds |= {"q": rng.integers(0, 255, (1, 1, INPUTS)).astype(np.uint8)}
    shared = {"unit": np.float32(0.01), "zero": np.uint8(128)}
    shared |= {"scale": np.full(width, 0.01, np.float32), "scales": np.full(width * blocks, 0.01, np.float32)}
    bytes_ = {f"w{i}": rng.integers(-127, 128, (INPUTS, width)).astype(np.int8) for i in range(count)}
    nibbles = {f"w{i}": rng.integers(0, 256, (width, blocks, 16)).astype(np.uint8) for i in range(count)}
    scaled = ["unit", "scale", "zero"]
    cases: list[tuple[str, Callable[[int], list[str]], dict, dict[str, Any]]] = [
        ("MatMulIntegerToFloat", lambda i: ["q", f"w{i}", *scaled], bytes_, {"domain": MICROSOFT}),
        ("MatMulNBits", lambda i: ["x", f"w{i}", "scales"], nibbles, attributes | {"accuracy_level": 4}),
        ("MatMulNBits", lambda i: ["x", f"w{i}", "scales"], nibbles, attributes | {"accuracy_level": 0}),
        ("Div", lambda i: [f"y{i - 1}" if i else "x", "p"], {}, {}),
    ]
    for kind, inputs, weights, more in cases:
        nodes = [helper.make_node(kind, inputs(i), [f"y{i}"], name=str(i), **more) for i in range(count)]
        nodes.append(helper.make_node("Sum", [f"y{i}" for i in range(count)], ["y"]))
        used = {name: feeds[name] for name in feeds if any(name in node.input for node in nodes)}
        known = {name: value for name, value in shared.items() if any(name in node.input for node in nodes)}
        found = median(nodes, used, known | weights) / count * 1e3
        level = {"level": more["accuracy_level"]} if "accuracy_level" in more else {}
        print(json.dumps({"one row": kind, **level, "us": round(found, 2)}), flush=True)


if __name__ == "__main__":
    print(json.dumps({"onnxruntime": onnxruntime.__version__}))
    for measure in (attention, eight_bits, four_bits, one_row):
        measure(np.random.default_rng(0))
