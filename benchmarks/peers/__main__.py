"""MiniLM's real weights: isoformer beside its peers, every engine in a process and, where needed, an environment of
its own.

    make bench-peers      # or: python -m benchmarks.peers [--package DIR] [--engines …] [--shapes …] [--turns 10]

The engines live side by side and take short turns, one working while the others sleep, so that a machine whose speed
drifts slows all of them alike. All are given the same inputs; what they answer is compared with PyTorch's float64.
Results are kept in a file of JSON lines, shape by shape: what is in it already is not measured again (--again does),
so that the command can be interrupted, and goes on. docs/benchmarks.md says how to read them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.latency import CHECKPOINT, ROOT, environment
from benchmarks.peers import inputs, records
from benchmarks.peers.convert import FORMS, NEEDS
from benchmarks.peers.engines import ANCHOR, PEERS, Engine, ours
from benchmarks.peers.environments import OURS_OPENVINO, made, python, versions
from benchmarks.peers.inputs import Shape
from benchmarks.turns import take_turns
from isoformer.runtime.package import load

FOLDER = ROOT / ".peers"
RESULTS = ROOT / "benchmarks/results/peers.jsonl"
NOTED = {
    None: ("isoformer", "torch", "transformers", "onnxruntime-gpu", "onnxruntime", "numpy"),
    OURS_OPENVINO: ("isoformer", "onnxruntime", "onnxruntime-ep-openvino"),
    "optimum": ("optimum", "optimum-onnx", "transformers", "torch", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "ctranslate2": ("ctranslate2", "transformers"),
}
console = Console(stderr=True)


@dataclass
class Bench:
    """Where things stand, and which engines could not be had."""

    package: Path
    folder: Path
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def forms(self) -> Path:
        return self.folder / "forms"

    @property
    def sentences(self) -> Path:
        return self.folder / "embeddings"

    def command(self, engine: Engine) -> list[str]:
        """Runs the engine's worker."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        executable = python(self.folder, engine.environment)
        start = [str(executable), "-m", "benchmarks.peers.worker", engine.name, engine.kind]
        paths = (self.forms / engine.form, self.forms / "inputs", self.log(engine), CHECKPOINT)
        return [*start, *map(str, paths), *engine.options]

    def log(self, engine: Engine) -> Path:
        return self.folder / "logs" / f"{engine.name}.txt"

    def lose(self, engine: Engine, why: str) -> None:
        """Notes that an engine cannot be had, and says so."""
        self.failed[engine.name] = why
        console.print(f"{engine.label} is left out: {why}", style="yellow")


def make_forms(bench: Bench, engines: Sequence[Engine]) -> None:
    """What the engines open, as far as it is not there; engines whose form cannot be made are left out."""
    broken: dict[str, str] = {}
    for form, (name, _) in FORMS.items():
        users = [engine for engine in engines if engine.kind != "isoformer" and _needs(engine, form)]
        if not users or (bench.forms / form / ".made").exists():
            continue
        why = broken.get(NEEDS.get(form, "")) or _make_form(bench, form, name)
        if why:
            broken[form] = why
            for engine in users:
                if engine.name not in bench.failed:
                    bench.lose(engine, why)


def _needs(engine: Engine, form: str) -> bool:
    """Whether the engine opens the form, or one that is made from it."""
    own = engine.form.split("/")[0]
    while own:
        if own == form:
            return True
        own = NEEDS.get(own, "")
    return False


def _make_form(bench: Bench, form: str, name: str) -> str:
    """Makes one; gives back why it could not be made, "" when it was."""
    console.print(f"making {form}")
    (bench.forms / form).mkdir(parents=True, exist_ok=True)
    log = bench.folder / "logs" / f"make-{form}.txt"
    log.parent.mkdir(exist_ok=True)
    if form == "ctranslate2":
        (bench.forms / form).rmdir()  # its converter wants to make the folder itself
    try:
        command = [str(python(bench.folder, name)), "-m", "benchmarks.peers.convert", form]
        with log.open("w", encoding="utf-8") as file:
            whole = [*command, str(CHECKPOINT), str(bench.forms)]
            subprocess.run(whole, check=True, cwd=ROOT, stdout=file, stderr=file)  # noqa: S603
    except RuntimeError as error:
        return str(error)
    except subprocess.CalledProcessError:
        return f"{form} could not be made: {_last_line(log)}"
    (bench.forms / form / ".made").touch()
    return ""


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip()[:200] if lines else "it said nothing"


