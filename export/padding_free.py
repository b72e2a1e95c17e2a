"""Encoders whose layers run on real tokens only; the graph's inputs and outputs stay as they are.

    (B, L, E) → pack → (1, N, E), the N real tokens → products, norms, activations → unpack → (B, L, E), 0 at padding

The first token of a sequence counts as one of the N even where it is padding, for heads that read it. Attention alone
needs to know where a sequence ends:

    no padding and few scores      Attention on (B, L, E), without a mask; nothing is packed
    otherwise                      a Loop over the sequences: Attention of each alone, without a mask;
                                   of a long one MultiHeadAttention, whose scores never stand in memory whole

So the cost grows with the real tokens, and memory with the longest sequence, not with its square. Queries at padding
are not computed: what a hidden state holds there is not part of the mask contract.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from isoformer.export.edit import array, initializer, remove_unused
from isoformer.export.errors import ExportError

MICROSOFT = "com.microsoft"
# Scores of one head, over the batch, above which they are not held in memory all at once.
SCORES = 2**20
POINTWISE = {"Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "Identity", "Neg", "Abs", "Sqrt", "Swish"}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}
NORMS = {"LayerNormalization", "RMSNormalization"}


def apply(model: ir.Model) -> list[str]:
    """Rewrites the graph; returns the outputs that are 0 at padding from now on.

    Raises ExportError for a graph that is no encoder under key padding alone: other masks, a cache, attention
    between two sequences, a bias, weights as outputs.
    """
    graph = model.graph
    layers = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    real = _real(layers)
    region = _region(graph, layers, real)
    packing = _Packing(graph, real)
    inside = [output for node in region for output in node.outputs]
    outside = [(value, [use for use in value.uses() if use.node not in region]) for value in inside]
    entered: dict[ir.Value, ir.Value] = {}
    for node in region:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in inside and _is_tokens(value, real):
                if value not in entered:
                    entered[value] = packing.packed(value)
                node.replace_input_with(index, entered[value])
    changed = [str(value.name) for value in inside if value.is_graph_output()]
    for value, uses in outside:
        if uses or value.is_graph_output():
            _take_outside(graph, value, uses, packing.unpacked(value))
    for node in layers:
        _take_over(graph, node, packing.attention(node))
    for value in inside:
        value.shape = ir.Shape([None, None, _width(value)])
    model.opset_imports.setdefault(MICROSOFT, 1)
    remove_unused(model)
    graph.sort()
    return changed


def _real(layers: Sequence[ir.Node]) -> ir.Value:
    """(B, L), bool: the tokens that every layer's mask keeps as keys."""
    found = {_keys(node) for node in layers}
    if len(found) != 1 or None in found:
        raise ExportError("padding-free graphs are for encoders whose only mask is padding, the same in each layer")
    return found.pop()  # pyright: ignore[reportReturnType]


def _keys(node: ir.Node) -> ir.Value | None:
    """The (B, L) that Expand(Unsqueeze(…)) makes the node's mask of; None for other attention."""
    plain = all(value is None for value in node.inputs[4:]) and "q_num_heads" in node.attributes
    alone = all(not output.uses() and not output.is_graph_output() for output in node.outputs[1:])
    causal, cap = node.attributes.get("is_causal"), node.attributes.get("softcap")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    expand = mask.producer() if mask is not None else None
    if not plain or not alone or (causal and causal.as_int()) or (cap and cap.as_float()):
        return None
    if expand is None or expand.op_type != "Expand" or expand.inputs[0] is None:
        return None
    unsqueeze = expand.inputs[0].producer()
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or list(array(unsqueeze.inputs[1])) != [1, 2]:
        return None
    real = unsqueeze.inputs[0]
    return real if real is not None and real.shape is not None and len(real.shape) == 2 else None


