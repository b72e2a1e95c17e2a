"""Memory and error of long sequences: an encoder of MiniLM's size with random weights and 8,192 positions.

    python -m benchmarks.long [--lengths 512,2048,8192] [--out FILE.jsonl]

JSON lines: machine and versions; one object a graph and length, each measured in a process of its own: peak resident
memory, the time of one run, and the largest error of the sentence's vector and of a sample of hidden states against
the float64 module, beside PyTorch float32's own.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import environment
from isoformer.runtime.bench import peak_mb
from isoformer.runtime.cases import Arrays

LONGEST = 8192
SAMPLE = 31  # every so many hidden states are compared


def config():
    from isoformer.models.families import encoder

    return encoder.Config(
        vocab_size=30522,
        hidden_size=384,
        num_heads=12,
        num_layers=6,
        intermediate_size=1536,
        max_positions=LONGEST,
        num_token_types=2,
        position_rule="index",
    )


def model():
    import torch

    from isoformer.models.families import encoder

    torch.manual_seed(0)
    return encoder.Model(config()).eval()


def inputs(length: int) -> Arrays:
    ids = np.random.default_rng(length).integers(0, 30522, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def graph(folder: Path, padding_free: bool) -> Path:
    """The exported graph in the folder, without the grid of `export`, which would take hours at these lengths."""
    import onnx_ir as ir

    from isoformer.export import padding_free as rewriting
    from isoformer.export.graph import to_onnx
    from isoformer.models.families import encoder

    exported = to_onnx(model(), encoder.signature(dataclasses.replace(config())), 23)
    if padding_free:
        rewriting.apply(exported)
    target = folder / ("padding-free.onnx" if padding_free else "canonical.onnx")
    ir.save(exported, target)
    return target


def answers(outputs: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([outputs["sentence_embedding"][0], outputs["last_hidden_state"][0, ::SAMPLE].reshape(-1)])


def torch_answers(length: int, dtype: str) -> np.ndarray:
    import torch

    module = model().to(getattr(torch, dtype))
    with torch.inference_mode():
        outputs = module(**{name: torch.from_numpy(array) for name, array in inputs(length).items()})
    return answers({name: value.numpy() for name, value in outputs.items()})


def worker(arguments: argparse.Namespace) -> None:
    """One engine at one length: prints a JSON object and saves the answer."""
    length, row = arguments.length, {}
    if arguments.worker in ("float64", "float32"):
        found = torch_answers(length, arguments.worker)
    else:
        from isoformer.runtime.providers import open_session
        from isoformer.runtime.subnormals import flushed

        session = open_session(arguments.worker)
        names = [value.name for value in session.get_outputs()]
        with flushed():
            session.run(names, inputs(16))
            start = time.perf_counter()
            found = answers(dict(zip(names, session.run(names, inputs(length)), strict=True)))
        row = {"seconds": round(time.perf_counter() - start, 3)}
    np.save(arguments.answer, found)
    print(json.dumps(row | {"peak_mb": round(peak_mb())}))


def ask(engine: str, length: int, answer: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.long", "--worker", engine, "--length", str(length)]
    done = subprocess.run([*command, "--answer", str(answer)], check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="512,2048,8192", help="with commas")
    parser.add_argument("--out", type=Path, help="write the JSON lines here, not to standard output")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    lines = [environment()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = {kind: str(graph(folder, kind == "padding-free")) for kind in ("canonical", "padding-free")}
        for length in map(int, arguments.lengths.split(",")):
            engines = {"float64": "float64", "PyTorch float32": "float32", **graphs}
            exact = None
            for kind, engine in engines.items():
                answer = folder / "answer.npy"
                row = {"engine": kind, "length": length} | ask(engine, length, answer)
                found = np.load(answer)
                exact = found if exact is None else exact
                row["largest_error"] = float(np.abs(found - exact).max())
                print(json.dumps(row), file=sys.stderr)
                lines.append(row)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
