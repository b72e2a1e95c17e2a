"""Packages on a GPU: whether they compute the same there, in which kernels, and how fast, beside PyTorch.

    python -m benchmarks.cuda PACKAGE[=MODEL] … [--shapes 1x128,8x128:697] [--turns 7] [--out FILE.jsonl]

PACKAGE was exported with --provider cuda; MODEL is what it was exported from, as `isoformer export -m` takes it, and
brings PyTorch in float32 and float16 on the same GPU into the table. On a fresh machine with an NVIDIA driver for
CUDA 13:

    pip install torch                        # of CUDA 13: it brings the libraries that ONNX Runtime loads
    pip install 'isoformer[gpu,export,bench]'

For each package, in this order:
 1. `isoformer verify --provider cuda`: float32 and float16 against the float64 reference; a node that
    computes is refused on the CPU, operators of shapes and indices are not.
 2. The kernels of attention that ran, shape by shape, and the provider of every node (see `proof`).
 3. Latencies: an encoder from inputs on the GPU to outputs there, a decoder's prompt and each token after it. Each
    engine lives in a process of its own, and they take short turns. No TensorFloat-32 in any of them.
JSON lines: machine and versions; a line a package's parity; a line a shape's kernels; a line an engine, shape and turn;
a line an engine and shape with the medians, quartiles and, turn by turn, how many times faster it was than PyTorch's
float16 (without MODEL: than isoformer's float32). The table for people is on standard error.

Exit status: 0, 1 where parity fails or no fused attention in float16 named itself, 2 where there is no GPU to run on.
--provider cpu runs all of it without a GPU, to try the script: what it prints is about the CPU's kernels.
"""

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cuda.engines import OURS, TORCH
from benchmarks.peers.measures import quartiles, ratios
from benchmarks.turns import ROOT, take_turns
from isoformer.runtime import IsoformerError, load
from isoformer.runtime.package import Package
from isoformer.runtime.tune.inputs import STEPS_ROOM, is_decoder, length_axis, shapes_of
from isoformer.runtime.tuning import Shape

ENCODER = "1x16,1x128,8x128:697,1x512,16x256:2656"
DECODER = "1x16,1x512,1x1500,8x16,8x512"
HALF = "float16"
KINDS = {"run_ms": "run", "prefill_ms": "prefill", "token_ms": "a token"}


def environment(provider: str) -> dict[str, Any]:
    """The machine, its GPU and the versions, for the first line."""
    versions = {"python": platform.python_version()}
    for name in ("isoformer", "onnxruntime-gpu", "onnxruntime", "torch", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"provider": provider, "device": device(provider), "system": platform.platform(), "versions": versions}


def device(provider: str) -> str:
    """The GPU, its driver and memory as nvidia-smi tells them, or the processor."""
    if provider != "cuda":
        return platform.processor() or platform.machine()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return "a GPU that nvidia-smi is not there to name"
    return done.stdout.strip().partition("\n")[0] or "a GPU that nvidia-smi does not name"


def parity(path: Path, provider: str) -> dict[str, Any]:
    """What `isoformer verify` says of the package on the provider; exits with its line where it cannot run there."""
    command = [sys.executable, "-m", "isoformer.runtime.cli", "verify", str(path)]
    command += ["--provider", provider, "--runtime", "ort", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, 1):
        print(done.stderr.strip() or f"verify of {path} ended with {done.returncode}", file=sys.stderr)
        sys.exit(2)
    *lines, last = map(json.loads, done.stdout.splitlines())
    lanes = sorted({line["runtime"] for line in lines})
    return {"parity": str(path), "runtimes": lanes} | {
        key: last[key] for key in ("passed", "cases", "values", "failures", "worst_share_of_bound")
    }


def proofs(path: Path, provider: str, shapes: list[Shape]) -> list[dict[str, Any]]:
    """The kernels of each shape in float16; exits where the graph cannot run."""
    command = [sys.executable, "-m", "benchmarks.cuda.proof", str(path), "--provider", provider]
    command += ["--precision", HALF, "--shapes", ",".join(map(str, shapes))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)  # noqa: S603
    if done.returncode:
        sys.exit(f"{path}: the kernels of float16 could not be found out; what went wrong is above")
    return [{"package": str(path)} | json.loads(line) for line in done.stdout.splitlines()]


def wanted_shapes(package: Package, text: str | None) -> list[Shape]:
    """Those asked for, or the usual ones cut to what the model takes."""
    usual = DECODER if is_decoder(package) else ENCODER
    found = shapes_of(package, text or usual) if text or _longest(package) is None else _cut(package, usual)
    return list(dict.fromkeys(Shape(shape.batch, shape.length, shape.real) for shape in found))


def _longest(package: Package) -> int | None:
    """Tokens that a row may have, and still be continued; None without a limit."""
    if is_decoder(package):
        limit = next((spec.high for spec in package.signature.inputs if spec.name == "position_ids"), None)
        return None if limit is None else limit - STEPS_ROOM
    return package.signature.axes[str(length_axis(package.signature))][1]


