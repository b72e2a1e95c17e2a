"""The tokens of a batch that a graph on packed tokens computes: the real ones, and the first of each sequence.

The first counts even where it is padding, for heads that read it.
"""

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build
from isoformer.export.edit import width


class Kept:
    """Found once for all that asks, in the graph, N of them.

    shape: that of the batch, B and L; length: L alone, (1,). places: (N,), which of the B * L they are. counts: (B,),
    how many each sequence has, at least 1.
    """

    def __init__(self, put: Build, real: ir.Value) -> None:
        """real: (B, L), bool."""
        self.put, self.shape = put, put("Shape", real)
        self.length = put("Shape", real, start=1, end=2)
        first = put("Equal", self.range(self.length), put.constant(0))  # (L,)
        kept = put("Cast", put("Or", real, first), to=ir.DataType.INT64)  # (B, L)
        flat = put("Reshape", kept, put.constant([-1]))
        self.places = put("Squeeze", put("NonZero", flat), put.constant([0]))
        self.counts = put("ReduceSum", kept, put.constant([1]), keepdims=0)
        # (B, L): 0 where nothing is kept, n at the n-th token that is
        self._rows = put("Reshape", put("Mul", put("CumSum", flat, put.constant(0)), flat), self.shape)

    def range(self, size: ir.Value) -> ir.Value:
        """0, 1, …: as many as the one number of a vector says."""
        return self.put("Range", self.put.constant(0), self.put("Squeeze", size), self.put.constant(1))

    def packed(self, value: ir.Value, places: ir.Value) -> ir.Value:
        """What stands there, of (B, L, E) → (N, E), of (B, L) → (N,), of (L, E), a row for each place, → (N, E)."""
        if value.dtype != ir.DataType.FLOAT:
            flat = self.put("Reshape", value, self.put.constant([-1]))
        elif value.shape is not None and len(value.shape) == 2:
            return self.put("Gather", value, self.put("Mod", places, self.length))
        else:
            flat = self.put("Reshape", value, self.put.constant([-1, width(value)]))
        return self.put("Gather", flat, places)

    def unpacked(self, value: ir.Value, size: int) -> ir.Value:
        """(1, N or more, E) → (B, L, E), 0 where nothing is kept. size: E"""
        tokens = self.put("Reshape", value, self.put.constant([-1, size]))
        zero = self.put.constant(np.zeros((1, size), np.float32))
        return self.put("Gather", self.put("Concat", zero, tokens, axis=0), self._rows)
