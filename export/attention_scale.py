"""Attention's scale put into weights, where keys or queries are made by constants.

    softmax(q · (x W + b)ᵀ · scale)   →   softmax(q · (x (W · scale) + b · scale)ᵀ)     and as well of q

OpenVINO otherwise multiplies every layer's keys again at each run. ONNX Runtime has a product of a single row that is
the faster, but none that multiplies what it gives, so that a step reads the cache faster when queries are scaled.

A product with the scale stands in the graph, so that the weights stay the canonical graph's; whoever opens the graph
computes it once.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build
from isoformer.export.edit import array, constant_rank, width

TURNS = {"RotaryEmbedding", "Reshape", "Transpose"}  # what may stand between scaled weights and attention
NORMS = {"RMSNormalization", "LayerNormalization"}  # whose weights may be scaled


def into_keys(model: ir.Model) -> int:
    """Rewrites the Attention nodes whose keys are of their own; returns how many there were."""
    return _rewrite(Build(model.graph, "key_scale"), 1, folded=False)


def into_queries(model: ir.Model, *, folded: bool) -> int:
    """Rewrites the Attention nodes whose queries are of their own; returns how many there were.

    folded: into the weights' own numbers, which must be in memory, where they are constants and nothing made of them.
    """
    return _rewrite(Build(model.graph, "query_scale"), 0, folded=folded)


def _rewrite(build: Build, place: int, *, folded: bool) -> int:
    graph, count = build.whole, 0
    for node in [node for node in graph if node.op_type == "Attention" and node.domain == ""]:
        factor, weights = _scale(node), _weights(*_before_turns(node.inputs[place], node))
        if factor is None or not weights:
            continue
        for weight in weights:
            factors = np.where(weight.columns, factor, 1).astype(np.float32)
            old = weight.node.inputs[weight.place]
            if folded and old is not None and old.const_value is not None:
                new = build.weight(array(old) * factors, f"weight.{len(graph.initializers)}")
            else:
                new = build("Mul", old, build.constant(factors))
            weight.node.replace_input_with(weight.place, new)
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
    if key is None or key.shape is None or not isinstance(size, int):
        return None
    if heads is None:  # (B, heads, L, size)
        return size**-0.5 if len(key.shape) == 4 else None
    return (size // heads.as_int()) ** -0.5


def _before_turns(value: ir.Value | None, reader: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """What is turned, and the first node that turns it: a scale goes through those unchanged."""
    producer = value.producer() if value is not None else None
    while value is not None and producer is not None and producer.op_type in TURNS and _alone(value, reader):
        value, reader = producer.inputs[0], producer
        producer = value.producer() if value is not None else None
    return value, reader


def _alone(value: ir.Value, reader: ir.Node) -> bool:
    return [use.node for use in value.uses()] == [reader] and not value.is_graph_output()


@dataclass(frozen=True)
class Weight:
    """An input of a node, and which columns of it are scaled."""

    node: ir.Node
    place: int
    columns: np.ndarray


def _weights(value: ir.Value | None, reader: ir.Node) -> list[Weight]:
    """The constants that make a value, where nothing but `reader` reads what they make; else none."""
    if value is None or not _alone(value, reader):
        return []
    whole, split = value, value.producer()
    if split is not None and split.op_type in NORMS:
        places = [place for place, given in enumerate(split.inputs) if place and given is not None]
        known = all(constant_rank(split.inputs[place]) == 1 for place in places)
        return [Weight(split, place, np.array(True)) for place in places] if known else []
    if split is not None and split.op_type == "Split" and split.attributes["axis"].as_int() == -1:
        whole = split.inputs[0]
    if whole is None or len(whole.uses()) != 1 or whole.is_graph_output():
        return []
    found = product_of(whole)
    parts = [value] if whole is value or split is None else list(split.outputs)
    if found is None or any(part.shape is None for part in parts):
        return []
    columns = np.concatenate([np.full(width(part), part is value) for part in parts])
    places = ((found.product, 1), (found.sum, found.bias))
    return [Weight(node, place, columns) for node, place in places if node is not None]


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
