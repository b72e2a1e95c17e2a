"""Decoders whose keys and values are kept in 8 bits: GroupQueryAttention as `shared_cache` leaves it, on such buffers.

A step is for one channel of one head, known beforehand. A prompt, whose first token is the sequence's, attends to its
own keys and values as they are computed, and only leaves them behind in 8 bits: ONNX Runtime is some twice as fast so.
What follows reads them there:

    if nothing is held:  y, k, v = GroupQueryAttention(qkv)      present = TensorScatter(past, QuantizeLinear(k / step))
    else:                y, present = GroupQueryAttention(qkv, past, step)

TensorScatter is of opset 24. Both branches write where past and present are one buffer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Constants, Nodes
from isoformer.export.edit import take_over
from isoformer.export.errors import ExportError
from isoformer.export.shared_cache import MICROSOFT
from isoformer.runtime.binding import Decoder
from isoformer.runtime.package import PAST, PRESENT
from isoformer.runtime.session import Session

DTYPE = "int8"
OPSET = 24
LEAST, MOST = -128, 127
MARGIN = 1.5  # times the largest number that was seen: see docs/decisions/variants.md
PIECE = 8  # tokens of each beginning that is looked at
Steps = Mapping[str, np.ndarray]


def steps(decoder: Decoder, tokens: Sequence[int], margin: float = MARGIN) -> dict[str, np.ndarray]:
    """For each input `past_key_values.*` the steps (K, D) of its heads and channels.

    decoder: of the same graph while its cache is float32. tokens: a text, whose keys and values are looked at.
    """
    largest_of = _largest(decoder, [tokens])
    # A sequence's first token may have keys and values like no other, so the text begins at many places.
    beginnings = _largest(decoder, [tokens[at : at + PIECE] for at in range(0, max(len(tokens) - PIECE, 0) + 1, PIECE)])
    found = {}
    for name in largest_of:
        largest = np.maximum(largest_of[name], beginnings[name])
        # A channel that the text leaves at zero gets the head's largest step: nothing says that it stays there.
        head = np.maximum(largest.max(-1, keepdims=True), 1e-6)
        found[name] = (margin * np.where(largest > 0, largest, head) / MOST).astype(np.float32)
    return found


def _largest(decoder: Decoder, sequences: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Of each head and channel (K, D), over all tokens of equally long sequences."""
    decoder.score(sequences)
    length = len(sequences[0])
    return {name: np.abs(held[:, :, :length]).max((0, 2)) for name, held in decoder.held().items()}


class Rounded(Decoder):
    """A decoder whose cache is float32, and after each run rounded to what one in 8 bits holds.

    Computed by numpy, so that the graph that `apply` makes can be held to it.
    """

    def __init__(self, session: Session, steps: Steps) -> None:
        super().__init__(session)
        self._steps = steps

    def _run(self, new: Sequence[Sequence[int]], asked: np.ndarray) -> np.ndarray:
        logits = super()._run(new, asked)
        for name, held in self.held().items():
            step = self._steps[name][:, None]  # (K, 1, D)
            held[:, :, : self.length] = np.clip(np.rint(held[:, :, : self.length] / step), LEAST, MOST) * step
        return logits


def apply(model: ir.Model, steps: Steps) -> int:
    """Rewrites each GroupQueryAttention; returns how many.

    steps: see `steps`. Raises ExportError for a graph without any.
    """
    graph = model.graph
    layers = [node for node in graph if node.op_type == "GroupQueryAttention"]
    if not layers:
        raise ExportError("there is no cache written in place in this graph, which one in 8 bits must be")
    constant, prompt = Constants(graph, "int8_cache"), _nothing_held(graph)
    for node in layers:
        own = [constant(steps[str(past and past.name)][None, :, None]) for past in node.inputs[3:5]]
        _rewrite(graph, node, prompt, own, constant)
    for value in (*graph.inputs, *graph.outputs):
        if value.name and value.name.startswith((PAST, PRESENT)):
            value.dtype = ir.DataType.INT8
    graph.opset_imports[""] = max(graph.opset_imports[""], OPSET)
    return len(layers)


def _nothing_held(graph: ir.Graph) -> ir.Value:
    """Whether the mask is as long as the new tokens: no row holds any, as all get equally many once one does."""
    inputs = {value.name: value for value in graph.inputs}
    build = Nodes("int8_cache")
    ids, mask = (build("Shape", inputs[name], start=1, end=2) for name in ("input_ids", "attention_mask"))
    same = build("Squeeze", build("Equal", ids, mask))
    graph.insert_before(graph[0], build.made)
    return same


def _rewrite(graph: ir.Graph, node: ir.Node, prompt: ir.Value, steps: list[ir.Value], constant: Constants) -> None:
    fresh, pasts, lengths_and_tables = node.inputs[:3], node.inputs[3:5], node.inputs[5:]
    rest = [*lengths_and_tables, *[None] * (12 - len(node.inputs))]
    attributes = {"domain": MICROSOFT, **node.attributes}

    begin = Nodes(f"{node.name}.prompt")
    answer, *new = begin.several(3, node.op_type, *fresh, None, None, *rest, **attributes)
    kept = []
    for past, values, step in zip(pasts, new, steps, strict=True):
        numbers = begin("QuantizeLinear", begin("Div", values, step), constant(np.float32(1)), constant(np.int8(0)))
        kept.append(begin("TensorScatter", past, numbers, axis=2))

    go_on = Nodes(f"{node.name}.held")
    quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    held = go_on.several(3, node.op_type, *fresh, *pasts, *rest, *steps, **attributes, **quantized)

    both = Nodes(f"{node.name}.branches")
    first, later = begin.graph([answer, *kept]), go_on.graph(list(held))
    chosen = both.several(3, "If", prompt, then_branch=first, else_branch=later)
    graph.insert_before(node, both.made)
    take_over(node, chosen)
