"""MiniLM with products in 8 bits on OpenVINO's provider, the rest in bfloat16: what it costs and what it gives.

    python -m benchmarks.openvino_int8 --package MINILM --ours PYTHON --work DIR [--calibration text] [--turns 3]

MINILM was exported with --provider openvino; ours: the python of an environment with isoformer[openvino]. DIR gets the
graphs. Weights have a scale a column, activations one a tensor, fixed beforehand; both are smoothed (see
`export/smooth.py`; here with the power 0.85 for every product but attention's last). calibration: 500 newsgroup lines
other than those of the measurement, or the text that comes with isoformer. JSON lines: quality over a thousand lines,
then median milliseconds a shape, in turns, each graph in its own process.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.openvino_provider import LINES, ROOT, Inputs, batches, lines, quality, serve

GRAPH = "variants/openvino-float32/model.onnx"
POWER = 0.85
KINDS = {"query_key_value": "qkv", "out_linear": "out", "up": "up", "down": "down"}  # by the weight's name
WAYS = {
    "bfloat16": (),
    "feed-forward": ("up", "down"),
    "without-out": ("qkv", "up", "down"),
    "all": ("qkv", "out", "up", "down"),
}


def products(model: Any) -> list[tuple[Any, str]]:
    """The layers' products with constant matrices, and what kind each is."""
    found = []
    for node in model.graph:
        name = node.inputs[1].name if node.op_type == "MatMul" else ""
        kind = KINDS.get(name.removesuffix(".weight").rpartition(".")[2])
        if kind and name in model.graph.initializers:
            found.append((node, kind))
    return found


def texts(kind: str) -> list[Inputs]:
    """What the activations' ranges are taken from."""
    if kind == "news":
        chosen = lines()[LINES : LINES + 500]
    else:
        found = re.split(r"(?<=[.!?])\s+|\n", (ROOT / "export/text.txt").read_text(encoding="utf-8"))
        chosen = [one for one in found if one.strip()]
    return [inputs for inputs, _ in batches(chosen, 1)]


def ranges(package: Path, samples: list[Inputs]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The least and largest value of each channel of each product's input."""
    import onnx_ir as ir

    from isoformer.runtime.providers import open_session

    model = ir.load(package / GRAPH)
    watched = list(dict.fromkeys(node.inputs[0] for node, _ in products(model)))
    model.graph.outputs.extend(watched)
    path = package / GRAPH.replace("model.onnx", "watched.onnx")
    ir.save(model, path)
    try:
        session: Any = open_session(str(path), weights=str(package.absolute()))
    finally:
        path.unlink()
    names, found = [str(value.name) for value in watched], {}
    for inputs in samples:
        for name, array in zip(names, session.run(names, inputs), strict=True):
            low, high = array.min((0, 1)), array.max((0, 1))
            before = found.get(name, (low, high))
            found[name] = np.minimum(before[0], low), np.maximum(before[1], high)
    return found


def write(package: Path, kinds: tuple[str, ...], found: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """The graph with the products of these kinds between QuantizeLinear and DequantizeLinear."""
    import onnx_ir as ir

    from isoformer.export.build import Build
    from isoformer.export.edit import array

    model = ir.load(package / GRAPH)
    for value in model.graph.initializers.values():  # the weights lie beside another file
        known: Any = value.const_value
        if isinstance(known, ir.ExternalTensor):
            known.base_dir = str(package.absolute())
    for number, (node, kind) in enumerate(products(model)):
        if kind not in kinds:
            continue
        x, weight, build = (
            node.inputs[0],
            array(node.inputs[1]).astype(np.float64),
            Build(model.graph, f"product.{number}", node),
        )
        low, high = (end.astype(np.float64) for end in found[x.name])
        if kind != "out":
            peaks = np.maximum(np.maximum(-low, high), 1e-3)
            factor = peaks**POWER / np.maximum(np.abs(weight).max(1), 1e-4) ** (1 - POWER)
            factor /= np.median(factor)
            x = build("Mul", x, build.weight((1 / factor).astype(np.float32), "factor"))
            weight, low, high = weight * factor[:, None], low / factor, high / factor
        if kind == "down":  # behind GELU: hardly anything below 0
            step = (high.max() - low.min()) / 255
            zero: Any = np.uint8(round(-low.min() / step))
        else:
            step, zero = max(high.max(), -low.min()) / 127, np.int8(0)
        scale = [build.weight(np.asarray(step, np.float32), "step"), build.weight(np.asarray(zero), "zero")]
        x = build("DequantizeLinear", build("QuantizeLinear", x, *scale), *scale)
        columns = np.maximum(np.abs(weight).max(0), 1e-9) / 127
        values = build.weight(np.round(weight / columns).astype(np.int8))
        exact = [
            build.weight(columns.astype(np.float32), "scale"),
            build.weight(np.zeros(len(columns), np.int8), "zeros"),
        ]
        node.replace_input_with(0, x)
        node.replace_input_with(1, build("DequantizeLinear", values, *exact, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".data").unlink(missing_ok=True)
    ir.save(model, path, external_data="model.data")


def worker(path: Path, precision: str) -> None:
    from isoformer.runtime.providers import open_session

    session: Any = open_session(str(path), "openvino", precision=precision)
    serve(path.parent.name, lambda inputs: session.run(["sentence_embedding"], inputs)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--ours")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--calibration", choices=("news", "text"), default="news")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="bfloat16", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.precision)
    if not (given.package and given.ours and given.work):
        parser.error("--package, --ours and --work are needed")
    from benchmarks.turns import take_turns

    found, work = ranges(given.package, texts(given.calibration)), given.work.absolute()
    commands = {}
    for way, kinds in WAYS.items():
        write(given.package, kinds, found, work / way / "model.onnx")
        commands[way] = [given.ours, "-m", "benchmarks.openvino_int8", "--worker", str(work / way / "model.onnx")]
    exact: Any = None
    for way, command in {"float32": [*commands["bfloat16"], "--precision", "float32"], **commands}.items():
        list(take_turns({way: command}, [str(work / f"{way}.npy")], 0))
        low = np.load(work / f"{way}.npy")
        exact = low if exact is None else exact
        print(json.dumps({"quality": way, "calibration": given.calibration} | quality(low, exact)), flush=True)
    rows = list(take_turns(commands, [str(number) for number in range(5)], given.turns)) if given.turns else []
    shapes = dict.fromkeys((row["batch"], row["length"]) for row in rows)
    for batch, length in shapes:
        for way in WAYS:
            times = [r["median_ms"] for r in rows if (r["engine"], r["batch"], r["length"]) == (way, batch, length)]
            print(
                json.dumps(
                    {"way": way, "batch": batch, "length": length, "median_ms": round(float(np.median(times)), 3)}
                )
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