def _region(graph: ir.Graph, layers: Sequence[ir.Node], real: ir.Value) -> dict[ir.Node, None]:
    """The nodes that compute something for each token by itself, and attention; in the graph's order."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        tokens = all(_is_tokens(output, real) for output in node.outputs if output.uses() or output.is_graph_output())
        if tokens and (node in layers or _is_by_token(node, real)):
            found[node] = None
    if not all(node in found for node in layers):
        raise ExportError("padding-free graphs are for attention over (batch, length, width)")
    return _from_the_first_product(found)


def _from_the_first_product(region: dict[ir.Node, None]) -> dict[ir.Node, None]:
    """Without what only leads there, such as sums of embeddings: it costs little, and one value is packed, not all."""
    found: dict[ir.Node, None] = {}
    for node in region:
        if node.op_type in ("MatMul", "Attention") or any(x is not None and x.producer() in found for x in node.inputs):
            found[node] = None
    return found


def _is_tokens(value: ir.Value, real: ir.Value) -> bool:
    """Whether it is (B, L, width), of floats."""
    shape = value.shape
    if shape is None or real.shape is None or len(shape) != 3 or value.dtype != ir.DataType.FLOAT:
        return False
    return list(shape[:2]) == list(real.shape) and isinstance(shape[2], int)


def _is_by_token(node: ir.Node, real: ir.Value) -> bool:
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "MatMul":
        return _is_tokens(node.inputs[0], real) and _constant_rank(_table(node.inputs[1])) == 2
    if node.op_type in NORMS:
        axis = node.attributes.get("axis")
        return axis is None or axis.as_int() == -1
    if node.op_type == "Split":
        return node.attributes["axis"].as_int() == -1
    if node.op_type in BINARY:
        return all(x is not None and (_is_tokens(x, real) or _constant_rank(x) in (0, 1)) for x in node.inputs)
    return node.op_type in POINTWISE


def _table(value: ir.Value | None) -> ir.Value | None:
    """What a product reads: a constant, or the table whose transpose it is (a tied head)."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else value


def _constant_rank(value: ir.Value | None) -> int | None:
    return len(value.const_value.shape) if value is not None and value.const_value is not None else None


def _take_outside(graph: ir.Graph, value: ir.Value, uses: Sequence[Any], result: ir.Value) -> None:
    """The unpacked result for those uses, and for the graph's output, whose name it takes."""
    name, result.type, result.shape = value.name, value.type, value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
            value.name, result.name = f"{name}.packed", name


