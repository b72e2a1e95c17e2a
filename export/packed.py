"""Encoders for OpenVINO whose layers run on real tokens only; the graph's inputs and outputs stay as they are.

    (B, L) → pack → (1, N), the N real tokens → embeddings, products, norms, … → unpack → (B, L, E), 0 at padding

Attention alone needs rectangles. The sequences are sorted by their tokens, and the longer half and the shorter half
each get one, as wide as the longest of its own:

    (1, N, E) → Gather → (rows, width, E) of each half → Attention → both in a row → Gather → (1, N, E)

N and the widths are rounded up, since OpenVINO spends time on every size that it has not met. The first token of a
sequence counts as real even where it is padding, for heads that read it. docs/decisions/openvino.md says what was
measured; `padding_free` is the form for ONNX Runtime's own kernels, with a Loop over the sequences.
"""

import numpy as np
import onnx_ir as ir

from isoformer.export import by_token, taken_apart
from isoformer.export.attention_scale import product_of
from isoformer.export.build import Build
from isoformer.export.edit import width
from isoformer.export.kept import Kept

GROUPS = 2
_SWAP = (0, 2, 1, 3)
TOKENS, WIDTH = 32, 16  # what the real tokens and a rectangle's width are rounded up to


def apply(model: ir.Model) -> list[str]:
    """Rewrites the graph; returns the outputs that are 0 at padding from now on. Raises as `by_token.apply` does."""
    _separate_products(model.graph)
    return by_token.apply(model, _Packing)


def _separate_products(graph: ir.Graph) -> None:
    """One product for each of query, key and value in place of one and a Split, which copies every token again."""
    build = Build(graph, "separate")
    for split in [node for node in graph if node.op_type == "Split" and node.attributes["axis"].as_int() == -1]:
        found = product_of(split.inputs[0])
        readers = [use.node.op_type for output in split.outputs for use in output.uses()]
        if found is None or found.sum is None or set(readers) != {"Attention"} or len(readers) != len(split.outputs):
            continue
        if any(output.is_graph_output() for output in split.outputs):
            continue
        end = 0
        for old in split.outputs:
            begin, end = end, end + width(old)
            columns = build.constant([begin]), build.constant([end])
            table = build("Slice", found.product.inputs[1], *columns, build.constant([1]))
            made = build("MatMul", found.product.inputs[0], table)
            new = build("Add", made, build("Slice", found.sum.inputs[found.bias], *columns, build.constant([0])))
            for value in (made, new):
                value.type, value.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new)
        graph.remove(split, safe=True)
    graph.sort()