def _cut(package: Package, shapes: str) -> list[Shape]:
    """Those that the model takes."""
    most = _longest(package) or 0
    return [shape for shape in map(Shape.parse, shapes.split(",")) if shape.length <= most]


def summarise(rows: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """Of each package, shape and engine: quartiles of the medians of its turns, and of the ratios to the base."""
    found = []
    for package, shape, engine in dict.fromkeys((row["package"], row["shape"], row["engine"]) for row in rows):
        here = [row for row in rows if (row["package"], row["shape"]) == (package, shape)]
        own, other = ([row for row in here if row["engine"] == name] for name in (engine, base))
        entry: dict[str, Any] = {"summary": engine, "package": package, "shape": shape, "base": base}
        for kind in KINDS:
            if kind in own[0]:
                times, others = ([row[kind] for row in some] for some in (own, other))
                entry[kind] = quartiles(times)
                entry[f"{kind[:-3]}_times_faster"] = ratios(others, times)
        entry["peak_mb"] = max(row["peak_mb"] for row in own)
        entry |= agreement(own[0]["answer"], here[0]["answer"])
        found.append(entry)
    return found


def agreement(one: list, other: list) -> dict[str, float]:
    """Of vectors the largest difference from the first engine's, of tokens the share that are the same."""
    own, first = np.asarray(one), np.asarray(other)
    if own.dtype.kind == "i":
        return {"same_tokens": float((own == first).mean())}
    return {"largest_difference": float(np.abs(own - first).max())}


def show(summary: list[dict[str, Any]], found: list[dict[str, Any]], base: str) -> None:
    """A table a package: milliseconds, how many times faster than the base, and the kernel of attention."""
    kernels = {(one["package"], one["shape"]): ", ".join(one["kernels"]) or "does not say" for one in found}
    for package in dict.fromkeys(row["package"] for row in summary):
        here = [row for row in summary if row["package"] == package]
        engines = list(dict.fromkeys(row["summary"] for row in here))
        table = Table(title=f"{Path(package).name}: median ms (times faster than {base})")
        for heading in ("shape", "", *engines, f"attention of {HALF}"):
            table.add_column(heading, justify="left" if heading in ("shape", "") else "right")
        for shape in dict.fromkeys(row["shape"] for row in here):
            rows = {row["summary"]: row for row in here if row["shape"] == shape}
            for kind in (kind for kind in KINDS if kind in rows[engines[0]]):
                key = f"{kind[:-3]}_times_faster"
                cells = (f"{rows[e][kind][1]:.3f} ({rows[e][key][1]:.2f})" for e in engines)
                table.add_row(shape, KINDS[kind], *cells, kernels[package, shape])
        Console(stderr=True).print(table)


def measured(path: Path, model: str | None, provider: str, shapes: list[Shape], turns: int) -> list[dict[str, Any]]:
    engines = OURS + (TORCH if model else ())
    commands = {
        engine: [sys.executable, "-m", "benchmarks.cuda.engines", engine, str(path), "--provider", provider]
        + (["--model", model] if model else [])
        for engine in engines
    }
    rows = take_turns(commands, list(map(str, shapes)), turns)
    return [{"package": str(path)} | row for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE[=MODEL]")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", help=f"by default {ENCODER} of an encoder, {DECODER} of a decoder")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the JSON lines here, not to standard output")
    given = parser.parse_args()
    lines: list[dict[str, Any]] = [environment(given.provider)]
    failed = False
    for argument in given.packages:
        name, _, model = argument.partition("=")
        path = Path(name).absolute()
        try:
            package = load(path)
            shapes = wanted_shapes(package, given.shapes)
        except IsoformerError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        same = parity(path, given.provider)
        found = proofs(path, given.provider, shapes)
        base = TORCH[1] if model else OURS[0]
        rows = measured(path, _here(model), given.provider, shapes, given.turns)
        summary = summarise(rows, base)
        lines += [same, *found, *({k: v for k, v in row.items() if k != "answer"} for row in rows), *summary]
        show(summary, found, base)
        # Without a name nothing is proved; of the CPU's kernels there is none.
        unfused = [one["shape"] for one in found if not one["fused"] and (one["kernels"] or given.provider == "cuda")]
        if not same["passed"]:
            print(f"{path}: parity fails on {given.provider}: {same['failures'][0]}", file=sys.stderr)
        if unfused:
            print(f"{path}: no fused attention in {HALF} named itself at {', '.join(unfused)}", file=sys.stderr)
        failed |= not same["passed"] or bool(unfused)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    sys.exit(int(failed))


def _here(model: str) -> str | None:
    """A path as seen from anywhere; a family's name and module:callable as they are."""
    return str(Path(model).absolute()) if model and Path(model).exists() else model or None


if __name__ == "__main__":
    main()
