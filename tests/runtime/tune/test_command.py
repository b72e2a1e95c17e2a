"""`isoformer tune` in processes of its own: real times, a kill, a graph that computes something else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from isoformer.runtime import Session, load, tuning
from isoformer.runtime.package import MANIFEST
from isoformer.runtime.tune import command

SHAPES = ("--shapes", "1x7,3x11:23")


@pytest.fixture
def package(copy_package: Callable[..., Path]) -> Path:
    return copy_package()


def test_a_killed_run_leaves_what_it_measured_and_no_process(package: Path, isoformer: Callable) -> None:
    words = [sys.executable, "-m", "isoformer.runtime.cli", "tune", str(package), *SHAPES]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(rounds := measured(package)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = children(process.pid)
        assert rounds
        assert workers
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    while any(running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(worker) for worker in workers)
    before = measured(package)
    assert before[: len(rounds)] == rounds
    done = isoformer("tune", package, *SHAPES, "--minutes", "0.03", "--json")
    assert done.returncode == 0, done.stderr
    assert measured(package)[: len(before)] == before
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["table"].keys() <= {"1x7", "3x11:23"}
    assert {line["choice"] for line in lines[:-1]} >= {"canonical", "cpu-float32"}
    assert Session.fastest(package).run


def measured(package: Path) -> list[dict]:
    """The rounds in the file, which is whole whenever it is read."""
    if not (package / tuning.FILE).exists():
        return []
    machines = json.loads((package / tuning.FILE).read_text())["machines"]
    return [one for machine in machines.values() for record in machine["records"].values() for one in record["rounds"]]


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_graph_that_computes_something_else_is_refused(
    package: Path, sign: Callable[[Path], None], isoformer: Callable
) -> None:
    file = package / load(package).variants["cpu-float32"]["path"]
    graph = onnx.load(file, load_external_data=False)
    norms = [node for node in graph.graph.node if node.op_type == "LayerNormalization"]
    next(one for one in norms[-1].attribute if one.name == "epsilon").f = 0.5
    onnx.save(graph, file)
    sign(package)
    done = isoformer("tune", package, *SHAPES, "--minutes", "0.05")
    (line,) = [line for line in done.stderr.splitlines() if "refused" in line]
    assert line.startswith("cpu-float32 is refused: cpu-float32, golden test_data_set_")
    assert "over the bound" in line
    if done.returncode:  # so slow a machine that no shape had its turns
        assert "the time was too short" in done.stderr
    found = tuning.read(load(package), "cpu", "float32")
    assert found is not None
    assert not any(choice.variant for choice in found.choices)


def test_inspect_tells_what_was_tuned(package: Path, isoformer: Callable) -> None:
    tuning.write(load(package), "cpu", "float32", tuning.Record(table={tuning.Shape(1, 7, 7): tuning.Choice()}))
    assert "for model cpu float32" in isoformer("inspect", package).stdout
    assert json.loads(isoformer("inspect", package, "--json").stdout)["tuned"].startswith("here (")


def test_installed_providers_that_have_graphs_are_offered(
    package: Path, sign: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "installed", lambda: ["cpu", "cuda", "openvino"])
    assert command.offered(load(package), None) == ["cpu"]
    manifest = json.loads((package / MANIFEST).read_text())
    rough = manifest["variants"]["cpu-float32"] | {"provider": "openvino", "precision": "bfloat16"}
    manifest["variants"]["openvino-bfloat16"] = rough
    (package / MANIFEST).write_text(json.dumps(manifest))
    sign(package)
    assert command.offered(load(package), None) == ["cpu", "openvino"]
    assert command.offered(load(package), "bfloat16") == ["openvino"]
    assert command.offered(load(package), "int8") == ["cpu"]  # which will say that there is none


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shapes", "7"), "is no shape such as 8x128"),
        (("--shapes", "1x99999"), "is longer than the model takes"),
        (("--precision", "int8"), "has no int8 for cpu"),
        (("--provider", "cuda", *SHAPES), "cuda"),
    ],
)
def test_mistakes_are_one_line(package: Path, isoformer: Callable, options: tuple[str, ...], said: str) -> None:
    done = isoformer("tune", package, *options)
    assert done.returncode == 2
    assert said in done.stderr.lower().replace("cudaexecutionprovider", "cuda")
    assert len(done.stderr.splitlines()) <= 2, done.stderr
