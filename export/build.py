"""Nodes that a pass adds to a graph, one call each, and the constants that they share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from isoformer.export import edit


class Nodes:
    """The nodes of a subgraph, in the order in which they are made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: list[ir.Node] = []

    def __call__(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self.several(1, kind, *inputs, domain=domain, **attributes)[0]

    def several(
        self, count: int, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """The outputs of a node that has so many."""
        name = f"{self.name}.{len(self.made)}.{kind}"
        node = ir.node(kind, list(inputs), attributes=attributes, domain=domain, name=name, num_outputs=count)
        for number, output in enumerate(node.outputs):
            output.name = f"{name}.{number}" if number else name
        self.made.append(node)
        return node.outputs

    def graph(self, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> ir.Graph:
        return ir.Graph(inputs, outputs, nodes=self.made, name=self.name)

    def weight(self, values: np.ndarray, name: str = "weight") -> ir.Value:
        """A constant under a name of its own, which must be new.

        Of a subgraph it stands in the graph's own file: ONNX's checks of an `If` refuse a file of its weights that has
        several hard links, as converted packages share theirs. So it is for small ones.
        """
        label = f"{self.name}.{name}"
        return self("Constant", value=ir.tensor(np.ascontiguousarray(values), name=label))


class Constants:
    """A graph's constants, each of them once."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.known: dict[tuple, ir.Value] = {}

    def __call__(self, value: Any) -> ir.Value:
        values = np.asarray(value)
        key = (values.dtype, values.shape, values.tobytes())
        if key not in self.known:
            self.known[key] = edit.initializer(self.graph, f"{self.name}.constant.{len(self.known)}", values)
        return self.known[key]


class Build(Nodes):
    """Nodes of a graph, and what they read.

    place: the node in front of which they stand; without one they stand at the end, to be sorted later. constant: what
    it shares with others.
    """

    def __init__(
        self, graph: ir.Graph, name: str, place: ir.Node | None = None, constant: Constants | None = None
    ) -> None:
        super().__init__(name)
        self.whole, self.place = graph, place
        self.constant = constant or Constants(graph, name)

    def several(
        self, count: int, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        outputs = super().several(count, kind, *inputs, domain=domain, **attributes)
        if self.place is None:
            self.whole.append(self.made[-1])
        else:
            self.whole.insert_before(self.place, self.made[-1])
        return outputs

    def weight(self, values: np.ndarray, name: str = "weight") -> ir.Value:
        return edit.initializer(self.whole, f"{self.name}.{name}", values)
