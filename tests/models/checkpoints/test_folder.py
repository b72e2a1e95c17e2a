import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from isoformer.models.checkpoints import CheckpointError
from isoformer.models.checkpoints.folder import (
    assign,
    carried_files,
    model_type,
    read_json,
    read_tensors,
    refuse_unknown,
)

ONE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(5)}
OTHER = {"c": torch.arange(7.0)}


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def shards(folder: Path, names: dict[str, Any]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def same(have: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return have.keys() == want.keys() and all(
        have[name].dtype == want[name].dtype and torch.equal(have[name], want[name]) for name in want
    )


# JSON


def test_read_json(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"näme": [1, 2]}', encoding="utf-8")
    assert read_json(file) == {"näme": [1, 2]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"a": 1', "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"[1, 2]", "holds list, not a JSON object"),
        (b'"bert"', "holds str, not a JSON object"),
        (b"null", "holds NoneType, not a JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused_by_its_path(tmp_path, content, named):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    message = refusal(read_json, file)
    assert named in message
    assert str(file) in message


def test_a_json_file_that_is_not_there_is_refused_by_its_path(tmp_path):
    assert str(tmp_path / "config.json") in refusal(read_json, tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    assert str(tmp_path / "config.json") in refusal(read_json, tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"model_type": "bert"}', "bert"),
        ('{"model_type": 5}', None),
        ('{"model_type": ["bert"]}', None),
        ("{}", None),
        ("[", None),
        ("[]", None),
    ],
)
def test_model_type_is_a_string_or_none(tmp_path, content, kind):
    (tmp_path / "config.json").write_text(content)
    assert model_type(tmp_path) == kind


def test_model_type_of_what_is_no_folder_is_none(tmp_path):
    (tmp_path / "file").touch()
    assert model_type(tmp_path) is None
    assert model_type(tmp_path / "file") is None
    assert model_type(tmp_path / "nowhere") is None


# tensors


def test_tensors_of_one_file(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path), ONE)


def test_tensors_of_shards(tmp_path):
    save_file(ONE, tmp_path / "model-1.safetensors")
    save_file(OTHER, tmp_path / "model-2.safetensors")
    save_file({"d": torch.ones(1)}, tmp_path / "model-3.safetensors")
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    assert same(read_tensors(tmp_path), ONE | OTHER)


def test_one_whole_file_goes_before_shards(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    shards(tmp_path, {"c": "gone.safetensors"})
    assert same(read_tensors(tmp_path), ONE)


def test_a_folder_without_weights_is_refused(tmp_path):
    message = refusal(read_tensors, tmp_path)
    assert f"{tmp_path} has no model.safetensors" in message
    assert "pytorch_model.bin" not in message


def test_a_pickle_is_named_and_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").mkdir()  # opening it would raise another error
    message = refusal(read_tensors, tmp_path)
    assert f"{tmp_path} has no model.safetensors" in message
    assert "pytorch_model.bin is a pickle" in message
    assert "safe_serialization=True" in message


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
def test_a_file_cut_short_is_refused_by_its_path(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file(ONE, file)
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(read_tensors, tmp_path)
    assert str(file) in message
    assert "is not a whole safetensors file" in message


def test_a_file_of_another_kind_is_refused_by_its_path(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert str(tmp_path / "model.safetensors") in refusal(read_tensors, tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    save_file(ONE, tmp_path / "model-1.safetensors")
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    message = refusal(read_tensors, tmp_path)
    assert f"{tmp_path / 'model-2.safetensors'} does not exist" in message
    assert "model.safetensors.index.json" in message


def test_a_shard_cut_short_is_named(tmp_path):
    save_file(ONE, tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").write_bytes((tmp_path / "model-1.safetensors").read_bytes()[:-1])
    shards(tmp_path, {"a": "model-1.safetensors", "c": "model-2.safetensors"})
    assert str(tmp_path / "model-2.safetensors") in refusal(read_tensors, tmp_path)


@pytest.mark.parametrize("name", ["../weights.safetensors", "sub/weights.safetensors", "/weights.safetensors", ".."])
def test_a_shard_elsewhere_is_never_read(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file(ONE, place / "weights.safetensors")
    message = refusal(read_tensors, shards(folder, {"a": name}))
    assert repr(name) in message


@pytest.mark.parametrize("weight_map", [["model-1.safetensors"], "model-1.safetensors", None, {"a": 5}], ids=str)
def test_an_index_of_another_form_is_refused_by_its_path(tmp_path, weight_map):
    save_file(ONE, tmp_path / "model-1.safetensors")
    message = refusal(read_tensors, shards(tmp_path, weight_map))
    assert str(tmp_path / "model.safetensors.index.json") in message


def test_a_broken_index_is_refused_by_its_path(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert str(tmp_path / "model.safetensors.index.json") in refusal(read_tensors, tmp_path)


# names


def theirs(name: str) -> str:
    return f"their.{name}"


def test_assign_gives_the_tensors_our_names(tmp_path):
    tensors = {"their.a": ONE["a"], "their.b": ONE["b"], "their.c": OTHER["c"]}
    assert same(assign(ONE, tensors, theirs, tmp_path), ONE)


def test_assign_may_use_a_tensor_twice(tmp_path):
    state = assign({"a": ONE["a"], "b": ONE["a"]}, {"their": ONE["a"]}, lambda _: "their", tmp_path)
    assert state["a"] is state["b"] is ONE["a"]


def test_assign_names_what_is_missing_as_the_file_does(tmp_path):
    assert refusal(assign, ONE, {"their.b": ONE["b"]}, theirs, tmp_path) == f"{tmp_path} lacks the tensor their.a"
    assert refusal(assign, ONE, {}, theirs, tmp_path) == f"{tmp_path} lacks the tensors their.a, their.b"


def test_assign_names_what_has_another_shape_with_both(tmp_path):
    tensors = {"their.a": ONE["a"].T, "their.b": ONE["b"]}
    message = refusal(assign, ONE, tensors, theirs, tmp_path)
    assert message == f"{tmp_path} has the tensor their.a of shape (3, 2) where config.json asks for (2, 3)"


def test_long_lists_of_names_are_cut(tmp_path):
    message = refusal(assign, {f"{i:02}": ONE["a"] for i in range(11)}, {}, theirs, tmp_path)
    assert message.endswith("their.00, their.01, their.02, their.03, their.04, their.05, their.06, their.07 and 3 more")
    eight = refusal(assign, {f"{i:02}": ONE["a"] for i in range(8)}, {}, theirs, tmp_path)
    assert "more" not in eight
    assert eight.endswith("their.07")


def test_refuse_unknown_names_them_in_order(tmp_path):
    refuse_unknown([], tmp_path)
    assert refusal(refuse_unknown, {"x"}, tmp_path) == f"{tmp_path} has the unknown tensor x"
    assert refusal(refuse_unknown, {"z", "x", "y"}, tmp_path) == f"{tmp_path} has the unknown tensors x, y, z"


def test_configuration_and_tokenizer_are_carried_along(tmp_path):
    assert carried_files(tmp_path) == ()
    names = ["vocab.txt", "config.json", "tokenizer.json", "model.safetensors", "README.md", "training_args.bin"]
    for name in names:
        (tmp_path / name).touch()
    assert carried_files(tmp_path) == tuple(tmp_path / name for name in ("config.json", "tokenizer.json", "vocab.txt"))


def test_an_error_of_a_checkpoint_is_an_error_of_a_value():
    with pytest.raises(ValueError, match=re.escape("x")):
        raise CheckpointError("x")
