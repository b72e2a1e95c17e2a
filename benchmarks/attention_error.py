"""How exact the Attention operator of ONNX Runtime is beside PyTorch's, by the width of a head and the number of keys.

    python -m benchmarks.attention_error

JSON lines: the largest error of the float32 outputs against float64, on the CPU, the median of 8 seeds.
"""

import json

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

WIDTHS, KEYS, HEADS, SEEDS = (8, 16, 32, 64), (128, 512, 1024, 2048, 4096), 2, 8


def session(scale: float) -> onnxruntime.InferenceSession:
    """Attention alone, queries, keys and values in, without a mask."""
    edge = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, HEADS, None, None]) for name in "qkvy"}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=scale)
    graph = helper.make_graph([node], "attention", [edge[name] for name in "qkv"], [edge["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def errors(runtime: onnxruntime.InferenceSession, width: int, keys: int, seed: int) -> tuple[float, float]:
    """Of ONNX Runtime and of PyTorch, on the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, keys, width, generator=generator) for _ in "qkv")
    q /= 10  # as in a model that is not trained: every key counts about the same
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).numpy()
    ours = np.asarray(runtime.run(None, {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()})[0])
    theirs = F.scaled_dot_product_attention(q, k, v).numpy()
    return float(np.abs(ours - exact).max()), float(np.abs(theirs - exact).max())


def main() -> None:
    for width in WIDTHS:
        runtime = session(width**-0.5)
        for keys in KEYS:
            found = np.array([errors(runtime, width, keys, seed) for seed in range(SEEDS)])
            ours, theirs = np.median(found, 0)
            line = {"head_size": width, "keys": keys, "onnxruntime": float(ours), "pytorch": float(theirs)}
            print(json.dumps({**line, "ratio": round(float(ours / theirs), 2)}), flush=True)


if __name__ == "__main__":
    main()
