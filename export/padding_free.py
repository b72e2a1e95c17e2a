"""Encoders whose layers run on real tokens only; the graph's inputs and outputs stay as they are.

    (B, L) → pack → (1, N), the N real tokens → embeddings, products, norms, … → unpack → (B, L, E), 0 at padding

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

from isoformer.export import by_token
from isoformer.export.build import Build, Nodes
from isoformer.export.edit import width
from isoformer.export.kept import Kept

MICROSOFT = "com.microsoft"
# Scores of one head, over the batch, above which they are not held in memory all at once.
SCORES = 2**20


def apply(model: ir.Model) -> list[str]:
    """Rewrites the graph; returns the outputs that are 0 at padding from now on. Raises as `by_token.apply` does."""
    changed = by_token.apply(model, _Packing)
    model.opset_imports.setdefault(MICROSOFT, 1)
    return changed


class _Packing:
    """Where the tokens that are computed stand, found once for all that asks."""

    def __init__(self, graph: ir.Graph, real: ir.Value) -> None:
        put = self.put = Build(graph, "padding_free")
        self.kept, self.shapes = Kept(put, real), {}
        self.ends = put("CumSum", self.kept.counts, put.constant(0))
        numbers = put("Cast", real, to=ir.DataType.INT64)
        self.keys = put("ReduceSum", numbers, put.constant([1]), keepdims=0)  # (B,), counts or 1 less: not the first
        full = put("Equal", put("ReduceSum", numbers, keepdims=0), put("Size", real))
        self.batch, length = put("Squeeze", put("Shape", real, start=0, end=1)), put("Squeeze", self.kept.length)
        scores = put("Mul", put("Mul", self.batch, length), length)
        self.whole = put("And", full, put("LessOrEqual", scores, put.constant(SCORES)))

    def packed(self, value: ir.Value) -> ir.Value:
        """(B, L, E) → (1, N, E), (B, L) → (1, N), (L, E) → (1, N, E); (B, L, …) where nothing is packed."""
        widths = (width(value),) if value.dtype == ir.DataType.FLOAT else ()
        return self.put("Reshape", self.kept.packed(value, self.kept.places), self._shape(*widths))

    def _shape(self, *widths: int) -> ir.Value:
        """Of what is packed: (1, N, …), or (B, L, …) where nothing is."""
        if widths not in self.shapes:
            rectangle = self.kept.shape
            if widths:
                rectangle = self.put("Concat", rectangle, self.put.constant(list(widths)), axis=0)
            packed = self.put.constant([1, -1, *widths])
            self.shapes[widths] = self.put("Where", self.whole, rectangle, packed)
        return self.shapes[widths]

    def unpacked(self, value: ir.Value) -> ir.Value:
        """(1, N, E) → (B, L, E)"""
        return self.kept.unpacked(value, width(value))

    def attention(self, node: ir.Node) -> ir.Value:
        """The node's attention, of packed queries, keys and values."""
        name = node.name or str(node.outputs[0].name)
        attributes: dict[str, Any] = {key: node.attributes[key].as_int() for key in ("q_num_heads", "kv_num_heads")}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        whole, parts = Nodes(f"{name}.whole"), Nodes(f"{name}.parts")
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
        body = Nodes(f"{name}.turn")
        number, go = (
            ir.Value(name=f"{name}.{kind}", type=ir.TensorType(dtype), shape=ir.Shape([]))
            for kind, dtype in (("number", ir.DataType.INT64), ("go", ir.DataType.BOOL))
        )
        before = ir.Value(name=f"{name}.before", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
        at = body("Unsqueeze", number, self.put.constant([0]))
        length, keys, end = (body("Gather", x, at) for x in (self.kept.counts, self.keys, self.ends))
        query, key, value = (
            body("Slice", x, body("Sub", end, count), end, self.put.constant([1]))
            for x, count in zip(packed, (length, keys, keys), strict=True)
        )
        for part, x in zip((query, key, value), packed, strict=True):  # ONNX Runtime takes a width it is not told for 0
            part.type, part.shape = x.type, ir.Shape([None, None, width(x)])
        empty = body("Equal", keys, self.put.constant([0]))
        found = body(
            "If",
            body("Squeeze", empty),
            then_branch=self._nothing(name, query, width(packed[2]), attributes),
            else_branch=self._one(name, body("Squeeze", length), (query, key, value), attributes),
        )
        after = body("SequenceInsert", before, found)
        after.type = before.type
        return body.graph([body("Identity", go), after], [number, go, before])

    def _nothing(self, name: str, query: ir.Value, width: int, attributes: dict[str, Any]) -> ir.Graph:
        """Queries without a key get zeros (1, 1, E)."""
        branch = Nodes(f"{name}.nothing")
        columns = width // attributes["kv_num_heads"] * attributes["q_num_heads"]
        row = branch("ReduceSum", branch("Mul", query, self.put.constant(np.float32(0))), self.put.constant([2]))
        return branch.graph([branch("Expand", row, self.put.constant([1, 1, columns]))])

    def _one(self, name: str, length: ir.Value, inputs: Sequence[ir.Value], attributes: dict[str, Any]) -> ir.Graph:
        """The attention of one sequence that has keys."""
        branch, short, long = (Nodes(f"{name}.{part}") for part in ("one", "short", "long"))
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
