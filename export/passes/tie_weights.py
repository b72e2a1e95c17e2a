"""One copy of weights that stand in the graph twice: tied embeddings, layers used more than once.

Case 1: two initializers hold the same values: the second gives way to the first.
Case 2: one is the transpose of the other (a tied decoder, whose Transpose was folded): it gives way to
        a Transpose node, which ONNX Runtime fuses into the product.
Initializers of fewer than 256 values are left alone.
"""

import hashlib

import numpy as np
import onnx_ir as ir

SMALLEST = 256


def apply(model: ir.Model) -> int:
    graph = model.graph
    count = 0
    first: dict[bytes, ir.Value] = {}
    for value in sorted(graph.initializers.values(), key=lambda v: not _is_gathered(v)):
        if value.is_graph_output():
            continue  # its name is part of the edge
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is None or array.size < SMALLEST:
            continue
        original = first.setdefault(digest(array), value)
        if original is not value:
            ir.convenience.replace_all_uses_with(value, original)
        else:
            flipped = first.get(digest(array.T)) if array.ndim == 2 else None
            if flipped is None or flipped is value:
                continue
            transpose = ir.node("Transpose", [flipped], attributes={"perm": [1, 0]}, name=f"{value.name}.Transpose")
            transpose.outputs[0].name = f"{value.name}.tied"
            transpose.outputs[0].type, transpose.outputs[0].shape = value.type, value.shape
            graph.insert_before(graph[0], transpose)
            ir.convenience.replace_all_uses_with(value, transpose.outputs[0])
            first[digest(array)] = transpose.outputs[0]
        del graph.initializers[value.name]  # pyright: ignore[reportArgumentType]  # an initializer has a name
        count += 1
    return count


def _is_gathered(value: ir.Value) -> bool:
    """Tables that are looked up keep their layout; what is multiplied can be transposed."""
    return any(use.node.op_type == "Gather" for use in value.uses())


def digest(array: np.ndarray) -> bytes:
    """A fingerprint of shape, dtype and values."""
    head = f"{array.shape} {array.dtype}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).digest()
