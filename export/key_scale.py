"""Attention's scale put into the weights that its keys are made with, where keys are a product with constants.

    softmax(q · (x W + b)ᵀ · scale)   →   softmax(q · (x (W · scale) + b · scale)ᵀ)

OpenVINO otherwise multiplies every layer's keys again at each run. The product with the scale stands in the graph, so
that the weights stay the canonical graph's; whoever opens the graph computes it once.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build
from isoformer.export.edit import constant_rank, width


def apply(model: ir.Model) -> int:
    """Rewrites the Attention nodes whose keys are of their own; returns how many there were."""
    graph = model.graph
    build, count = Build(graph, "key_scale"), 0
    for node in [node for node in graph if node.op_type == "Attention" and node.domain == ""]:
        factor = _scale(node)
        if factor is not None and _into_weights(build, node.inputs[1], node, factor):
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
            count += 1
    graph.sort()
    return count


def _scale(node: ir.Node) -> float | None:
    """The factor of the scores, None where the size of a head is not known."""
    if "scale" in node.attributes:
        return node.attributes["scale"].as_float()
    key, heads = node.inputs[1], node.attributes.get("kv_num_heads")
    size = key.shape[-1] if key is not None and key.shape is not None else None
    return (size // heads.as_int()) ** -0.5 if heads is not None and isinstance(size, int) else None


def _into_weights(build: Build, key: ir.Value | None, node: ir.Node, factor: float) -> bool:
    """Whether the key's columns are made by a product, and nothing but this node reads them."""
    if key is None or [use.node for use in key.uses()] != [node] or key.is_graph_output():
        return False
    whole, split = key, key.producer()
    if split is not None and split.op_type == "Split" and split.attributes["axis"].as_int() == -1:
        whole = split.inputs[0]
    if whole is None or len(whole.uses()) != 1 or whole.is_graph_output():
        return False
    found = product_of(whole)
    parts = [key] if whole is key or split is None else list(split.outputs)
    if found is None or any(part.shape is None for part in parts):
        return False
    factors = [np.full(width(part), factor if part is key else 1, np.float32) for part in parts]
    for place, index in ((found.product, 1), (found.sum, found.bias)):
        if place is not None:
            scaled = build("Mul", place.inputs[index], build.constant(np.concatenate(factors)))
            place.replace_input_with(index, scaled)
    return True


@dataclass(frozen=True)
class Product:
    """A product with a constant table, its second input, and the sum with a constant bias, if one follows.

    bias: which input of the sum it is.
    """

    product: ir.Node
    sum: ir.Node | None = None
    bias: int = 0


def product_of(value: ir.Value | None) -> Product | None:
    """The product that makes a value, with the bias or without one; None for anything else."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("MatMul", "Add"):
        return None
    if node.op_type == "MatMul":
        return Product(node) if constant_rank(node.inputs[1]) == 2 else None
    for index in (0, 1):
        other = node.inputs[1 - index]
        before = other.producer() if other is not None else None
        if other is None or before is None or len(other.uses()) != 1 or other.is_graph_output():
            continue
        if constant_rank(node.inputs[index]) == 1 and before.op_type == "MatMul":
            return Product(before, node, index) if constant_rank(before.inputs[1]) == 2 else None
    return None
