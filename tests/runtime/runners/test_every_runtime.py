"""Every runtime that a machine can have, on a small package: it passes, and planted differences are caught by each.

They need Node with runtime/js's packages, Chromium, a C compiler and a network for pip; `make matrix` brings what it
can. What is missing fails here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.poisons import change_weight, ignore_mask

pytestmark = pytest.mark.slow
RUNTIMES = ("ort", "reference", "node", "browser", "c", "openvino", "ort==1.28.0", "ort==1.30.0")
Copy = Callable[..., Path]


def verified(isoformer, package: Path, runtime: str) -> tuple[int, list[dict]]:
    done = isoformer("verify", package, "--runtime", runtime, "--json", "--seed", "3")
    assert done.returncode in (0, 1), done.stderr
    *lines, summary = map(json.loads, done.stdout.splitlines())
    assert summary["passed"] == (done.returncode == 0)
    return done.returncode, lines


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_sound_package_passes(isoformer, tiny_package: Path, runtime: str) -> None:
    status, lines = verified(isoformer, tiny_package, runtime)
    assert status == 0
    assert {line["asked"] for line in lines} == {runtime}
    assert all(line["version"] for line in lines)
    golden = json.loads((tiny_package / "isoformer.json").read_text())["golden"]
    replayed = {line["case"] for line in lines if line["check"] == "golden"}
    assert replayed == golden.keys() if runtime != "reference" else replayed < golden.keys()


@pytest.mark.parametrize("poison", [change_weight, ignore_mask])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_planted_difference_is_caught(isoformer, copy_package: Copy, runtime: str, poison) -> None:
    package = copy_package()
    poison(package)
    status, lines = verified(isoformer, package, runtime)
    assert status == 1
    failed = [line for line in lines if line["check"] == "golden" and not line["passed"]]
    assert failed
    assert all(line["error"] > line["bound"] for line in failed)


def test_webgpu_runs_attention_that_is_taken_apart(isoformer, tmp_path: Path) -> None:
    """A decoder with rotary positions: WebGPU's sines are off by 2e-4, so they must be on the CPU, and be named."""
    package = tmp_path / "decoder"
    assert isoformer("export", "-m", "decoder", package, "--opset", "20").returncode == 0
    status, lines = verified(isoformer, package, "webgpu")
    assert status == 0
    assert {line["provider"] for line in lines} == {"webgpu"}
    assert all({"Cos 1", "Sin 1"} < set(line["elsewhere"].split(", ")) for line in lines)
    change_weight(package, "head.weight")
    assert verified(isoformer, package, "webgpu")[0] == 1


def test_webgpu_refuses_standard_attention(isoformer, tiny_package: Path) -> None:
    done = isoformer("verify", tiny_package, "--runtime", "webgpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "webgpu does not run Attention of this graph; isoformer export --provider openvino" in done.stderr


def test_openvino_computes_in_the_precision_that_it_says(isoformer, tiny_package: Path) -> None:
    """In bfloat16, which it takes by itself, nothing passes; and what it leaves to another provider is named."""
    _, lines = verified(isoformer, tiny_package, "openvino")
    assert {line["precision"] for line in lines} == {"float32"}
    assert max(line["error"] / line["bound"] for line in lines) < 1
    assert {line["elsewhere"] for line in lines} == {"Attention 2"}


def test_a_release_whose_masked_rows_are_wrong_fails_those_alone(isoformer, tiny_package: Path) -> None:
    status, lines = verified(isoformer, tiny_package, "ort==1.23.2")
    assert status == 1
    described = json.loads((tiny_package / "isoformer.json").read_text())["golden_cases"]
    assert {described[line["case"]].partition("-")[0] for line in lines if not line["passed"]} == {"sample"}


def test_an_upgrade_is_bisected_to_the_node_that_it_mended(isoformer, tiny_package: Path, tmp_path: Path) -> None:
    old = isoformer("verify", tiny_package, "--runtime", "ort==1.23.2", "--json")
    (tmp_path / "old.json").write_text(old.stdout)
    done = isoformer("verify", tiny_package, "--runtime", "ort==1.28.0", "--json", "--baseline", tmp_path / "old.json")
    found = json.loads(done.stdout.splitlines()[-1])["baseline"]
    assert found["moved"][0]["before"] == "1.23.2"
    assert found["moved"][0]["moved"] is None  # from NaN to a number
    (first,) = found["first_difference"].values()
    assert first["operator"] == "Attention"


def test_a_release_that_is_not_there_is_one_line(isoformer, tiny_package: Path) -> None:
    done = isoformer("verify", tiny_package, "--runtime", "ort==1.0.99")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("isoformer: onnxruntime==1.0.99")
