"""The runner for any onnxruntime of Python, alone: what it prints, and that it misses nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from isoformer.runtime.baseline import sample
from isoformer.runtime.package import MANIFEST, load
from isoformer.runtime.runners import programs, replay
from tests.poisons import change_weight, ignore_mask

Copy = Callable[..., Path]


def run(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, lines and standard error of the runner in a Python that sees nothing of isoformer."""
    words = [sys.executable, "-I", str(programs.REPLAY), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    manifest = json.loads((package / MANIFEST).read_text())
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest))
    return package


def test_every_output_of_every_golden_vector_is_compared(tiny_package: Path) -> None:
    status, lines, said = run(tiny_package)
    assert (status, said) == (0, "")
    *comparisons, summary = lines
    golden = load(tiny_package).manifest["golden"]
    wanted = {(case, output): record for case, outputs in golden.items() for output, record in outputs.items()}
    assert [(line["case"], line["output"]) for line in comparisons] == list(wanted)
    for line in comparisons:
        record = wanted[line["case"], line["output"]]
        assert line["bound"] == record["bound"]
        assert line["values"] == np.prod(record["shape"])
        assert 0 < line["error"] <= line["bound"]
        assert line["passed"] is True
        assert (line["runtime"], line["provider"], line["precision"]) == ("ort", "cpu", "float32")
        assert (line["graph"], line["variant"], line["check"], line["note"]) == ("model", None, "golden", "")
    values = sum(line["values"] for line in comparisons)
    assert summary == {"passed": True, "cases": len(golden), "values": values, "failures": []}


@pytest.mark.parametrize("poison", [change_weight, ignore_mask])
def test_planted_differences_are_seen(copy_package: Copy, poison: Callable[[Path], None]) -> None:
    package = copy_package()
    poison(package)
    status, lines, _ = run(package)
    assert status == 1
    assert lines[-1]["passed"] is False
    failed = [line for line in lines[:-1] if not line["passed"]]
    assert failed
    assert all(line["error"] > line["bound"] for line in failed)
    assert len(lines[-1]["failures"]) == len(failed)


def test_a_mask_that_is_ignored_is_seen_wherever_there_is_one(copy_package: Copy) -> None:
    package = copy_package()
    ignore_mask(package)
    _, lines, _ = run(package)
    described = load(package).manifest["golden_cases"]
    failed = {described[line["case"]].partition("-")[0] for line in lines[:-1] if not line["passed"]}
    assert failed == {"right", "left", "ragged", "holes", "sample"}


def test_what_cannot_be_opened_fails_case_by_case(copy_package: Copy) -> None:
    package = copy_package()
    (package / "model.onnx").write_bytes(b"no model")
    status, lines, _ = run(package)
    assert status == 1
    assert {(line["output"], line["values"], line["error"]) for line in lines[:-1]} == {("run", 0, None)}
    assert len(lines) - 1 == len(load_golden(package))
    assert all(line["note"] for line in lines[:-1])


def load_golden(package: Path) -> dict[str, Any]:
    return json.loads((package / MANIFEST).read_text())["golden"]


def test_a_package_that_is_broken_is_one_line(tmp_path: Path, copy_package: Copy) -> None:
    package = copy_package()
    (package / "test_data_set_0/output_0.pb").write_bytes(b"\x0a")
    for path in (tmp_path / "nothing", package):
        status, _, said = run(path)
        assert status == 2
        assert said.count("\n") == 1
        assert str(path) in said


def test_a_package_without_vectors_has_not_passed(copy_package: Copy) -> None:
    package = edit(copy_package(), lambda manifest: manifest["golden"].clear())
    assert run(package)[0] == 2


def test_variants_are_held_to_their_own_tolerances(copy_package: Copy) -> None:
    """A variant without vectors of its own replays the graph's; with neither tolerances nor vectors it is left out."""

    def add(manifest: dict[str, Any]) -> None:
        entry = {"path": "model.onnx", "precision": "int8", "provider": "cpu", "cache": "plain"}
        tight = {name: {"absolute": 0.0} for name in manifest["tolerances"]}
        manifest["variants"] = {"cpu-int8": entry | {"tolerances": tight}, "cpu-int4": entry}

    package = edit(copy_package(), add)
    status, lines, _ = run(package)
    assert status == 1
    assert {line["variant"] for line in lines[:-1]} == {None, "cpu-int8"}
    for line in lines[:-1]:
        assert line["passed"] == (line["variant"] is None)
        assert line["precision"] == ("float32" if line["variant"] is None else "int8")
    status, lines, _ = run(package, "--variant", "canonical")
    assert status == 0
    assert {line["variant"] for line in lines[:-1]} == {None}
    assert run(package, "--variant", "cpu-int4")[0] == 2


def test_shapes_numbers_and_nothing() -> None:
    three = np.zeros((3, 1), np.float32)
    assert replay.compare(three, three + np.float32(0.5), 0.5)["passed"]
    assert not replay.compare(three, three + np.float32(0.5), 0.49)["passed"]
    assert replay.compare(three, three.T, 1.0)["error"] is None
    assert "NaN" in replay.compare(three * np.nan, three, 1.0)["note"]
    assert not replay.compare(three[:0], three[:0], 1.0)["passed"]


def test_choices_are_compared_by_what_they_choose() -> None:
    signature = {"outputs": [{"name": "items", "kind": "choices", "along": "scores"}, {"name": "scores"}]}
    scores = np.array([[0.5, 3.0, 3.0, -1.0]])
    for places, wanted in (
        ([[1, 0]], [3.0, 0.5]),
        ([[2, 0]], [3.0, 0.5]),
        ([[1, 1]], [np.nan] * 2),
        ([[4, 0]], [np.nan, 0.5]),
    ):
        found = replay.chosen(signature, {"items": np.array(places), "scores": scores})["items"][0]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8", "int32", "int64", "bool", "float16", "float64"])
def test_tensors_of_every_type(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(30).reshape(5, 2, 3) % 2).astype(dtype)
    for value in (array, array[:0], array[0, 0, 0]):
        (tmp_path / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(value, "x").SerializeToString())
        name, found = replay.tensor(tmp_path / "input_0.pb")
        assert (name, found.dtype) == ("x", np.dtype(dtype))
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_samples_are_those_of_verify(size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    assert replay.sample(values) == sample(values)
    assert 0 < len(sample(values)) <= 16
    values[:] = np.nan
    assert set(replay.sample(values)) == {None}


def test_values_of_a_model(tiny_package: Path, tmp_path: Path) -> None:
    _, inputs, outputs = next(load(tiny_package).golden())
    np.savez(tmp_path / "in.npz", **inputs)  # pyright: ignore[reportArgumentType]
    assert run("--values", tiny_package / "model.onnx", tmp_path / "in.npz", tmp_path / "out.npz")[0] == 0
    with np.load(tmp_path / "out.npz") as found:
        for number, name in enumerate(found["names"]):
            np.testing.assert_allclose(found[str(number)], outputs[str(name)], atol=1e-5)
