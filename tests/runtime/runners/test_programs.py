"""Runners as `verify` starts them: what one leaves out, makes up or breaks down at is a failure or one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.lanes import replayable
from isoformer.runtime.package import Package, load
from isoformer.runtime.runners import environments, programs
from isoformer.runtime.runners.programs import MissingError

Script = Callable[[str], None]


@pytest.fixture
def package(tiny_package: Path) -> Package:
    return load(tiny_package)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A function that puts a program of its own in the place of `--runtime node`."""

    def write(source: str) -> None:
        (tmp_path / "runner.py").write_text(f"import json, sys\n{source}\n")
        monkeypatch.setattr(programs, "command", lambda *_: [sys.executable, str(tmp_path / "runner.py")])

    return write


def good(package: Package) -> list[dict[str, Any]]:
    return [
        {"graph": "model", "variant": None, "case": case, "output": name, "values": 3, "error": 0.0, "bound": 1.0}
        | {"version": "9.8", "provider": "cpu", "precision": "float32", "note": ""}
        for case, outputs in package.manifest["golden"].items()
        for name in outputs
    ]


def printing(lines: list[dict[str, Any]], status: int = 0) -> str:
    return f"for line in json.loads({json.dumps(lines)!r}): print(json.dumps(line))\nsys.exit({status})"


def run(package: Package, name: str = "node") -> list:
    return [c for _, comparisons, _ in programs.run(name, package, [], lambda _: None) for c in comparisons]


def test_comparisons_and_their_lane(package: Package, script: Script) -> None:
    script("print('a greeting')\n" + printing(good(package)))
    ((lane, comparisons, _),) = programs.run("node", package, [], lambda _: None)
    assert (lane.label, lane.runtime, lane.version, lane.precision) == ("node 9.8 cpu", "node", "9.8", "float32")
    assert all(c.passed for c in comparisons)
    assert {c.case for c in comparisons} == set(package.manifest["golden"])


def test_webgpu_is_a_browser_and_names_what_stays_on_the_cpu(package: Package, script: Script) -> None:
    script(printing([line | {"provider": "webgpu", "elsewhere": "Shape 2"} for line in good(package)]))
    ((lane, comparisons, _),) = programs.run("webgpu", package, [], lambda _: None)
    assert (lane.label, lane.runtime, lane.asked) == ("browser 9.8 webgpu", "browser", "webgpu")
    assert lane.elsewhere == "Shape 2"
    assert all(c.passed for c in comparisons)


def test_webgpu_takes_openvinos_graph_in_place_of_the_canonical_one(package: Package) -> None:
    assert list(replayable(package, runtime="webgpu")) == [None]
    tolerances = {output["name"]: {"absolute": 1.0} for output in package.manifest["signature"]["outputs"]}
    own = {"provider": "openvino", "precision": "float32", "path": "v/model.onnx", "tolerances": tolerances}
    package.manifest["variants"] = {
        "openvino-float32": own,
        "openvino-bfloat16": own | {"precision": "bfloat16"},
        "cpu-int8": own | {"provider": "cpu", "precision": "int8"},
    }
    assert list(replayable(package, runtime="webgpu")) == ["openvino-float32"]
    assert list(replayable(package, ["cpu-int8"], "webgpu")) == ["cpu-int8"]
    assert list(replayable(package, runtime="browser")) == [None, "cpu-int8"]


def test_the_bound_is_the_manifests(package: Package, script: Script) -> None:
    script(printing([line | {"error": 0.5, "passed": True} for line in good(package)]))
    for comparison in run(package):
        assert not comparison.passed
        assert comparison.bound == package.manifest["golden"][comparison.case][comparison.output]["bound"]


def test_what_is_left_out_fails(package: Package, script: Script) -> None:
    script(printing(good(package)[1:]))
    missed = [c for c in run(package) if not c.passed]
    assert [(c.case, c.output) for c in missed] == [(good(package)[0]["case"], good(package)[0]["output"])]
    assert "did not compare" in missed[0].line()
    script(printing([]))
    assert not any(c.passed for c in run(package))


@pytest.mark.parametrize("change", [{"error": None}, {"error": "0"}, {"values": 0}])
def test_what_is_no_number_fails(package: Package, script: Script, change: dict[str, Any]) -> None:
    script(printing([line | change for line in good(package)]))
    assert not any(c.passed for c in run(package))


def test_a_case_that_did_not_run_says_why(package: Package, script: Script) -> None:
    first = good(package)[0] | {"output": "run", "values": 0, "error": None, "note": "no such operator"}
    rest = [line for line in good(package) if line["case"] != first["case"]]
    script(printing([first, *rest], 1))
    (failed,) = [c for c in run(package) if not c.passed]
    assert "no such operator" in failed.line()


def test_status_2_is_a_runtime_that_is_missing(package: Package, script: Script) -> None:
    script("print('npm ci brings it', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(MissingError, match="npm ci brings it"):
        run(package)


def test_a_runner_that_breaks_down_is_an_error(package: Package, script: Script) -> None:
    script(printing(good(package)[:1]) + "\n")
    script("print('so much memory', file=sys.stderr)\nimport os\nos.kill(os.getpid(), 9)")
    with pytest.raises(IsoformerError, match="broke down with status -9: so much memory") as caught:
        run(package)
    assert not isinstance(caught.value, MissingError)


@pytest.mark.parametrize("name", ["node", "browser"])
def test_without_node(package: Package, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingError, match=r"needs Node\.js"):
        run(package, name)


def test_without_a_compiler(package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingError, match="needs a C compiler"):
        run(package, "c")


def test_names_of_runtimes() -> None:
    for name in (*programs.NAMES, "ort==1.28.0", "ort==1.23"):
        programs.check(name)
    for name in ("abacus", "ort==", "ort==latest", "ort==1.28.0; rm", "ort==../1.2"):
        with pytest.raises(InputError):
            programs.check(name)


def test_older_releases_by_opset() -> None:
    assert programs.older(23) == programs.older(25) == ("ort==1.28.0", "ort==1.30.0")
    assert programs.older(20) == programs.older(22) == ("ort==1.18.1", "ort==1.23.2")


# ------------------------------------------------------------------------------------------- environments


def test_old_releases_take_an_old_numpy() -> None:
    assert environments.release("1.18.1") == ("onnxruntime==1.18.1", "numpy<2")
    assert environments.release("1.28.0") == ("onnxruntime==1.28.0", "numpy")


def test_an_environment_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = environments.folder() / f"onnxruntime-1.2.3-python{sys.version_info[0]}.{sys.version_info[1]}" / "bin/python"
    made.parent.mkdir(parents=True)
    made.touch()
    said: list[str] = []
    assert environments.python(environments.release("1.2.3"), said.append) == made
    assert made.is_relative_to(tmp_path)
    assert said == []


def test_a_failed_installation_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    complaint = "WARNING: pip is old\nERROR: No matching distribution found for onnxruntime==9.9\nmore"
    failing = [sys.executable, "-c", f"import sys; sys.exit({complaint!r})"]
    real = environments._run
    monkeypatch.setattr(environments, "_run", lambda _words, what: real(failing, what))
    said: list[str] = []
    with pytest.raises(IsoformerError, match="could not be installed: No matching distribution found") as caught:
        environments.python(environments.release("9.9"), said.append)
    assert "\n" not in str(caught.value)
    assert "installing onnxruntime==9.9" in said[0]
    assert list(environments.folder().iterdir()) == []
