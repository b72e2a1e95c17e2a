"""What the layouts of decoders have in common: which graph, what it is like, and edits of its edge.

Our decoders take `logits_positions` (B, N): of which places of the input the logits are wanted. Other programs do not
know that input, so the graph computes it from what they do feed. All edits leave the weights alone.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from isoformer.export.edit import initializer
from isoformer.export.errors import ExportError
from isoformer.export.shared_cache import SINKS
from isoformer.runtime.package import Package

INPUTS = {"input_ids", "attention_mask", "position_ids", "logits_positions"}
PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Sizes:
    """Of a decoder, as its signature and its family's configuration state them."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_heads: int
    hidden_size: int
    vocab_size: int
    max_positions: int


def sizes(package: Package) -> Sizes:
    """Raises ExportError for a package without the family's configuration."""
    keys = [spec for spec in package.signature.inputs if spec.name.startswith(PAST) and spec.name.endswith(".key")]
    logits = {spec.name: spec for spec in package.signature.outputs}["logits"]
    positions = {spec.name: spec for spec in package.signature.inputs}["position_ids"]
    config = package.manifest.get("config") or {}
    try:
        return Sizes(
            num_layers=len(keys),
            num_kv_heads=int(keys[0].axes[1]),
            head_dim=int(keys[0].axes[3]),
            num_heads=int(config["num_heads"]),
            hidden_size=int(config["hidden_size"]),
            vocab_size=int(logits.axes[2]),
            max_positions=int(positions.high or 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{package.path} does not state the decoder's sizes ({error}); export it again") from None


def refuse_others(package: Package, layout: str) -> None:
    """Raises ExportError unless the package generates, with one graph whose inputs other programs know."""
    task = package.task.get("name")
    if task != "generate" or package.parts:
        raise ExportError(f"the layout {layout} takes decoders (task generate); {package.path} is for {task}")
    names = [spec.name for spec in package.signature.inputs]
    foreign = [name for name in names if name not in INPUTS and not name.startswith(PAST)]
    if foreign:
        raise ExportError(f"{layout} does not feed {', '.join(foreign)}, which {package.path} has")
    lacking = [name for name in ("input_ids", "attention_mask", "position_ids", f"{PAST}0.key") if name not in names]
    if lacking or "logits" not in [spec.name for spec in package.signature.outputs]:
        raise ExportError(f"{layout} feeds {', '.join(lacking) or 'a decoder'}; {package.path} is made otherwise")


def path_of(package: Package, variant: str | None) -> str:
    """The file of a variant, or of the canonical graph. Raises ExportError for a cache that no other program keeps."""
    if variant is not None and package.variant(variant).get("cache_dtype") == "int8":
        raise ExportError(
            f"{variant} keeps keys and values in 8 bits, which isoformer's Python alone does; take --precision fp32, "
            "or export it without --cache int8"
        )
    return f"{package.graph}.onnx" if variant is None else package.variant(variant)["path"]


def is_shared(package: Package, variant: str | None) -> bool:
    """Whether the cache is written in place, by GroupQueryAttention."""
    return variant is not None and package.variant(variant)["cache"] == "shared"


class Builder:
    """Adds small nodes at the graph's beginning, in the order of the calls."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.nodes = graph, []

    def __call__(self, operator: str, *inputs: ir.Value | int | list[int], **attributes: int) -> ir.Value:
        values = [x if isinstance(x, ir.Value) else self._constant(np.array(x, np.int64)) for x in inputs]
        node = ir.node(operator, values, attributes=attributes, name=f"layout.{len(self.nodes)}")
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, values: np.ndarray) -> ir.Value:
        name = f"layout.constant.{'scalar' if not values.ndim else 'list'}.{'_'.join(map(str, values.reshape(-1)))}"
        return self.graph.initializers.get(name) or initializer(self.graph, name, values)

    def insert(self) -> None:
        self.graph.insert_before(self.graph[0], self.nodes)


def named(graph: ir.Graph, name: str) -> ir.Value:
    """An input of the graph."""
    return next(value for value in graph.inputs if value.name == name)


def replace_positions(graph: ir.Graph, build: Builder, positions: ir.Value, count: int | str) -> None:
    """Puts (B, count) in the place of the input logits_positions, which goes."""
    old = named(graph, "logits_positions")
    build.insert()
    ir.convenience.replace_all_uses_with(old, positions)
    graph.inputs.remove(old)
    logits = next(value for value in graph.outputs if value.name == "logits")
    logits.shape = ir.Shape([logits.shape[0], count, logits.shape[2]])  # pyright: ignore[reportOptionalSubscript]


def growing_cache(graph: ir.Graph) -> None:
    """Names the axes of a cache that is not shared: GroupQueryAttention then gives a longer one."""
    for value in (*graph.inputs, *graph.outputs):
        axis = {PAST: "past_sequence_length", PRESENT: "total_sequence_length"}
        for start, length in axis.items():
            if value.name and value.name.startswith(start) and value.shape is not None:
                value.shape = ir.Shape([*list(value.shape)[:2], length, value.shape[3]])


def whole_prompts(graph: ir.Graph) -> None:
    """Takes out what `shared_cache` adds for steps: these programs give a prompt whole, however long."""
    for node in graph:
        if (
            node.op_type == "GroupQueryAttention"
            and len(node.inputs) > SINKS
            and (sinks := node.inputs[SINKS]) is not None
        ):
            node.replace_input_with(SINKS, None)
            if not sinks.uses():
                graph.initializers.pop(str(sinks.name))
