"""The product with a large vocabulary in two steps: all tokens roughly, the likeliest again with float32 activations.

    y = x @ roughly Wᵀ      c = the CANDIDATES largest of y      y[c] = x @ W8[c]ᵀ

Roughly is 4 bits for a single row, which so reads two thirds of the bytes; several rows share one reading of the
weights, and take 8 bits. What is chosen from is as exact as weights in 8 bits are; that the activations of this product
have 8 bits too would cost more than one in a hundred of the likeliest tokens (docs/decisions/variants.md).
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build, Nodes

CANDIDATES = 16
SMALLEST = 1000  # tokens: of fewer, choosing costs more than it saves

Product = Callable[[Nodes], ir.Value]


def worth_it(tokens: int) -> bool:
    """Whether a vocabulary of so many is large enough."""
    return tokens >= SMALLEST


def in_two_steps(
    build: Build, x: ir.Value, table: ir.Value, scale: ir.Value, in_4_bits: Product, in_8_bits: Product
) -> ir.Value:
    """The product of x (…, K) with the table (N, K) of 8 bits, whose scales (N,) are one a row.

    in_4_bits, in_8_bits: make the nodes of y.
    """
    constant, last = build.constant, build.constant(np.array([-1]))
    one, many = Nodes(f"{build.name}.one"), Nodes(f"{build.name}.many")
    rows = build("ReduceProd", build("Shape", x, start=0, end=-1), keepdims=0)
    alone = build("Equal", rows, constant(np.array(1)))
    rough = build("If", alone, then_branch=one.graph([in_4_bits(one)]), else_branch=many.graph([in_8_bits(many)]))
    _, places = build.several(2, "TopK", rough, constant(np.array([CANDIDATES])), axis=-1, sorted=0)
    weights = build("Cast", build("Gather", table, places, axis=0), to=int(ir.DataType.FLOAT))  # (…, CANDIDATES, K)
    found = build("Squeeze", build("MatMul", weights, build("Unsqueeze", x, last)), last)
    found = build("Mul", found, build("Gather", scale, places, axis=0))
    return build("ScatterElements", rough, places, found, axis=-1)
