"""Packages broken on purpose: verification fails, with a line that names what is wrong."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

WEIGHTS = (
    "embeddings.positions.weight",
    "embeddings.norm.bias",
    "blocks.0.attention.query_key_value.weight",
    "blocks.0.attention.out_linear.weight",
    "blocks.1.feed_forward.up.weight",
    "blocks.1.feed_forward.down.bias",
)


def edit_weight(package, name, change) -> None:
    model = onnx.load(package / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array.reshape(-1))
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, package / "model.onnx")


def nudge(values: np.ndarray) -> None:
    values[5] += 1e-2


def test_a_sound_package_passes(copy_package, isoformer):
    done = isoformer("verify", copy_package())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout
    assert done.stderr == ""


def test_a_changed_weight_breaks_the_digest(copy_package, isoformer):
    package = copy_package()
    edit_weight(package, WEIGHTS[0], nudge)
    done = isoformer("verify", package)
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_one_changed_weight_is_seen_behind_new_digests(copy_package, sign, isoformer, name):
    package = copy_package()
    edit_weight(package, name, nudge)
    sign(package)
    done = isoformer("verify", package, "--runtime", "ort")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "last_hidden_state" in done.stdout


def test_nan_is_named(copy_package, sign, isoformer):
    def poison(values):
        values[0] = np.nan

    package = copy_package()
    edit_weight(package, "embeddings.norm.weight", poison)
    sign(package)
    done = isoformer("verify", package)
    assert done.returncode == 1
    assert "NaN" in done.stdout


@pytest.mark.parametrize("swap", [("input_ids", "token_type_ids"), ("attention_mask", "token_type_ids")])
def test_swapped_inputs(copy_package, sign, isoformer, swap):
    """The graph reads one input where it should read another of the same type."""
    package = copy_package()
    model = onnx.load(package / "model.onnx")
    other = dict(zip(swap, reversed(swap), strict=True))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other.get(name, name)
    onnx.save(model, package / "model.onnx")
    sign(package)
    done = isoformer("verify", package)
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_reordered_inputs(copy_package, sign, isoformer):
    package = copy_package()
    model = onnx.load(package / "model.onnx")
    first, second = model.graph.input[0], model.graph.input[1]
    first.name, second.name = second.name, first.name
    onnx.save(model, package / "model.onnx")
    sign(package)
    done = isoformer("verify", package)
    assert done.returncode == 2
    assert "attention_mask" in done.stderr


@pytest.mark.parametrize("name", ["test_data_set_0/input_0.pb", "test_data_set_1/output_0.pb", "parity.npz"])
def test_a_missing_file_is_named(copy_package, isoformer, name):
    package = copy_package()
    (package / name).unlink()
    done = isoformer("verify", package)
    assert done.returncode == 2
    assert name in done.stderr


def test_a_golden_output_of_nan_does_not_pass(copy_package, sign, isoformer):
    package = copy_package()
    path = package / "test_data_set_0/output_0.pb"
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = np.nan
    path.write_bytes(numpy_helper.from_array(array, tensor.name).SerializeToString())
    sign(package)
    done = isoformer("verify", package)
    assert done.returncode == 1
    assert "test_data_set_0" in done.stdout


def test_a_package_that_compares_nothing_does_not_pass(copy_package, isoformer):
    package = copy_package()
    manifest = json.loads((package / "isoformer.json").read_text())
    manifest["golden"], manifest["grid"] = {}, {}
    manifest["signature"]["inputs"][0]["axes"] = ["rows", "sequence_length"]
    manifest["signature"]["axes"]["rows"] = {"min": 1, "max": None}
    (package / "isoformer.json").write_text(json.dumps(manifest))
    done = isoformer("verify", package)
    assert done.returncode == 2
    assert "nothing to compare" in done.stderr


def test_json_ends_with_the_verdict(copy_package, sign, isoformer):
    package = copy_package()
    lines = [json.loads(line) for line in isoformer("verify", package, "--json").stdout.splitlines()]
    assert lines[-1]["passed"] is True
    assert lines[-1]["failures"] == []
    assert lines[-1]["values"] == sum(line["values"] for line in lines[:-1])
    edit_weight(package, WEIGHTS[2], nudge)
    sign(package)
    done = isoformer("verify", package, "--json")
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert verdict["passed"] is False
    assert verdict["failures"]
