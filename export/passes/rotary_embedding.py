"""Rotary positions as one operator.

    Concat(a * cos - b * sin, b * cos + a * sin),  a and b the halves of x    becomes    RotaryEmbedding(x, cos, sin)

Case 1: the halves are all of x's last axis.
Case 2: a last part of x passes through: Concat(the above, rest) becomes RotaryEmbedding(rotary_embedding_dim).
Case 3: below opset 23, or the angles are not one row for each token of each row of the batch: left alone.
"""

from dataclasses import dataclass

import onnx_ir as ir

from isoformer.export.edit import replace


@dataclass(frozen=True)
class Rotation:
    """x (B, H, L, D) turned by cos and sin (B, 1, L, half); `last` is the node that gives the result."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    half: int
    last: ir.Node


def apply(model: ir.Model) -> int:
    if (model.opset_imports.get("") or 0) < 23:
        return 0
    found = [rotation for node in model.graph if (rotation := _match(node)) is not None]
    tables: dict[ir.Value, ir.Value] = {}
    for rotation in found:
        _rewrite(model.graph, rotation, tables)
    return len(found)


def _match(node: ir.Node) -> Rotation | None:
    if node.op_type != "Concat" or node.attributes["axis"].as_int() not in (-1, 3) or len(node.inputs) != 2:
        return None
    first, second = (_made_by(value, op) for value, op in zip(node.inputs, ("Sub", "Add"), strict=True))
    if first is None or second is None:
        return None
    products = [_made_by(value, "Mul") for value in (*first.inputs, *second.inputs)]
    if None in products:
        return None
    (a, cos), (b, sin), (b2, cos2), (a2, sin2) = (product.inputs for product in products if product is not None)
    if a is None or b is None or cos is None or sin is None or (a, cos, b, sin) != (a2, cos2, b2, sin2):
        return None
    left, right = _slice(a), _slice(b)
    if left is None or right is None or left[0] is not right[0]:
        return None
    x, half = left[0], left[2]
    if left[1:] != (0, half) or right[1:3] != (half, 2 * half) or x.shape is None or len(x.shape) != 4:
        return None
    batch, length = x.shape[0], x.shape[2]
    if any(table.shape is None or not _same(table.shape, (batch, 1, length, half)) for table in (cos, sin)):
        return None
    last = _whole(node, x, half)
    return None if last is None else Rotation(x, cos, sin, half, last)


def _same(shape: ir.Shape, wanted: tuple[object, ...]) -> bool:
    """Whether the sizes are those; two that nobody knows are not."""
    known = all(isinstance(size, int) or size.value for size in shape)
    return known and len(shape) == len(wanted) and all(a == b for a, b in zip(shape, wanted, strict=True))


def _whole(node: ir.Node, x: ir.Value, half: int) -> ir.Node | None:
    """The node that gives all of x's dimensions: this one, or the Concat that adds those that are not turned."""
    size = x.shape[3] if x.shape is not None else None
    if size == 2 * half:
        return node
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Concat" or len(uses[0].node.inputs) != 2 or uses[0].idx != 0:
        return None
    rest = _slice(uses[0].node.inputs[1])
    fits = rest is not None and rest[0] is x and rest[1] == 2 * half and isinstance(size, int) and rest[2] >= size
    return uses[0].node if fits else None


def _slice(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, start, stop) of a Slice, or of a Slice of a Slice, along the last of four axes with step 1."""
    node = _made_by(value, "Slice")
    if node is None or node.inputs[0] is None:
        return None
    numbers = [_number(value) for value in node.inputs[1:]]
    if None in numbers or numbers[2] not in (3, -1) or (len(numbers) == 4 and numbers[3] != 1):
        return None
    x, start, stop = node.inputs[0], numbers[0], numbers[1]
    size = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
    if start is None or stop is None or not isinstance(size, int):
        return None
    outer = _slice(x)
    if outer is not None:
        return outer[0], outer[1] + start, min(outer[1] + stop, outer[2])
    return x, start, min(stop, size)


def _number(value: ir.Value | None) -> int | None:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return int(constant.numpy().reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _rewrite(graph: ir.Graph, rotation: Rotation, tables: dict[ir.Value, ir.Value]) -> None:
    cos, sin = (_table(graph, value, tables) for value in (rotation.cos, rotation.sin))
    size = rotation.x.shape[3] if rotation.x.shape is not None else None
    attributes = {} if size == 2 * rotation.half else {"rotary_embedding_dim": 2 * rotation.half}
    node = ir.node("RotaryEmbedding", [rotation.x, cos, sin], attributes=attributes)
    replace(rotation.last.outputs[0], node.outputs[0])
    graph.insert_before(rotation.last, node)


def _table(graph: ir.Graph, value: ir.Value, tables: dict[ir.Value, ir.Value]) -> ir.Value:
    """(B, 1, L, half) → (B, L, half), once for all layers; right behind the node that made it."""
    if value not in tables:
        axis = ir.Value(name=f"{value.name}_axis", const_value=ir.tensor([1]))
        graph.register_initializer(axis)
        node = ir.node("Squeeze", [value, axis])
        shape = list(value.shape) if value.shape is not None else []
        node.outputs[0].name, node.outputs[0].type = f"{value.name}_flat", value.type
        node.outputs[0].shape = ir.Shape([shape[0], *shape[2:]])
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(producer, node)
        tables[value] = node.outputs[0]
    return tables[value]