def measure_shapes(
    bench: Bench, shapes: Sequence[Shape], engines: Sequence[Engine], turns: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all engines, shape by shape, in turns."""
    by_name = {engine.name: engine for engine in engines}

    def lost(name: str) -> None:
        bench.lose(by_name[name], f"it stopped: {_last_line(bench.log(by_name[name]))}")

    commands = {engine.name: bench.command(engine) for engine in engines}
    questions = {inputs.name(shape): shape for shape in shapes}
    answers = take_turns(commands, [json.dumps({"shape": name}) for name in questions], turns, lost)
    for name, replies in groupby(answers, key=lambda reply: reply["shape"]):
        found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in by_name}
        for reply in replies:
            found[reply["engine"]].append(reply)
        if len(found[ANCHOR]) < turns:
            raise SystemExit(f"{ANCHOR} must run, all is measured beside it: {bench.failed.get(ANCHOR)}")
        whole = {engine: rows for engine, rows in found.items() if len(rows) == turns}
        shape = questions[name]
        yield [records.measurement(by_name[e], shape, rows, whole[ANCHOR]) for e, rows in whole.items()]


def measure_accuracy(bench: Bench, engine: Engine, reference: np.ndarray) -> dict[str, Any] | None:
    """The row of one engine's embeddings of the sentences; None when it stops."""
    target = bench.sentences / f"{engine.name}.npy"
    asked = json.dumps({"embed": "sentences", "to": str(target)})
    done = subprocess.run(  # noqa: S603
        bench.command(engine), input=asked + "\n", cwd=ROOT, text=True, stdout=subprocess.PIPE, check=False
    )
    if done.returncode or not done.stdout:
        bench.lose(engine, f"it stopped: {_last_line(bench.log(engine))}")
        return None
    return records.accuracy_row(engine, reference, np.load(target))


def reference_embeddings(bench: Bench) -> np.ndarray:
    """Of the sentences, by PyTorch in float64."""
    target = bench.sentences / "reference.npy"
    if not target.exists():
        bench.sentences.mkdir(exist_ok=True)
        exact = Engine("torch-float64", "PyTorch float64", "torch", options=("float64", "eager"))
        asked = json.dumps({"embed": "sentences", "to": str(target)})
        subprocess.run(bench.command(exact), input=asked + "\n", cwd=ROOT, text=True, check=True)  # noqa: S603
    return np.load(target)


def describe(bench: Bench, engines: Sequence[Engine]) -> dict[str, Any]:
    """The machine and the versions in every environment."""
    here = environment()
    found = {
        name or "isoformer": versions(python(bench.folder, name), NOTED[name])
        for name in dict.fromkeys([None, "optimum", *(engine.environment for engine in engines)])
        if made(bench.folder, name)
    }
    model = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    units = [unit for unit in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if f" {unit}" in model]
    day = datetime.now(UTC).date().isoformat()
    return {"machine": here["machine"] | {"units": units}, "versions": found, "threads": os.cpu_count(), "date": day}


def measure_roofline() -> dict[str, Any]:
    console.print("measuring the roofline")
    command = [sys.executable, "-m", "benchmarks.peers.roofline"]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)  # noqa: S603
    return {"roofline": json.loads(done.stdout)}


