"""Products with constant matrices in 8 or 4 bits. What they cost in quality is measured afterwards, see `variants`.

8 bits: a scale for each column of the weights W, one for each row of the activations x:

    p = max|x|    q = round(127 x / p)    y = p · (q / 127 @ W8) · scale

One scale for all rows (DynamicQuantizeLinear) would be a little faster, and a row's answer would then depend on the
other rows: docs/decisions/variants.md.

4 bits: blocks of 32 values down each column of W, each with a scale d and an offset m; the activations stay
float32 (MatMulNBits rounds them to 8 bits by blocks where the processor is faster so):

    W = d · (w - 8) + (m + 8 d),  w = 0 … 15      y = x @ [d · (w - 8)] + [sums of x by blocks] @ [m + 8 d]

Where each block's values are whole multiples of a step that 4 bits can count (`gptq` makes them so, and GGUF's Q4_0 is
such), the offset is a whole number z of steps, which the operator itself takes: W = d · (w - z), z = 0 … 15.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build, Constants
from isoformer.export.edit import array, remove_unused, take_over, width

MICROSOFT = "com.microsoft"
SMALLEST = 256  # values of a weight that is worth it
BLOCK = 32
ROUNDING = 1e-4  # of a step: what float32 makes of whole ones, some thousand times over


def int8(model: ir.Model) -> int:
    """Every product with a constant matrix in 8 bits; returns how many.

    A table that is also looked up, such as tied embeddings, is kept once, in 8 bits.
    """
    return _rewrite(model, lambda _weight, _tied: False)


def int4(model: ir.Model) -> int:
    """Every product with a constant matrix in 4 bits, those with tables that are also looked up in 8; returns how many.

    So are those whose columns are no whole number of blocks. Products of one activation without offsets are one: the
    less a single row waits for, the better.
    """
    count = _rewrite(model, lambda weight, tied: not tied and weight.shape[0] % BLOCK == 0)
    _merge(model.graph)
    remove_unused(model)
    return count


def _rewrite(model: ir.Model, in_4_bits: Callable[[np.ndarray, bool], bool]) -> int:
    graph = model.graph
    rows, blocks, constant = _once(_rows), _once(_block_sums), Constants(graph, "quantize")
    found = [(node, *weight) for node in list(graph) if (weight := _weight(node)) is not None]
    tables: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
    for number, (node, source, tied) in enumerate(found):
        x, values = node.inputs[0], array(source)
        build = Build(graph, f"product.{number}", node, constant)
        if in_4_bits(values, tied):
            result = _in_4_bits(build, x, values, blocks)
        else:
            axis = 1 if tied else 0
            if (source, tied) not in tables:
                scale = np.maximum(np.abs(values).max(axis, keepdims=True), 1e-30) / 127
                table = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
                tables[source, tied] = build.weight(table), build.weight(scale.astype(np.float32).reshape(-1), "scale")
            result = _in_8_bits(build, x, *tables[source, tied], rows, flipped=tied)
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
            groups.setdefault((node.inputs[0], node.attributes["K"].as_int()), []).append(node)
    for (x, _), nodes in groups.items():
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


def _in_8_bits(build: Build, x: Any, table: Any, scale: Any, rows: Any, *, flipped: bool) -> ir.Value:
    weight = build("Transpose", table, perm=[1, 0]) if flipped else table
    quantized, peak = rows(build, x)
    unit, zero = build.constant(np.float32(1 / 127)), build.constant(np.uint8(128))
    # With these scales in the operator itself, no optimizer of ONNX Runtime takes p for a scalar.
    product = build("MatMulIntegerToFloat", quantized, weight, unit, scale, zero, domain=MICROSOFT)
    return build("Mul", product, peak)


def _rows(build: Build, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """q (unsigned around 128, which the processors' products want) and p."""
    # Of a row of zeros q is 0 / 0, for which there stands some number or other, and its product with p is 0 again.
    peak = build("ReduceMax", build("Abs", x), build.constant([-1]), keepdims=1)
    unit, zero = build.constant(np.float32(1 / 127)), build.constant(np.uint8(128))
    return build("QuantizeLinear", build("Div", x, peak), unit, zero), peak


def _in_4_bits(build: Build, x: Any, values: np.ndarray, blocks: Any) -> ir.Value:
    size, columns = values.shape
    attributes = {"K": size, "N": columns, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    if (whole := pack_whole(values)) is not None:
        packed, scale, zeros = whole
        grid = build.weight(scale.reshape(-1), "scale"), build.weight(zeros.reshape(-1), "zeros")
        return build("MatMulNBits", x, build.weight(packed), *grid, domain=MICROSOFT, **attributes)
    packed, scale, offset = pack(values)
    inputs = [x, build.weight(packed), build.weight(scale.reshape(-1), "scale")]
    product = build("MatMulNBits", *inputs, domain=MICROSOFT, **attributes)
    return build("Add", product, build("MatMul", blocks(build, x), build.weight(offset, "offset")))


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


def pack_whole(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """W (K, N) → two values a byte (N, K / 32, 16), d (N, K / 32), and z, two a byte (N, ⌈K / 64⌉).

    None where some block is no grid of up to 16 steps of which one is 0.
    """
    blocks = _blocks(values)
    found = _steps(blocks) if _steps(blocks[:8]) is not None else None  # most that are on none show it at once
    if found is None:
        return None
    scale, zeros = found
    numbers = np.clip(np.round(blocks / scale[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return _bytes(numbers), scale.astype(np.float32), _bytes(even)


def _steps(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """d and z (N, K / 32) of blocks whose values are all d · (w - z), or None."""
    low, high = np.minimum(blocks.min(-1), 0).reshape(-1), np.maximum(blocks.max(-1), 0).reshape(-1)
    flat, scale, open_ = blocks.reshape(-1, BLOCK), np.ones(low.size), np.arange(low.size)
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


def _blocks(values: np.ndarray) -> np.ndarray:
    """(K, N) → (N, K / 32, 32), float64."""
    return values.T.reshape(values.shape[1], -1, BLOCK).astype(np.float64)


def _bytes(numbers: np.ndarray) -> np.ndarray:
    """Two of the last axis' numbers of 4 bits a byte, the first one low."""
    return numbers[..., 0::2] | (numbers[..., 1::2] << 4)


def _block_sums(build: Build, x: ir.Value) -> ir.Value:
    """(…, K) → (…, K / 32), as a product with ones, which is one fast operator."""
    ones = np.kron(np.eye(width(x) // BLOCK, dtype=np.float32), np.ones((BLOCK, 1), np.float32))
    return build("MatMul", x, build.constant(ones))


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


def _once(make: Callable[[Build, ir.Value], Any]) -> Callable[[Build, ir.Value], Any]:
    """What is made of an activation, made once for all that read it."""
    made: dict[ir.Value, Any] = {}

    def get(build: Build, x: ir.Value) -> Any:
        if x not in made:
            made[x] = make(build, x)
        return made[x]

    return get
