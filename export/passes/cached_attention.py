"""The cache as inputs and outputs of Attention itself, without a Concat in front.

    Concat(past_key, k) → present_key ┐
    Concat(past_value, v) → present_value ├ Attention(q, …)    becomes    Attention(q, k, v, mask, past_key, past_value)
                                      ┘

Case 1: key and value are both a Concat of two along the lengths that the graph gives out, and no other node
        reads them: rewritten.
Case 2: anything else, such as learned keys in front of the others: left alone. ONNX Runtime takes no past
        whose present nobody wants.
"""

import onnx_ir as ir

from isoformer.export.edit import replace


def apply(model: ir.Model) -> int:
    return sum(_rewrite(model.graph, node) for node in list(model.graph) if _fits(node))


def _fits(node: ir.Node) -> bool:
    return node.op_type == "Attention" and node.domain == "" and len(node.inputs) <= 4 and _is_rank_4(node.inputs[0])


def _is_rank_4(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 4


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    key, value = _concat(node.inputs[1]), _concat(node.inputs[2])
    if key is None or value is None or key is value:
        return False  # case 2
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    cached = ir.node(
        "Attention",
        [node.inputs[0], key.inputs[1], value.inputs[1], mask, key.inputs[0], value.inputs[0]],
        attributes=dict(node.attributes),
        num_outputs=3,
        name=node.name,
    )
    graph.insert_before(node, cached)
    olds = (node.outputs[0], key.outputs[0], value.outputs[0])
    for old, new in zip(olds, cached.outputs, strict=True):
        replace(old, new)
    graph.remove([node, key, value], safe=True)
    return True


def _concat(value: ir.Value | None) -> ir.Node | None:
    """The Concat of two tensors along the third of four axes that gives the value, if only one node reads it."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Concat" or len(node.inputs) != 2 or not _is_rank_4(value):
        return None
    alone = len(list(value.uses())) == 1 and value.is_graph_output()
    return node if alone and node.attributes["axis"].as_int() in (2, -2) else None
