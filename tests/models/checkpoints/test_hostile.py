"""Checkpoint folders that somebody made to do harm: one line, soon, and nothing of elsewhere in the package."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from isoformer.models import checkpoints
from isoformer.models.checkpoints import CheckpointError
from isoformer.models.checkpoints.folder import carried_files
from tests.models.checkpoints.test_bert import theirs


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    theirs("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(folder).model()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2100
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", 10**12, "more than 16,777,216"),
        ("hidden_size", -33, "at least 1"),
        ("hidden_size", "33", "whole number"),
        ("hidden_size", [33], "whole number"),
        ("hidden_size", 33.0, "whole number"),
        ("num_hidden_layers", 10**9, "more than 1,024"),
        ("num_hidden_layers", True, "whole number"),
        ("vocab_size", 2**24, "shape"),
        ("max_position_embeddings", 10**30, "more than"),
        ("hidden_act", {"a": 1}, "form of a checkpoint"),
        ("architectures", {"a": 1}, "is not supported"),
        ("architectures", [7], "is not supported"),
        ("model_type", ["bert"], "model_type"),
        ("layer_norm_eps", "x" * 10**6, "norm_eps"),
    ],
)
def test_config(folder: Path, key: str, value: Any, words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert words in refusal(folder)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"model_type": "bert", "a": ' + "9" * 5000 + "}", "", "[]"])
def test_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("labels", [10**9, -1, "2", None])
def test_labels(folder: Path, labels: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": labels}
    (folder / "config.json").write_text(json.dumps(config))
    assert "num_labels" in refusal(folder)


def weights(header: Any, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        weights({}, 2**63),
        weights({}, 10**9),
        weights(b"[" * 10**5),
        weights({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        weights({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 64]}}),
        weights({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "b": {"dtype": "F32", "shape": [-1]}}),
    ],
    ids=["empty", "length of 2^63", "length of 10^9", "nested", "offsets of terabytes", "product of 2^66", "negative"],
)
def test_header(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "..", ""])
def test_shards_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "plain file name" in refusal(folder)


def test_a_text_that_is_a_link_to_elsewhere_is_not_carried(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    assert "link out of the folder" in refusal(folder)


def test_the_cache_of_the_hub_is_read_through_its_links(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub/snapshots/1", tmp_path / "hub/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    assert carried_files(snapshot) == (snapshot / "config.json",)
    checkpoints.read(snapshot).model()
