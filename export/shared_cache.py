"""Decoders whose keys and values are written in place: GroupQueryAttention on one buffer as past and present.

    RotaryEmbedding(q) ┐
    RotaryEmbedding(k) ├ Attention(…, mask, past, past) → present    becomes    GroupQueryAttention(qkv, past, length)
                    v  ┘

The graph keeps its inputs. past_key_values are buffers of any capacity, present the same ones, of which the first
`sum(attention_mask)` places hold tokens: so padding stands on the right, and positions are places.

ONNX Runtime computes the scores by pieces of the keys, or whole where a head has a sink. By pieces a long prompt is
faster and takes less memory. Whole, a step is faster, if queries come scaled (`attention_scale`): a product of one row
without a factor has a kernel of its own. A sink of -infinity changes nothing in the softmax.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from isoformer.export.edit import initializer, remove_unused, take_over
from isoformer.export.errors import ExportError

MICROSOFT = "com.microsoft"
SINKS = 11  # which input of GroupQueryAttention they are


def apply(model: ir.Model, windows: tuple[int | None, ...], max_positions: int, *, for_steps: bool = False) -> int:
    """Rewrites each Attention with a past; returns how many.

    windows: of each layer, keys that a query sees, itself among them; None is no limit. The mask of each layer
    must be padding, causality and that window: the caller says so, and measures the result.
    max_positions: rows of the rotary tables. for_steps: scores are whole in layers without a window whose queries come
    scaled, for callers that give a long prompt in pieces (`isoformer.runtime.binding`).

    Raises ExportError for attention that the operator does not express: a soft cap, no cache, other values.
    """
    graph = model.graph
    layers = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    if len(layers) != len(windows) or any(len(node.inputs) < 6 for node in layers):
        raise ExportError(f"{len(layers)} layers of attention, {len(windows)} windows: not every layer has a cache")
    lengths = _lengths(graph)
    tables: dict[ir.Value, ir.Value] = {}
    for node, window in zip(layers, windows, strict=True):
        grouped = _rewrite(graph, node, window, lengths, tables, max_positions)
        if (
            for_steps
            and window is None
            and "scale" in grouped.attributes
            and grouped.attributes["scale"].as_float() == 1
        ):
            _add_sinks(graph, grouped)
    model.opset_imports.setdefault(MICROSOFT, 1)
    remove_unused(model)
    for value in (*graph.inputs, *graph.outputs):
        if value.name and value.name.startswith(("past_key_values.", "present.")):
            sizes = list(value.shape or ())
            value.shape = ir.Shape([*sizes[:2], "cache_length", sizes[3]])
    return len(layers)


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """The last place of each sequence (B,) and the longest length (), which the operator wants as int32."""
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    one, axis = _constant(graph, "one", np.array(1, np.int32)), _constant(graph, "axis", np.array([1]))
    numbers = ir.node("Cast", [mask], attributes={"to": int(ir.DataType.INT32)}, name="cache.mask")
    total = ir.node("ReduceSum", [numbers.outputs[0], axis], attributes={"keepdims": 0}, name="cache.sum")
    last = ir.node("Sub", [total.outputs[0], one], name="cache.last")
    shape = ir.node("Shape", [mask], attributes={"start": 1, "end": 2}, name="cache.shape")
    scalar = ir.node("Squeeze", [shape.outputs[0]], name="cache.scalar")
    longest = ir.node("Cast", [scalar.outputs[0]], attributes={"to": int(ir.DataType.INT32)}, name="cache.longest")
    nodes = [numbers, total, last, shape, scalar, longest]
    for node in nodes:
        node.outputs[0].name = node.name
    graph.insert_before(graph[0], nodes)
    return last.outputs[0], longest.outputs[0]


def _rewrite(
    graph: ir.Graph,
    node: ir.Node,
    window: int | None,
    lengths: tuple[ir.Value, ir.Value],
    tables: dict[ir.Value, ir.Value],
    max_positions: int,
) -> ir.Node:
    query, key, value, _, past_key, past_value = node.inputs[:6]
    flat = "q_num_heads" in node.attributes  # (B, L, H * D); with a norm of every head they have four axes
    heads = [
        node.attributes[f"{kind}_num_heads"].as_int() if flat else _heads(x) for kind, x in (("q", query), ("kv", key))
    ]
    attributes: dict[str, Any] = {
        "num_heads": heads[0],
        "kv_num_heads": heads[1],
        "local_window_size": -1 if window is None else window,
    }
    if "softcap" in node.attributes and node.attributes["softcap"].as_float():
        raise ExportError("a cache written in place has no soft cap")
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes["scale"].as_float()
    size = past_key.shape[3] if past_key is not None and past_key.shape is not None else None
    # The operator turns heads of a multiple of 16; others, and those of four axes, are turned in front of it.
    turns = _turns(query, key) if flat and isinstance(size, int) and size % 16 == 0 else None
    cos = sin = None
    if turns is not None:
        query, key = turns[0].inputs[0], turns[1].inputs[0]
        cos, sin = (_table(graph, turns[0].inputs[i], tables, max_positions) for i in (1, 2))
        interleaved = turns[0].attributes.get("interleaved")
        attributes |= {"do_rotary": 1, "rotary_interleaved": interleaved.as_int() if interleaved else 0}
    packed = _packed(query, key, value) if flat else None
    if not flat:
        query, key, value = (_flattened(graph, node, x) for x in (query, key, value))
    inputs = [packed, None, None] if packed is not None else [query, key, value]
    inputs += [past_key, past_value, *lengths, *([cos, sin] if turns is not None else [])]
    grouped = ir.node(
        "GroupQueryAttention", inputs, attributes=attributes, domain=MICROSOFT, num_outputs=3, name=f"{node.name}.cache"
    )
    graph.insert_before(node, grouped)
    outputs = list(grouped.outputs)
    if not flat:
        outputs[0] = _in_heads(graph, node, outputs[0], heads[0])
    take_over(node, outputs)
    return grouped


def _add_sinks(graph: ir.Graph, grouped: ir.Node) -> None:
    heads = grouped.attributes["num_heads"].as_int()
    name = f"sinks.{heads}"
    sinks = graph.initializers.get(f"cache.{name}") or _constant(graph, name, np.full(heads, -np.inf, np.float32))
    grouped.resize_inputs(SINKS + 1)
    grouped.replace_input_with(SINKS, sinks)


def _heads(value: ir.Value | None) -> int:
    heads = value.shape[1] if value is not None and value.shape is not None and len(value.shape) == 4 else None
    if not isinstance(heads, int):
        raise ExportError("the number of heads is not known")
    return heads


def _flattened(graph: ir.Graph, node: ir.Node, value: Any) -> ir.Value:
    """(B, H, L, D) → (B, L, H * D)"""
    swapped = ir.node("Transpose", [value], attributes={"perm": [0, 2, 1, 3]}, name=f"{value.name}.swapped")
    joined = ir.node("Reshape", [swapped.outputs[0], _shape(graph, [0, 0, -1])], name=f"{value.name}.flat")
    return _added(graph, node, [swapped, joined])


def _in_heads(graph: ir.Graph, node: ir.Node, value: ir.Value, heads: int) -> ir.Value:
    """(B, L, H * D) → (B, H, L, D)"""
    parted = ir.node("Reshape", [value, _shape(graph, [0, 0, heads, -1])], name=f"{node.name}.parted")
    swapped = ir.node("Transpose", [parted.outputs[0]], attributes={"perm": [0, 2, 1, 3]}, name=f"{node.name}.heads")
    return _added(graph, node, [parted, swapped])


def _added(graph: ir.Graph, place: ir.Node, nodes: list[ir.Node]) -> ir.Value:
    for node in nodes:
        node.outputs[0].name = node.name
    graph.insert_before(place, nodes)
    return nodes[-1].outputs[0]


def _shape(graph: ir.Graph, sizes: list[int]) -> ir.Value:
    name = "shape." + ".".join(map(str, sizes))
    return graph.initializers.get(f"cache.{name}") or _constant(graph, name, np.array(sizes))


def _turns(query: ir.Value | None, key: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """The RotaryEmbeddings of whole heads in front of query and key, by the same tables."""
    nodes = [value.producer() if value is not None else None for value in (query, key)]
    if any(node is None or node.op_type != "RotaryEmbedding" for node in nodes):
        return None
    one, other = nodes
    alike = one.inputs[1] is other.inputs[1] and one.inputs[2] is other.inputs[2]  # pyright: ignore
    partial = any("rotary_embedding_dim" in node.attributes for node in nodes)  # pyright: ignore
    return (one, other) if alike and not partial else None  # pyright: ignore[reportReturnType]


def _packed(query: Any, key: Any, value: Any) -> ir.Value | None:
    """What the Split reads that gives query, key and value in this order."""
    split = query.producer()
    if split is None or split.op_type != "Split" or list(split.outputs) != [query, key, value]:
        return None
    return split.inputs[0]


def _table(graph: ir.Graph, value: Any, tables: dict[ir.Value, ir.Value], max_positions: int) -> ir.Value:
    """Rows 0 … max_positions - 1 of what the graph computes from position_ids."""
    if value not in tables:
        tables[value] = _constant(graph, value.name or "table", table(graph, value, max_positions))
    return tables[value]


def table(graph: ir.Graph, value: ir.Value, max_positions: int) -> np.ndarray:
    """What the graph computes from position_ids 0 … max_positions - 1, a row each, float32.

    Raises ExportError for what depends on another input.
    """
    return np.ascontiguousarray(_computed(graph, value, np.arange(max_positions)[None])[0], np.float32)


def _computed(graph: ir.Graph, value: ir.Value, position_ids: np.ndarray) -> np.ndarray:
    """The value of those positions, by the reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    wanted, nodes = {value}, []
    for node in reversed(list(graph)):
        if wanted & set(node.outputs):
            nodes.append(node)
            wanted |= {x for x in node.inputs if x is not None}
    free = {x.name for x in wanted if x in graph.inputs}
    if free != {"position_ids"}:
        raise ExportError(f"the rotary tables read {', '.join(sorted(map(str, free)))}, not position_ids alone")
    constants = [
        ir.to_proto(ir.tensor(x.const_value.numpy(), name=x.name)) for x in wanted if x.const_value is not None
    ]
    part = onnx.helper.make_graph(
        [ir.to_proto(node) for node in reversed(nodes)],
        "rotary",
        [onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.FLOAT, None)],
        constants,  # pyright: ignore[reportArgumentType]
    )
    imports = [onnx.helper.make_opsetid(domain, number) for domain, number in graph.opset_imports.items()]
    found: Any = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=imports)).run(
        None, {"position_ids": position_ids}
    )
    return found[0]


def _constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    return initializer(graph, f"cache.{name}", values)