def choose(given: str, all_names: Sequence[str], what: str) -> list[str]:
    """The names with commas, all when nothing is given; exits with a line for one that is not there."""
    names = [name for name in given.split(",") if name] or list(all_names)
    unknown = [name for name in names if name not in all_names]
    if unknown:
        raise SystemExit(f"no {what} {', '.join(unknown)}; there are {', '.join(all_names)}")
    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, default=ROOT / "demo/minilm-all", help="MiniLM's package")
    parser.add_argument("--engines", default="", help="names with commas; all by default")
    parser.add_argument("--shapes", default="", help="batch×length×real tokens as 8x128x697, with commas")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=None, help="begin no other shape after so long")
    parser.add_argument("--again", action="store_true", help="measure what has been measured too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON lines")
    parser.add_argument("--report", type=Path, default=FOLDER / "report.html")
    parser.add_argument("--picture", type=Path, help="a PNG beside the report")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="the folder of environments and forms")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write the report anew")
    parser.add_argument("--accuracy-only", action="store_true", help="embeddings of the sentences, no latencies")
    return parser.parse_args()


def run(given: argparse.Namespace) -> records.Results:
    """Measures what is missing, and keeps it."""
    if not CHECKPOINT.is_dir():
        raise SystemExit(f"{CHECKPOINT} is not there: make assets")
    bench = Bench(given.package, given.peers.resolve())
    bench.forms.mkdir(parents=True, exist_ok=True)
    if not (bench.forms / "inputs/calibration.npz").exists():
        inputs.write(ROOT, CHECKPOINT, bench.forms / "inputs")
    every = [*ours(load(given.package)), *PEERS]
    chosen = choose(given.engines, [engine.name for engine in every], "engine")
    engines = [engine for engine in every if engine.name in chosen]
    shapes = [inputs.read(text) for text in choose(given.shapes, [inputs.name(shape) for shape in inputs.ALL], "shape")]
    make_forms(bench, engines)
    for engine in engines:
        if engine.name not in bench.failed:
            try:
                python(bench.folder, engine.environment)
            except RuntimeError as error:
                bench.lose(engine, str(error))
    results = records.Results.read(given.out, describe(bench, engines))
    if "roofline" not in results.head or given.again:
        results.head |= measure_roofline()
    start = time.monotonic()
    reference = reference_embeddings(bench)
    anchor = next(engine for engine in every if engine.name == ANCHOR)
    results.note_failures(bench.failed, [engine.name for engine in engines])
    for engine in track(engines, description="accuracy", console=console):
        if engine.name not in bench.failed and (given.again or not results.has_accuracy(engine.name)):
            row = measure_accuracy(bench, engine, reference)
            if row:
                results.put(row)
                results.write(given.out)
    for group, missing in [] if given.accuracy_only else unmeasured(results, shapes, engines, given):
        missing = [engine for engine in missing if engine.name not in bench.failed]
        for rows in measure_shapes(bench, group, list(dict.fromkeys([anchor, *missing])), given.turns):
            for row in rows:
                results.put(row)
            results.note_failures(bench.failed, [engine.name for engine in engines])
            results.write(given.out)
            if given.minutes is not None and time.monotonic() - start > given.minutes * 60:
                console.print("the time is up; the same command goes on")
                return results
    results.note_failures(bench.failed, [engine.name for engine in engines])
    results.write(given.out)
    return results


def unmeasured(
    results: records.Results, shapes: Sequence[Shape], engines: Sequence[Engine], given: argparse.Namespace
) -> list[tuple[list[Shape], list[Engine]]]:
    """What is still to be measured: shapes that lack the same engines together."""
    groups: dict[tuple[str, ...], list[Shape]] = {}
    for shape in shapes:
        lacking = [e.name for e in engines if given.again or not results.has(e.name, shape, given.turns)]
        if lacking:
            groups.setdefault(tuple(lacking), []).append(shape)
    return [(group, [engine for engine in engines if engine.name in names]) for names, group in groups.items()]


def main() -> None:
    given = arguments()
    results = records.Results.read(given.out) if given.report_only else run(given)
    if not results.rows:
        return  # embeddings alone make no report
    from benchmarks.peers import report, tables

    report.write(results, given.report, given.picture)
    report.show(results, console)
    if given.markdown:
        print(tables.markdown(results))
    console.print(f"results in {given.out}, the report in {given.report}")


if __name__ == "__main__":
    main()
