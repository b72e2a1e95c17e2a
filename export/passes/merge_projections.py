"""Linear layers that read the same tensor become one product and a Split: query, key and value, for one.

    MatMul(x, Wq) + bq ┐
    MatMul(x, Wk) + bk ├    becomes    Split(MatMul(x, [Wq Wk Wv]) + [bq bk bv])
    MatMul(x, Wv) + bv ┘

Case 1: two or more MatMuls with 2-D constant weights share their first input: merged.
Case 2: one of them has no bias (its result does not go to Add with a constant alone): its bias is zero.
Case 3: none has a bias: no Add is made.
Case 4: one of them is wider than WIDEST: left alone.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx_ir as ir

from isoformer.export.edit import array, initializer, replace

WIDEST = 1024  # columns: wider products keep the processor busy alone, and a Split copies


@dataclass(frozen=True)
class Linear:
    """One linear layer of the graph: the MatMul, the Add of its bias if it has one, and what comes out."""

    matmul: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def last(self) -> ir.Node:
        return self.add or self.matmul

    @property
    def output(self) -> ir.Value:
        return self.last.outputs[0]


def apply(model: ir.Model) -> int:
    groups: dict[ir.Value, list[Linear]] = {}
    for node in model.graph:
        linear = _linear(node)
        if linear is not None and node.inputs[0] is not None:
            groups.setdefault(node.inputs[0], []).append(linear)
    merged = [group for group in groups.values() if len(group) > 1 and all(_is_narrow(linear) for linear in group)]
    for group in merged:
        _merge(model.graph, group)
    return len(merged)


def _is_narrow(linear: Linear) -> bool:
    return array(linear.weight).shape[1] <= WIDEST


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or node.domain != "":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        add = uses[0].node
        bias = add.inputs[1 - uses[0].idx]
        if bias is not None and bias.const_value is not None and bias.const_value.shape == weight.const_value.shape[1:]:
            return Linear(node, add, weight, bias)
    return Linear(node, None, weight, None)


def _merge(graph: ir.Graph, group: list[Linear]) -> None:
    x = group[0].matmul.inputs[0]
    widths = [array(linear.weight).shape[1] for linear in group]
    name = _free(graph, _name(group))
    weight = initializer(graph, f"{name}.weight", np.concatenate([array(linear.weight) for linear in group], axis=1))
    product = ir.node("MatMul", [x, weight], name=f"{name}.MatMul")
    nodes, total = [product], product.outputs[0]
    if any(linear.bias is not None for linear in group):
        dtype = array(weight).dtype
        biases = [np.zeros(n, dtype) if g.bias is None else array(g.bias) for g, n in zip(group, widths, strict=True)]
        bias = initializer(graph, f"{name}.bias", np.concatenate(biases))
        nodes.append(ir.node("Add", [total, bias], name=f"{name}.Add"))
        total = nodes[-1].outputs[0]
    sizes = initializer(graph, f"{name}.sizes", np.array(widths, dtype=np.int64))
    nodes.append(
        ir.node("Split", [total, sizes], attributes={"axis": -1}, num_outputs=len(group), name=f"{name}.Split")
    )
    for node in nodes[:-1]:
        out = group[0].output
        node.outputs[0].type = out.type
        if out.shape is not None:
            node.outputs[0].shape = ir.Shape([*out.shape[:-1], sum(widths)])
    # What reads x first is the earliest of the group: everything that follows stands behind it.
    graph.insert_before(min((g.matmul for g in group), key=_order(graph)), nodes)
    for linear, output in zip(group, nodes[-1].outputs, strict=True):
        replace(linear.output, output)
    for linear in group:
        for node in filter(None, (linear.add, linear.matmul)):
            graph.remove(node, safe=True)
        for value in filter(None, (linear.weight, linear.bias)):
            if not value.uses() and value.name is not None:
                graph.initializers.pop(value.name, None)


def _order(graph: ir.Graph):
    places = {node: index for index, node in enumerate(graph)}
    return lambda node: places[node]


def _name(group: list[Linear]) -> str:
    """The common part of the names and then each layer's own: blocks.0.attention.query_key_value."""
    names = [(linear.bias or linear.weight).name or "" for linear in group]
    paths = [name.split(".")[:-1] for name in names]
    if all(len(path) >= 2 and path[:-1] == paths[0][:-1] for path in paths):
        parts = [path[-1].removesuffix("_linear").removesuffix("_proj") for path in paths]
        return ".".join([*paths[0][:-1], "_".join(parts)])
    return "merged." + "_".join(names)


def _free(graph: ir.Graph, name: str) -> str:
    """The name, numbered where another group has it: layers whose biases are equal share their names."""
    numbered = (f"{name}_{number}" if number > 1 else name for number in count(1))
    return next(free for free in numbered if f"{free}.weight" not in graph.initializers)
