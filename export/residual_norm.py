"""Decoders' residual and the norm behind it in one operator, which spares small steps where each costs its call.

    Add(x, y) → s ─ RMSNormalization(s, weight)    becomes    SkipSimplifiedLayerNormalization(x, y, weight) → norm, s

Case 1: the norm is along the last axis and what it reads is the sum of two activations: rewritten.
Case 2: the sum has a constant in it, such as a bias, which may be of another shape: left alone.
Case 3: LayerNormalization: left alone, for the reason in docs/decisions/optimizers.md.
"""

import onnx_ir as ir

from isoformer.export.edit import replace
from isoformer.export.shared_cache import MICROSOFT


def apply(model: ir.Model) -> int:
    """Rewrites each such pair; returns how many."""
    found = [(add, node) for node in model.graph if (add := _sum_in_front(node)) is not None]
    for add, norm in found:
        _rewrite(model.graph, add, norm)
    if found:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return len(found)


def _sum_in_front(node: ir.Node) -> ir.Node | None:
    if node.op_type != "RMSNormalization" or node.domain != "" or node.inputs[0] is None:
        return None
    axis = node.attributes.get("axis")
    add = node.inputs[0].producer()
    if (axis is not None and axis.as_int() != -1) or add is None or add.op_type != "Add":
        return None
    return add if all(x is not None and x.const_value is None for x in add.inputs) else None


def _rewrite(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    both = ir.node(
        "SkipSimplifiedLayerNormalization",
        [*add.inputs, norm.inputs[1]],
        attributes={"epsilon": epsilon},
        domain=MICROSOFT,
        num_outputs=4,  # the two in the middle are for training
        name=f"{norm.name or norm.outputs[0].name}.residual",
    )
    graph.insert_before(norm, both)
    both.outputs[1].name = both.outputs[2].name = ""
    for old, new in ((norm.outputs[0], both.outputs[0]), (add.outputs[0], both.outputs[3])):
        replace(old, new)
    graph.remove([norm, add], safe=True)