def _take_over(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    old = node.outputs[0]
    result.name, result.type, result.shape = f"{old.name}.tokens", old.type, ir.Shape([None, None, _width(old)])
    ir.convenience.replace_all_uses_with(old, result)
    graph.remove(node, safe=True)


class _Packing:
    """Where the tokens that are computed stand, found once for all that asks."""

    def __init__(self, graph: ir.Graph, real: ir.Value) -> None:
        put = self.put = _Build(graph, "padding_free")
        self.size, self.shapes = put("Shape", real), {}
        self.batch, length = (put("Squeeze", put("Shape", real, start=i, end=i + 1)) for i in (0, 1))
        first = put("Equal", put("Range", put.constant(0), length, put.constant(1)), put.constant(0))  # (L,)
        kept = put("Cast", put("Or", real, first), to=ir.DataType.INT64)  # (B, L)
        flat = put("Reshape", kept, put.constant([-1]))
        self.places = put("Squeeze", put("NonZero", flat), put.constant([0]))  # (N,)
        # (B, L): 0 where nothing is computed, n at the n-th token that is
        self.rows = put("Reshape", put("Mul", put("CumSum", flat, put.constant(0)), flat), self.size)
        self.lengths = put("ReduceSum", kept, put.constant([1]), keepdims=0)  # (B,), at least 1
        self.ends = put("CumSum", self.lengths, put.constant(0))
        numbers = put("Cast", real, to=ir.DataType.INT64)
        self.keys = put("ReduceSum", numbers, put.constant([1]), keepdims=0)  # (B,), lengths or 1 less: not the first
        full = put("Equal", put("ReduceSum", numbers, keepdims=0), put("Size", real))
        scores = put("Mul", put("Mul", self.batch, length), length)
        self.whole = put("And", full, put("LessOrEqual", scores, put.constant(SCORES)))

    def packed(self, value: ir.Value) -> ir.Value:
        """(B, L, E) → (1, N, E); as it is where nothing is packed."""
        flat = self.put("Reshape", value, self.put.constant([-1, _width(value)]))
        return self.put("Reshape", self.put("Gather", flat, self.places), self._shape(_width(value)))

    def _shape(self, width: int) -> ir.Value:
        if width not in self.shapes:
            rectangle = self.put("Concat", self.size, self.put.constant([width]), axis=0)
            self.shapes[width] = self.put("Where", self.whole, rectangle, self.put.constant([1, -1, width]))
        return self.shapes[width]

    def unpacked(self, value: ir.Value) -> ir.Value:
        """(1, N, E) → (B, L, E)"""
        tokens = self.put("Reshape", value, self.put.constant([-1, _width(value)]))
        padding = self.put.constant(np.zeros((1, _width(value)), np.float32))
        return self.put("Gather", self.put("Concat", padding, tokens, axis=0), self.rows)

    def attention(self, node: ir.Node) -> ir.Value:
        """The node's attention, of packed queries, keys and values."""
        name = node.name or str(node.outputs[0].name)
        attributes: dict[str, Any] = {key: node.attributes[key].as_int() for key in ("q_num_heads", "kv_num_heads")}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        whole, parts = _Nodes(f"{name}.whole"), _Nodes(f"{name}.parts")
        loop = parts(
            "Loop",
            self.batch,
            None,
            parts("SequenceEmpty", dtype=int(ir.DataType.FLOAT)),
            body=self._turn(name, node.inputs[:3], attributes),
        )
        return self.put(
            "If",
            self.whole,
            then_branch=whole.graph([whole("Attention", *node.inputs[:3], **attributes)]),
            else_branch=parts.graph([parts("ConcatFromSequence", loop, axis=1)]),
        )

    def _turn(self, name: str, packed: Sequence[Any], attributes: dict[str, Any]) -> ir.Graph:
        """The loop's body: the attention of the i-th sequence, put behind those before it."""
        body = _Nodes(f"{name}.turn")
        number, go = (
            ir.Value(name=f"{name}.{kind}", type=ir.TensorType(dtype), shape=ir.Shape([]))
            for kind, dtype in (("number", ir.DataType.INT64), ("go", ir.DataType.BOOL))
        )
        before = ir.Value(name=f"{name}.before", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
        at = body("Unsqueeze", number, self.put.constant([0]))
        length, keys, end = (body("Gather", x, at) for x in (self.lengths, self.keys, self.ends))
        query, key, value = (
            body("Slice", x, body("Sub", end, count), end, self.put.constant([1]))
            for x, count in zip(packed, (length, keys, keys), strict=True)
        )
        for part, x in zip((query, key, value), packed, strict=True):  # ONNX Runtime takes a width it is not told for 0
            part.type, part.shape = x.type, ir.Shape([None, None, _width(x)])
        empty = body("Equal", keys, self.put.constant([0]))
        found = body(
            "If",
            body("Squeeze", empty),
            then_branch=self._nothing(name, query, _width(packed[2]), attributes),
            else_branch=self._one(name, body("Squeeze", length), (query, key, value), attributes),
        )
        after = body("SequenceInsert", before, found)
        after.type = before.type
        return body.graph([body("Identity", go), after], [number, go, before])

    def _nothing(self, name: str, query: ir.Value, width: int, attributes: dict[str, Any]) -> ir.Graph:
        """Queries without a key get zeros (1, 1, E)."""
        branch = _Nodes(f"{name}.nothing")
        columns = width // attributes["kv_num_heads"] * attributes["q_num_heads"]
        row = branch("ReduceSum", branch("Mul", query, self.put.constant(np.float32(0))), self.put.constant([2]))
        return branch.graph([branch("Expand", row, self.put.constant([1, 1, columns]))])

    def _one(self, name: str, length: ir.Value, inputs: Sequence[ir.Value], attributes: dict[str, Any]) -> ir.Graph:
        """The attention of one sequence that has keys."""
        branch, short, long = (_Nodes(f"{name}.{part}") for part in ("one", "short", "long"))
        heads = attributes["q_num_heads"]
        if heads != attributes["kv_num_heads"]:  # which MultiHeadAttention does not have
            return branch.graph([branch("Attention", *inputs, **attributes)])
        scale: dict[str, Any] = {key: number for key, number in attributes.items() if key == "scale"}
        flash = long("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads, **scale)
        limit = self.put.constant(int(SCORES**0.5))
        return branch.graph(
            [
                branch(
                    "If",
                    branch("Greater", length, limit),
                    then_branch=long.graph([flash]),
                    else_branch=short.graph([short("Attention", *inputs, **attributes)]),
                )
            ]
        )


def _width(value: ir.Value) -> int:
    width = value.shape[-1] if value.shape is not None else None
    if not isinstance(width, int):
        raise ExportError(f"the width of {value.name} is not known")
    return width


class _Nodes:
    """The nodes of a subgraph, in the order in which they are made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: list[ir.Node] = []

    def __call__(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        name = f"{self.name}.{len(self.made)}.{kind}"
        node = ir.node(kind, list(inputs), attributes=attributes, domain=domain, name=name)
        node.outputs[0].name = name
        self.made.append(node)
        return node.outputs[0]

    def graph(self, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> ir.Graph:
        return ir.Graph(inputs, outputs, nodes=self.made, name=self.name)


class _Build(_Nodes):
    """Nodes at the end of a graph, to be sorted later, and constants that they share."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        super().__init__(name)
        self.whole = graph
        self.constants: dict[tuple, ir.Value] = {}

    def __call__(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        value = super().__call__(kind, *inputs, domain=domain, **attributes)
        self.whole.append(self.made[-1])
        return value

    def constant(self, value: Any) -> ir.Value:
        values = np.asarray(value)
        key = (values.dtype, values.shape, values.tobytes())
        if key not in self.constants:
            self.constants[key] = initializer(self.whole, f"{self.name}.constant.{len(self.constants)}", values)
        return self.constants[key]
