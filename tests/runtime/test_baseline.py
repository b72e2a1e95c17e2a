"""The upgrade guard: what has moved since an earlier run, and the node at which it begins."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.poisons import change_weight, ignore_mask

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def old(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory, isoformer_once) -> Path:
    """What `verify --json` printed of the tiny package, in its place."""
    done = isoformer_once("verify", tiny_package, "--runtime", "ort", "--json", "--seed", "3")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("baseline") / "old.json"
    path.write_text(done.stdout)
    return path


def lines(done) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_golden_lines_carry_values(old: Path) -> None:
    found = [json.loads(line) for line in old.read_text().splitlines()][:-1]
    for line in found:
        assert (0 < len(line["sample"]) <= 16) if line["check"] == "golden" else "sample" not in line
    assert {line["check"] for line in found} == {"golden", "grid", "relation"}


def test_nothing_moves_without_a_change(isoformer, tiny_package: Path, old: Path) -> None:
    done = isoformer("verify", tiny_package, "--runtime", "ort", "--json", "--baseline", old)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(done)[-1]["baseline"]
    assert found["moved"] == []
    assert found["still"] > 10


@pytest.mark.parametrize(("poison", "operator"), [(change_weight, "MatMul"), (ignore_mask, "Attention")])
def test_what_moved_is_told_and_where_it_begins(isoformer, copy_package: Copy, old: Path, poison, operator) -> None:
    package = copy_package()
    poison(package)
    done = isoformer("verify", package, "--runtime", "ort", "--json", "--baseline", old)
    assert done.returncode == 1
    found = lines(done)[-1]["baseline"]
    shares = [one["moved"] / one["bound"] for one in found["moved"]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1
    assert found["first_difference"]["onnxruntime cpu"]["operator"] == operator
    shown = isoformer("verify", package, "--runtime", "ort", "--baseline", old)
    assert f"it begins at {operator} " in shown.stdout
    assert "outputs moved" in shown.stdout


def test_a_package_that_is_gone_is_said(isoformer, copy_package: Copy, old: Path, tmp_path: Path) -> None:
    *rest, last = old.read_text().splitlines()
    moved = tmp_path / "moved.json"
    moved.write_text("\n".join([*rest, json.dumps(json.loads(last) | {"place": str(tmp_path / "gone")})]))
    package = copy_package()
    change_weight(package)
    found = lines(isoformer("verify", package, "--runtime", "ort", "--json", "--baseline", moved))[-1]["baseline"]
    assert found["moved"]
    assert found["first_difference"] == {}
    assert "no longer at" in found["notes"][0]


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"passed": true}', '{"a": 1}\n{"fingerprints": {}}'])
def test_what_is_no_baseline_is_refused(isoformer, tiny_package: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "old.json").write_text(content)
    done = isoformer("verify", tiny_package, "--baseline", tmp_path / "old.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "old.json" in done.stderr


def test_a_baseline_of_another_model_is_refused(isoformer, generator_package: Path, old: Path) -> None:
    done = isoformer("verify", generator_package, "--runtime", "ort", "--baseline", old)
    assert done.returncode == 2
    assert "another model" in done.stderr