class _Packing:
    """Where the tokens that are computed stand, found once for all layers."""

    def __init__(self, graph: ir.Graph, real: ir.Value) -> None:
        put = self.put = Build(graph, "packed")
        kept = self.kept = Kept(put, real)
        number = put("Shape", kept.places)
        more = put("Sub", self._rounded_up(number, TOKENS), number)
        self.places = put("Concat", kept.places, put("Expand", put.constant([0]), more), axis=0)  # (N,)
        keys = put("ReduceSum", put("Cast", real, to=ir.DataType.INT64), put.constant([1]), keepdims=0)
        batch = put("Shape", real, start=0, end=1)
        starts, end = self._group(batch, kept.counts, put("Sub", kept.counts, keys))
        own = put("Gather", starts, put("Div", self.places, kept.length))
        # (N,): of each token its place among the results of all groups, any for those beyond the real ones
        tokens = kept.range(put("Shape", self.places))
        self.results = put("Min", put("Add", own, tokens), put("Sub", end, put.constant([1])))

    def _rounded_up(self, number: ir.Value, step: int) -> ir.Value:
        steps = self.put("Div", self.put("Add", number, self.put.constant([step - 1])), self.put.constant([step]))
        return self.put("Mul", steps, self.put.constant([step]))

    def _group(self, batch: ir.Value, counts: ir.Value, skipped: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cuts the sequences, the longest first, into groups of like number; makes the places and mask of each.

        counts: of each sequence's tokens, (B,). skipped: 1 where the first is padding, (B,). Returns (B,), what is
        added to a token's number among all for its place among the results of all groups, and their number.

        A group that has no sequence, for there are fewer than groups, gets one of another's, cut to the least width:
        not all operators take sizes of 0. Nobody reads its result.
        """
        put, one = self.put, self.put.constant([1])
        order = put.several(2, "TopK", counts, batch, axis=0)[1]
        begins = put("Gather", put("Sub", put("CumSum", counts, put.constant(0)), counts), order)
        counts, skipped = put("Gather", counts, order), put("Gather", skipped, order)
        rank, last = self.kept.range(batch), put("Sub", put("Shape", self.places), one)
        starts = offset = put.constant([0])
        self.groups: list[tuple[ir.Value, ir.Value]] = []
        for number in range(GROUPS):
            first, end = (self._cut(batch, part) for part in (number, number + 1))
            begin, stop = put("Min", first, put("Sub", batch, one)), put("Max", end, one)
            longest = put("Mul", put("Gather", counts, begin), put("Min", put("Sub", end, first), one))
            wide = self._rounded_up(put("Max", longest, one), WIDTH)
            own = [
                put("Unsqueeze", put("Slice", values, begin, stop, put.constant([0])), one)
                for values in (begins, counts, skipped)
            ]  # each (b, 1)
            self._add_group(self.kept.range(wide), own, last)
            here = put("Add", offset, put("Mul", put("Sub", rank, first), wide))
            starts = put("Where", put("GreaterOrEqual", rank, first), here, starts)
            offset = put("Add", offset, put("Mul", put("Sub", stop, begin), wide))
        return put("ScatterElements", order, order, put("Sub", starts, begins), axis=0), offset

    def _cut(self, batch: ir.Value, part: int) -> ir.Value:
        """How many sequences are in the first `part` groups."""
        parts = self.put("Mul", batch, self.put.constant([part]))
        return self.put("Div", self.put("Add", parts, self.put.constant([GROUPS - 1])), self.put.constant([GROUPS]))

    def _add_group(self, columns: ir.Value, own: list[ir.Value], last: ir.Value) -> None:
        """The places of a group's tokens among all, (b, width), and its mask, (b, 1, width, width)."""
        put, (begins, counts, skipped) = self.put, own
        places = put("Min", put("Add", begins, columns), last)
        keys = put("And", put("Less", columns, counts), put("GreaterOrEqual", columns, skipped))
        keys = put("Unsqueeze", keys, put.constant([1, 2]))
        keys.type, keys.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([None, 1, 1, None])
        size = put("Concat", put.constant([1, 1]), put("Shape", columns), put.constant([1]), axis=0)
        mask = put("Expand", keys, size)
        mask.type, mask.shape = keys.type, ir.Shape([None, 1, None, None])
        self.groups.append((places, mask))

    def packed(self, value: ir.Value) -> ir.Value:
        """(B, L, E) → (1, N, E), (B, L) → (1, N); (L, E), a row for each place, → (1, N, E)"""
        return self._alone(self.kept.packed(value, self.places))

    def _alone(self, tokens: ir.Value) -> ir.Value:
        return self.put("Unsqueeze", tokens, self.put.constant([0]))

    def unpacked(self, value: ir.Value) -> ir.Value:
        """(1, N, E) → (B, L, E), 0 at padding"""
        size, producer = width(value), value.producer()
        if producer is not None and producer.op_type in by_token.NORMS:  # else the model's sums stay in float32
            value = taken_apart.through_identity(self.put, value, size)
        return self.kept.unpacked(value, size)

    def attention(self, node: ir.Node) -> ir.Value:
        """The node's attention, of packed queries, keys and values: (1, N, E), each group's in a rectangle."""
        put, kv_heads = self.put, node.attributes["kv_num_heads"].as_int()
        heads = (node.attributes["q_num_heads"].as_int(), kv_heads, kv_heads)
        attributes = {name: attribute.value for name, attribute in node.attributes.items() if "num_heads" not in name}
        columns = width(node.outputs[0])
        results = []
        for places, mask in self.groups:
            query, key, value = (
                self._heads(x, count, places, by_head=x is node.inputs[1])
                for x, count in zip(node.inputs[:3], heads, strict=True)
                if x is not None
            )
            result = put("Attention", query, key, value, mask, **attributes)
            result.type, result.shape = query.type, ir.Shape([None, heads[0], None, columns // heads[0]])
            results.append(put("Reshape", put("Transpose", result, perm=_SWAP), put.constant([-1, columns])))
        return self._alone(put("Gather", put("Concat", *results, axis=0), self.results))

    def _heads(self, x: ir.Value, heads: int, places: ir.Value, *, by_head: bool) -> ir.Value:
        """(1, N, E) → (b, heads, width, E / heads), a group's.

        by_head: gathered head by head, for keys: OpenVINO fuses the Transpose of queries and values into attention, and
        would run that of keys by itself.
        """
        put, size = self.put, width(x) // heads
        if by_head:
            first = put("Mul", put("Unsqueeze", places, put.constant([1])), put.constant([heads]))  # (b, 1, width)
            rows = put("Add", first, put.constant(np.arange(heads).reshape(1, heads, 1)))
            found = put("Gather", put("Reshape", x, put.constant([-1, size])), rows)
        else:
            rows = put("Gather", put("Reshape", x, put.constant([-1, width(x)])), places)  # (b, width, E)
            found = put("Transpose", put("Reshape", rows, put.constant([0, 0, heads, size])), perm=_SWAP)
        found.type, found.shape = x.type, ir.Shape([None, heads, None, size])
        return found
