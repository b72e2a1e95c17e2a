"""Attention on (B, L, H * D) tensors instead of (B, H, L, D) ones, which drops the Transposes around it.

    Reshape → Transpose ┐
    Reshape → Transpose ├→ Attention → Transpose → Reshape    becomes    Attention(q_num_heads, kv_num_heads)
    Reshape → Transpose ┘

Case 1: all of it is there: the node is rewritten. A past and the presents stay as they are.
Case 2: a RotaryEmbedding stands between Transpose and Attention: it goes the same way.
Case 3: an input or the output is something else (say, attend() called on tensors of four axes): left alone.
Case 4: the scores are an output in use: left alone.
"""

from typing import Any

import onnx_ir as ir

from isoformer.export.edit import replace

_SWAP = (0, 2, 1, 3)
KEPT = ("is_causal", "scale", "softcap", "softmax_precision")


def apply(model: ir.Model) -> int:
    count = 0
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == "":
            count += _rewrite(model.graph, node)
    return count


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    if len(node.inputs) > 6 or any(output.uses() or output.is_graph_output() for output in node.outputs[3:]):
        return False  # case 4
    turns = [_rotary(value) for value in node.inputs[:3]]
    pairs = zip(turns, node.inputs, strict=False)
    sources = [_source(value if turn is None else turn.inputs[0]) for turn, value in pairs]
    merged = _merged_output(node.outputs[0])
    if merged is None or None in sources:
        return False  # case 3
    shapes = [value.shape for value in node.inputs[:3] if value is not None and value.shape is not None]
    heads: list[Any] = [shape[1] for shape in shapes if isinstance(shape[1], int)]
    if len(heads) != 3:
        return False
    for i, turn in enumerate(turns):
        if turn is not None:
            sources[i] = _turn(graph, node, turn, sources[i], heads[i])
    kept: dict[str, Any] = {name: node.attributes[name] for name in KEPT if name in node.attributes}
    flat = ir.node(
        "Attention",
        [*sources, *node.inputs[3:]],
        attributes={"q_num_heads": heads[0], "kv_num_heads": heads[1], **kept},
        num_outputs=min(3, len(node.outputs)),
        name=node.name,
    )
    graph.insert_before(node, flat)
    for old, new in zip((merged, *node.outputs[1:3]), flat.outputs, strict=True):
        replace(old, new)
    _remove_unused(graph, merged.producer())
    return True


def _rotary(value: ir.Value | None) -> ir.Node | None:
    """The RotaryEmbedding on four axes that gives the value, if only the Attention reads it."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "RotaryEmbedding" or _only_use(value) is None:
        return None
    return node if "num_heads" not in node.attributes and len(node.inputs) == 3 else None


def _turn(graph: ir.Graph, before: ir.Node, turn: ir.Node, source: ir.Value | None, heads: int) -> ir.Value:
    """The same RotaryEmbedding on (B, L, H * D)."""
    attributes: dict[str, Any] = {**turn.attributes, "num_heads": heads}
    flat = ir.node("RotaryEmbedding", [source, *turn.inputs[1:]], attributes=attributes)
    if source is not None:
        flat.outputs[0].type, flat.outputs[0].shape = source.type, source.shape
    graph.insert_before(before, flat)
    return flat.outputs[0]


def _source(value: ir.Value | None) -> ir.Value | None:
    """x where value is Transpose(Reshape(x)) from (B, L, H * D) to (B, H, L, D)."""
    transpose = value.producer() if value is not None else None
    if transpose is None or transpose.op_type != "Transpose" or tuple(_perm(transpose)) != _SWAP:
        return None
    reshape = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if reshape is None or reshape.op_type != "Reshape":
        return None
    x, split = reshape.inputs[0], reshape.outputs[0].shape
    if x is None or x.shape is None or split is None or len(x.shape) != 3 or not _same(x.shape, split):
        return None
    return x


def _merged_output(value: ir.Value) -> ir.Value | None:
    """y where Transpose and Reshape to (B, L, H * D) are all that becomes of the value."""
    transpose = _only_use(value)
    if transpose is None or transpose.op_type != "Transpose" or tuple(_perm(transpose)) != _SWAP:
        return None
    split = transpose.outputs[0]
    reshape = _only_use(split)
    if reshape is None or reshape.op_type != "Reshape":
        return None
    merged = reshape.outputs[0]
    if merged.shape is None or split.shape is None or len(merged.shape) != 3:
        return None
    return merged if _same(merged.shape, split.shape) else None


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _same(shape: ir.Shape, other: ir.Shape) -> bool:
    """Whether the first two sizes are equal; two that nobody knows are not."""
    known = all(isinstance(size, int) or size.value for size in shape[:2])
    return known and shape[:2] == other[:2]


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()


def _remove_unused(graph: ir.Graph, node: ir.Node | None) -> None:
    """Removes the node if nothing uses it, then in turn the nodes that fed only it."""
    if node is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    feeders = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for feeder in feeders:
        if feeder is not None and feeder.graph is graph:
            _remove_unused(graph, feeder)
