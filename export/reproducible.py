"""Decoders in 8 bits whose tokens are the same natively and in WebAssembly, since nearly all their bits are.

That is of ONNX Runtime's kernels for processors, on x86-64, where it was tried: docs/decisions/variants.md.

Products of 8 bits are exact, and so is float32's arithmetic of single values, which IEEE 754 rounds alike everywhere.
What is not is what a runtime may order, fuse or approximate as it likes: sums, and functions such as exp. Two such
results differ in their last bits, and where they are rounded to 8 bits a difference of 1e-7 may become one of 1/127.
Here each is computed in float64 and rounded to float32 once: then it is the same unless the exact value lies within
some 1e-15 of the middle between two float32 numbers, which about one in 1e8 does.

    RMSNormalization     x / √(mean x² + ε) · w, of which the root alone is float64
    LayerNormalization   the same of x - mean x
    Sigmoid, Tanh        float64; Gelu where it is that of tanh
    RotaryEmbedding      x · C + swapped(x) · S of float32, C and S written into the graph
    Attention            scores, softmax and weighted sums in float64; keys and values are kept in float32

The cache is the canonical graph's, which grows. What the pass does not know is refused by name.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from isoformer.export import shared_cache
from isoformer.export.build import Build
from isoformer.export.edit import axis_size, remove_unused, take_over, width
from isoformer.export.errors import ExportError

# Of a score that is masked: exp of it is exactly 0.
LOWEST = -1e30
_SWAP = (0, 2, 1, 3)
# Each value of their results is one that was there, or one operation of IEEE 754 on such, or an integer's.
EXACT = {
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand",
    "Flatten", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max",
    "Min", "MatMulIntegerToFloat", "Mul", "Neg", "Not", "Or", "QuantizeLinear", "ReduceMax", "Relu",
    "Reshape", "Shape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Rounded as each runtime likes: only of float64.
WIDE = {"Exp", "MatMul", "ReduceSum", "Sigmoid", "Tanh"}


def apply(model: ir.Model, max_positions: int) -> int:
    """Rewrites a decoder's canonical graph, whose products are in 8 bits already; returns how many operators.

    max_positions: rows of the rotary tables. Raises ExportError for attention or an activation that it cannot write so,
    and for any operator that is left and that runtimes round differently.
    """
    count = rewrite(model, max_positions)
    refuse_inexact(model)
    return count


def rewrite(model: ir.Model, max_positions: int) -> int:
    """`apply` on a graph that may have products of float32, which it leaves alone."""
    graph = model.graph
    build = _Build(graph, max_positions)
    found = [node for node in list(graph) if node.op_type in build.ways and node.domain == ""]
    for node in found:
        take_over(node, build.ways[node.op_type](node))
    remove_unused(model)
    graph.sort()
    return len(found)


def refuse_inexact(model: ir.Model) -> None:
    """Raises ExportError with the operators whose float32 results differ from runtime to runtime."""
    wide: set[ir.Value | None] = {
        value for value in model.graph.initializers.values() if value.dtype == ir.DataType.DOUBLE
    }
    left = set()
    for node in model.graph:
        if node.op_type == "Cast":
            is_wide = node.attributes["to"].as_int() == ir.DataType.DOUBLE
        else:
            # What Where chooses by may come from wide values, and is none.
            is_wide = any(value in wide for value in node.inputs[node.op_type == "Where" :])
        if is_wide:
            wide |= set(node.outputs)
        is_safe = node.op_type in EXACT or (is_wide and node.op_type in WIDE and node.domain == "") or _counts(node)
        if not is_safe:
            left.add(node.op_type)
    if left:
        raise ExportError(
            f"runtimes differ in the last bits of {', '.join(sorted(left))} of float32; export without --reproducible"
        )


def _counts(node: ir.Node) -> bool:
    """Whether it makes integers of integers alone; what makes numbers of nothing, such as RandomNormal, does not."""
    values = [*node.inputs, *node.outputs]
    integers = all(value is not None and value.dtype is not None and value.dtype.is_integer() for value in values)
    return integers and bool(node.inputs)


class _Build(Build):
    """What each operator becomes; `ways` by its name."""

    def __init__(self, graph: ir.Graph, max_positions: int) -> None:
        super().__init__(graph, "reproducible")
        self.max_positions = max_positions
        self.masks: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self.tables: dict[tuple[ir.Value, ir.Value, int], list[ir.Value]] = {}
        self.ways: dict[str, Callable[[ir.Node], list[ir.Value]]] = {
            "RMSNormalization": self.norm,
            "LayerNormalization": self.norm,
            "Sigmoid": self.function,
            "Tanh": self.function,
            "Gelu": self.gelu,
            "RotaryEmbedding": self.rotary,
            "Attention": self.attention,
        }

    def wide(self, x: ir.Value) -> ir.Value:
        return self("Cast", x, to=ir.DataType.DOUBLE)

    def rounded(self, x: ir.Value) -> ir.Value:
        return self("Cast", x, to=ir.DataType.FLOAT)

    def function(self, node: ir.Node) -> list[ir.Value]:
        return [self.rounded(self(node.op_type, self.wide(_given(node, 0))))]

    def norm(self, node: ir.Node) -> list[ir.Value]:
        """(…, E) along the last axis."""
        x, weight, *bias = (value for value in node.inputs if value is not None)
        _require_last_axis(node)
        size = width(weight)
        if node.op_type == "LayerNormalization":
            x = self("Sub", x, self.rounded(self._mean(self.wide(x), size)))
        wide = self.wide(x)
        # Not ReduceMean of Pow, which ONNX Runtime's optimizers would make a norm of again.
        mean = self._mean(self("Mul", wide, wide), size)
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        root = self.rounded(self("Sqrt", self("Add", mean, self.constant(np.float64(epsilon)))))
        result = self("Mul", self("Div", x, root), weight)
        return [self("Add", result, *bias) if bias else result]

    def _mean(self, x: ir.Value, size: int) -> ir.Value:
        return self("Mul", self("ReduceSum", x, self.constant([-1]), keepdims=1), self.constant(np.float64(1 / size)))

    def gelu(self, node: ir.Node) -> list[ir.Value]:
        """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))"""
        if "approximate" not in node.attributes or node.attributes["approximate"].as_string() != "tanh":
            raise ExportError("ONNX Runtime has no Gelu by erf in float64; export without --reproducible")
        x = self.wide(_given(node, 0))
        cubed = self("Mul", self("Mul", self("Mul", x, x), x), self.constant(np.float64(0.044715)))
        turn = self("Tanh", self("Mul", self("Add", x, cubed), self.constant(np.float64((2 / np.pi) ** 0.5))))
        half = self("Mul", x, self.constant(np.float64(0.5)))
        return [self.rounded(self("Mul", half, self("Add", turn, self.constant(np.float64(1)))))]

    def rotary(self, node: ir.Node) -> list[ir.Value]:
        """(B, L, H * D) or (B, H, L, D): the first dimensions of each head turned, others as they are."""
        attributes = {name: value.as_int() for name, value in node.attributes.items()}
        if attributes.get("interleaved"):
            raise ExportError("rotary positions in pairs have no reproducible form; export without --reproducible")
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            raise ExportError("tables of rotary positions that are looked up have no reproducible form")
        x, cos, sin = (_given(node, index) for index in range(3))
        heads, rank = attributes.get("num_heads"), len(x.shape or ())
        if rank == 3:
            x = self("Reshape", x, self.constant([0, 0, heads, -1]))
        c, s = self._turns(cos, sin, axis=1 if rank == 4 else 2)
        half, rest = width(cos), None
        if turned := attributes.get("rotary_embedding_dim"):
            head_dim = width(_given(node, 0)) // (heads if rank == 3 and heads else 1)
            if turned < head_dim:
                x, rest = self.several(2, "Split", x, self.constant([turned, head_dim - turned]), axis=-1)
        left, right = self.several(2, "Split", x, self.constant([half, half]), axis=-1)
        swapped = self("Concat", right, left, axis=-1)
        result = self("Add", self("Mul", x, c), self("Mul", swapped, s))
        if rest is not None:
            result = self("Concat", result, rest, axis=-1)
        return [self("Reshape", result, self.constant([0, 0, -1])) if rank == 3 else result]

    def _turns(self, cos: ir.Value, sin: ir.Value, axis: int) -> list[ir.Value]:
        """C = cos, cos and S = -sin, sin of every token, with an axis for the heads; from tables in the graph."""
        key = cos, sin, axis
        if key not in self.tables:
            c, s = (shared_cache.table(self.whole, value, self.max_positions) for value in (cos, sin))
            ids = next((value for value in self.whole.inputs if value.name == "position_ids"), None)
            if ids is None:
                raise ExportError("--reproducible is for rotary positions that are an input, position_ids")
            self.tables[key] = []
            for name, values in (("C", np.concatenate([c, c], -1)), ("S", np.concatenate([-s, s], -1))):
                table = self.weight(values, f"{name}.{len(self.tables)}")
                rows = self("Gather", table, ids, axis=0)  # (B, L, D)
                self.tables[key].append(self("Unsqueeze", rows, self.constant([axis])))
        return self.tables[key]

    def attention(self, node: ir.Node) -> list[ir.Value]:
        """Output, present key and present value; heads that share a key stand beside each other as more queries."""
        _refuse(node)
        query, key, value = (_given(node, index) for index in range(3))
        flat = "q_num_heads" in node.attributes
        if flat:
            heads, kv_heads = (node.attributes[f"{kind}_num_heads"].as_int() for kind in ("q", "kv"))
            query, key, value = (
                self("Transpose", self("Reshape", x, self.constant([0, 0, count, -1])), perm=_SWAP)
                for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
            )
        else:
            heads, kv_heads = (axis_size(x, 1) for x in (query, key))
        past_key, past_value = _given(node, 4), _given(node, 5)
        head_dim, value_dim = (width(x) for x in (past_key, past_value))
        key, value = self("Concat", past_key, key, axis=2), self("Concat", past_value, value, axis=2)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else head_dim**-0.5
        query = self("Mul", query, self.constant(np.float32(scale)))
        query = self("Reshape", query, self.constant([0, kv_heads, -1, head_dim]))  # (B, K, G * Lq, D)
        scores = self("MatMul", self.wide(query), self("Transpose", self.wide(key), perm=(0, 1, 3, 2)))
        bias, seen = self._mask(_given(node, 3))
        scores = self("Add", self("Reshape", scores, self.constant([0, heads, -1, 0])), bias)  # (B, H, Lq, Lk)
        # Softmax, written out: ONNX Runtime's of float64 is three times as slow, for it has one thread.
        last = self.constant([-1])
        powers = self("Exp", self("Sub", scores, self("ReduceMax", scores, last, keepdims=1)))
        powers = self("Reshape", powers, self.constant([0, kv_heads, -1, 0]))
        sums = self("ReduceSum", powers, last, keepdims=1)
        out = self.rounded(self("Div", self("MatMul", powers, self.wide(value)), sums))
        out = self("Mul", self("Reshape", out, self.constant([0, heads, -1, value_dim])), seen)
        if flat:
            out = self("Reshape", self("Transpose", out, perm=_SWAP), self.constant([0, 0, -1]))
        return [out, key, value]

    def _mask(self, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What is added to the scores, float64, and 1 for each query that has a key and 0 for others, (…, Lq, 1)."""
        if mask not in self.masks:
            if mask.dtype == ir.DataType.BOOL:
                keys = mask
                bias = self("Where", mask, self.constant(np.float64(0)), self.constant(np.float64(LOWEST)))
            else:
                lowest = self.constant(np.float32(LOWEST))
                keys, bias = self("Greater", mask, lowest), self.wide(self("Max", mask, lowest))
            # As integers, which no runtime rounds.
            numbers = self("Cast", keys, to=ir.DataType.INT32)
            seen = self("ReduceMax", numbers, self.constant([-1]), keepdims=1)
            self.masks[mask] = bias, self.rounded(seen)
        return self.masks[mask]


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        raise ExportError(f"a {node.op_type} without all its inputs has no reproducible form")
    return value


def _refuse(node: ir.Node) -> None:
    causal, cap = node.attributes.get("is_causal"), node.attributes.get("softcap")
    if (
        len(node.inputs) != 6
        or any(output.uses() or output.is_graph_output() for output in node.outputs[3:])
        or (causal and causal.as_int())
        or (cap and cap.as_float())
    ):
        raise ExportError("--reproducible is for attention with a mask and a cache, without a soft cap or its scores")


def _require_last_axis(node: ir.Node) -> None:
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() != -1:
        raise ExportError(f"--reproducible is for norms along the last axis, not {axis.as_int()}")
