"""Products with constant matrices in 8 or 4 bits. What they cost in quality is measured afterwards, see `variants`.

8 bits: a scale for each column of the weights W, one for each row of the activations x:

    p = max|x|    q = round(127 x / p)    y = p · (q / 127 @ W8) · scale

One scale for all rows (DynamicQuantizeLinear) would be a little faster, and a row's answer would then depend on the
other rows: docs/decisions/variants.md.

4 bits: blocks of 32 or 64 values down each column of W, which are whole multiples of a step d that 4 bits can count
(`gptq` makes them so, and GGUF's Q4_0 is such). The activations stay float32 (MatMulNBits rounds them to 8 bits by
blocks where the processor is faster so):

    W = d · (w - z),  w, z = 0 … 15

Others become blocks of 8 bits, w = 1 … 255, z = 128; or, if asked for, blocks of 32 in 4 bits, each with an offset m:

    W = d · (w - 8) + (m + 8 d),  w = 0 … 15      y = x @ [d · (w - 8)] + [sums of x by blocks] @ [m + 8 d]
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from isoformer.export import head
from isoformer.export.build import Build, Constants, Nodes
from isoformer.export.edit import array, remove_unused, take_over, width

MICROSOFT = "com.microsoft"
SMALLEST = 256  # values of a weight that is worth it
BLOCK = 32  # of offsets
BLOCKS = (64, 32)  # of whole zero points and of 8 bits; the larger, the fewer scales are read
ROUNDING = 1e-4  # of a step: what float32 makes of whole ones, some thousand times over


def int8(model: ir.Model) -> int:
    """Every product with a constant matrix in 8 bits; returns how many.

    A table that is also looked up, such as tied embeddings, is kept once, in 8 bits.
    """
    return _rewrite(model, lambda _weight, _tied: False)


def int4(model: ir.Model, *, offsets: bool = True, coarse: np.ndarray | None = None) -> int:
    """Every product with a constant matrix in 4 bits, those with tables that are also looked up in 8; returns how many.

    So are those whose columns are no whole number of blocks. Products of one activation without offsets are one: the
    less a single row waits for, the better. offsets: what stands on no grid gets offsets; else it gets 8 bits.
    coarse: the table (N, K) of the vocabulary on grids of 4 bits, with which a single row goes through it in two steps
    (`head`), so that unlikely tokens' logits differ from those of the same row in a batch; None is a vocabulary in 8
    bits alone.
    """
    count = _rewrite(model, lambda weight, tied: not tied and weight.shape[0] % BLOCK == 0, offsets, coarse)
    _merge(model.graph)
    remove_unused(model)
    return count


def _rewrite(
    model: ir.Model,
    in_4_bits: Callable[[np.ndarray, bool], bool],
    offsets: bool = True,
    coarse: np.ndarray | None = None,
) -> int:
    graph = model.graph
    rows, blocks, constant = _once(_rows), _once(_block_sums), Constants(graph, "quantize")
    found = [(node, *weight) for node in list(graph) if (weight := _weight(node)) is not None]
    tables: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
    for number, (node, source, tied) in enumerate(found):
        x, values = node.inputs[0], array(source)
        build = Build(graph, f"product.{number}", node, constant)
        if in_4_bits(values, tied):
            result = _in_4_bits(build, x, values, blocks if offsets else None)
        else:
            axis = 1 if tied else 0
            if (source, tied) not in tables:
                scale = np.maximum(np.abs(values).max(axis, keepdims=True), 1e-30) / 127
                table = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
                tables[source, tied] = build.weight(table), build.weight(scale.astype(np.float32).reshape(-1), "scale")
            pair = tables[source, tied]
            if tied and coarse is not None and coarse.shape == values.shape:
                result = _in_two_steps(build, x, *pair, coarse)
            else:
                result = _in_8_bits(build, constant, x, *pair, rows, flipped=tied)
        take_over(node, [result])
    for (source, tied), (table, scale) in tables.items():
        for use in list(source.uses()):
            if tied and use.node.op_type == "Gather" and use.idx == 0:  # its scales are one a row
                name = f"{use.node.name or use.node.outputs[0].name}.int8"
                _look_up(Build(graph, name, use.node, constant), use.node, table, scale)
    if found:
        model.opset_imports.setdefault(MICROSOFT, 1)
        remove_unused(model)
    return len(found)


def _merge(graph: ir.Graph) -> None:
    """Products of one activation in 4 bits with zero points as one, and a Split."""
    groups: dict[tuple, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMulNBits" and len(node.inputs) == 4:
            alike = (node.inputs[0], *(node.attributes[name].as_int() for name in ("K", "bits", "block_size")))
            groups.setdefault(alike, []).append(node)
    for (x, *_), nodes in groups.items():
        if len(nodes) > 1:
            build = Build(graph, f"{nodes[0].name}.merged", nodes[0])
            weights = (
                build.weight(np.concatenate([array(node.inputs[place]) for node in nodes]), name)
                for place, name in enumerate(("weight", "scale", "zeros"), 1)
            )
            columns = [node.attributes["N"].as_int() for node in nodes]
            attributes = {"N": sum(columns)} | {name: a for name, a in nodes[0].attributes.items() if name != "N"}
            product = build("MatMulNBits", x, *weights, domain=MICROSOFT, **attributes)
            parts = build.several(len(nodes), "Split", product, build.weight(np.array(columns), "columns"), axis=-1)
            for node, part in zip(nodes, parts, strict=True):
                take_over(node, [part])


def _in_8_bits(
    build: Nodes, constant: Constants, x: Any, table: Any, scale: Any, rows: Any, *, flipped: bool
) -> ir.Value:
    weight = build("Transpose", table, perm=[1, 0]) if flipped else table
    quantized, peak = rows(build, constant, x)
    unit, zero = constant(np.float32(1 / 127)), constant(np.uint8(128))
    # With these scales in the operator itself, no optimizer of ONNX Runtime takes p for a scalar.
    product = build("MatMulIntegerToFloat", quantized, weight, unit, scale, zero, domain=MICROSOFT)
    return build("Mul", product, peak)


def _rows(build: Nodes, constant: Constants, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """q (unsigned around 128, which the processors' products want) and p."""
    # Of a row of zeros q is 0 / 0, for which there stands some number or other, and its product with p is 0 again.
    peak = build("ReduceMax", build("Abs", x), constant([-1]), keepdims=1)
    unit, zero = constant(np.float32(1 / 127)), constant(np.uint8(128))
    return build("QuantizeLinear", build("Div", x, peak), unit, zero), peak


def _in_two_steps(build: Build, x: Any, table: ir.Value, scale: ir.Value, coarse: np.ndarray) -> ir.Value:
    whole = pack_whole(coarse.T)
    if whole is None:
        raise ValueError("the vocabulary does not stand on grids of 4 bits")
    packed, steps, zeros = whole
    weights = _weights(Build(build.whole, f"{build.name}.coarse", constant=build.constant), 4, packed, steps)

    def in_4_bits(branch: Nodes) -> ir.Value:
        # ONNX Runtime before 1.30 takes no notice of zero points that stand outside of a branch.
        own = branch.weight(zeros.reshape(-1), "zeros")
        return _by_blocks(branch, x, replace(weights, inputs=(*weights.inputs, own)))

    def in_8_bits(branch: Nodes) -> ir.Value:
        return _in_8_bits(branch, build.constant, x, table, scale, _rows, flipped=True)

    return head.in_two_steps(build, x, table, scale, in_4_bits, in_8_bits)


def _in_4_bits(build: Build, x: Any, values: np.ndarray, blocks: Any) -> ir.Value:
    """blocks: makes the sums by blocks of an activation; None is no offsets, and 8 bits instead of them."""
    if (whole := _whole(build, values)) is not None:
        return _by_blocks(build, x, whole)
    if blocks is None:
        return _by_blocks(build, x, _weights(build, 8, *pack_8_bits(values)))
    packed, scale, offset = pack(values)
    product = _by_blocks(build, x, _weights(build, 4, packed, scale))
    return build("Add", product, build("MatMul", blocks(build, build.constant, x), build.weight(offset, "offset")))


@dataclass(frozen=True)
class _Weights:
    """What MatMulNBits reads of a matrix, and how."""

    inputs: tuple[ir.Value, ...]
    attributes: dict[str, int]


def _weights(
    build: Nodes, bits: int, packed: np.ndarray, scale: np.ndarray, zeros: np.ndarray | None = None
) -> _Weights:
    """packed (N, blocks, bytes of a block), scale (N, blocks), zeros or the operator's own."""
    columns, blocks, size = packed.shape
    block = size * 8 // bits
    inputs = [build.weight(packed), build.weight(scale.reshape(-1), "scale")]
    if zeros is not None:
        inputs.append(build.weight(zeros.reshape(-1), "zeros"))
    attributes = {"K": blocks * block, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    return _Weights(tuple(inputs), attributes)


def _whole(build: Build, values: np.ndarray) -> _Weights | None:
    whole = pack_whole(values)
    return None if whole is None else _weights(build, 4, *whole)


def _by_blocks(build: Nodes, x: Any, weights: _Weights) -> ir.Value:
    return build("MatMulNBits", x, *weights.inputs, domain=MICROSOFT, **weights.attributes)


def block_of(size: int) -> int | None:
    """The largest block that so many values are a whole number of."""
    return next((block for block in BLOCKS if size % block == 0), None)


def pack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (K, N) → two values a byte (N, K / 32, 16), d (N, K / 32) and m + 8 d (K / 32, N), float32.

    d and m take each block's smallest value to 0 and its largest to 15, so that what was stored in this
    form already (GGUF's Q4_1, Q4_0) comes out as it was.
    """
    blocks = _blocks(values)
    low, high = blocks.min(-1), blocks.max(-1)
    scale = (high - low) / 15
    steps = np.where(scale > 0, scale, 1.0)[..., None]
    numbers = np.clip(np.round((blocks - low[..., None]) / steps), 0, 15).astype(np.uint8)
    return _bytes(numbers), scale.astype(np.float32), (low + 8 * scale).T.astype(np.float32)


def pack_8_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W (K, N) → around 128 (N, blocks, block), d (N, blocks)"""
    blocks = _blocks(values, block_of(len(values)) or BLOCK)
    scale = np.maximum(np.abs(blocks).max(-1), 1e-30) / 127
    return (np.round(blocks / scale[..., None]) + 128).astype(np.uint8), scale.astype(np.float32)


def pack_whole(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """W (K, N) → two values a byte (N, blocks, block / 2), d (N, blocks), and z, two a byte (N, ⌈blocks / 2⌉).

    The blocks are the largest that K is a whole number of and that stand on grids; None where none do: where some
    block of 32 is no grid of up to 16 steps of which one is 0.
    """
    for block in BLOCKS:
        if len(values) % block == 0 and (found := _pack_whole(_blocks(values, block))) is not None:
            return found
    return None


def _pack_whole(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    found = _steps(blocks) if _steps(blocks[:8]) is not None else None  # most that are on none show it at once
    if found is None:
        return None
    scale, zeros = found
    numbers = np.clip(np.round(blocks / scale[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return _bytes(numbers), scale.astype(np.float32), _bytes(even)


def _steps(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """d and z (N, blocks) of blocks (N, blocks, block) whose values are all d · (w - z), or None."""
    low, high = np.minimum(blocks.min(-1), 0).reshape(-1), np.maximum(blocks.max(-1), 0).reshape(-1)
    flat, scale, open_ = blocks.reshape(-1, blocks.shape[-1]), np.ones(low.size), np.arange(low.size)
    # From the finest grid on, which holds those of half and a third as many steps as well: they are the same values.
    for steps in range(15, 0, -1):
        step = (high[open_] - low[open_]) / steps
        step[step == 0] = 1.0
        places = flat[open_] / step[:, None]
        on_grid = (np.abs(places - np.round(places)) < ROUNDING).all(-1)
        scale[open_[on_grid]] = step[on_grid]
        open_ = open_[~on_grid]
        if not open_.size:
            shape = blocks.shape[:2]
            return scale.reshape(shape), np.round(-low / scale).astype(np.uint8).reshape(shape)
    return None


def _blocks(values: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """(K, N) → (N, K / block, block), float64."""
    return values.T.reshape(values.shape[1], -1, block).astype(np.float64)


def _bytes(numbers: np.ndarray) -> np.ndarray:
    """Two of the last axis' numbers of 4 bits a byte, the first one low."""
    return numbers[..., 0::2] | (numbers[..., 1::2] << 4)


def _block_sums(build: Nodes, constant: Constants, x: ir.Value) -> ir.Value:
    """(…, K) → (…, K / 32), as a product with ones, which is one fast operator."""
    ones = np.kron(np.eye(width(x) // BLOCK, dtype=np.float32), np.ones((BLOCK, 1), np.float32))
    return build("MatMul", x, constant(ones))


def _weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """What a product reads: a constant matrix, or the table whose transpose it is (True)."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    value, flipped = node.inputs[1], False
    producer = value.producer() if value is not None else None
    if (
        producer is not None
        and producer.op_type == "Transpose"
        and list(producer.attributes["perm"].as_ints()) == [1, 0]
    ):
        value, flipped = producer.inputs[0], True
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    return (value, flipped) if value.const_value.size >= SMALLEST and value.dtype == ir.DataType.FLOAT else None


def _look_up(build: Build, node: ir.Node, table: ir.Value, scale: ir.Value) -> None:
    """Gather(W, ids) of the 8-bit table, whose scales are one a row."""
    ids = node.inputs[1]
    numbers = build("Cast", build("Gather", table, ids, axis=0), to=int(ir.DataType.FLOAT))
    scales = build("Unsqueeze", build("Gather", scale, ids, axis=0), build.constant([-1]))
    take_over(node, [build("Mul", numbers, scales)])


def _once(make: Callable[[Nodes, Constants, ir.Value], Any]) -> Callable[[Nodes, Constants, ir.Value], Any]:
    """What is made of an activation, made once for all that read it."""
    made: dict[ir.Value, Any] = {}

    def get(build: Nodes, constant: Constants, x: ir.Value) -> Any:
        if x not in made:
            made[x] = make(build, constant, x)
        return made[x]

    return get
