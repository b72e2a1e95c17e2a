"""The command line as people and scripts call it: answers, exit status, and one line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

TEXTS = ("That is a happy person", "That is a happy dog", "Today is a sunny day")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(BertModel, folder)
    return folder


def save(kind, folder: Path, **changes) -> None:
    torch.manual_seed(3)
    settings: dict[str, Any] = {"vocab_size": 101, "hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 2}
    config = BertConfig(**settings, intermediate_size=53, max_position_embeddings=37, **changes)
    kind(config).save_pretrained(folder)


def refused(done, *words: str) -> None:
    """One line on standard error that has the words, exit status 2, nothing on standard output."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("isoformer: ")
    for word in words:
        assert word in done.stderr


class TestMiniLM:
    """The main job, on real weights."""

    def test_similarities(self, isoformer, minilm_package):
        done = isoformer("run", minilm_package, *TEXTS)
        assert done.returncode == 0, done.stderr
        assert "0.6946" in done.stdout
        assert "0.2569" in done.stdout

    def test_json_lines_from_standard_input_and_file(self, isoformer, minilm_package, tmp_path):
        (tmp_path / "texts").write_text("\n".join(TEXTS), encoding="utf-8-sig")  # the mark that some editors begin with
        piped = isoformer("run", minilm_package, "--json", stdin="\n".join(TEXTS))
        filed = isoformer("run", minilm_package, "--json", "--file", tmp_path / "texts")
        assert piped.stdout == filed.stdout
        rows = [json.loads(line) for line in piped.stdout.splitlines()]
        assert [row["input"] for row in rows] == list(TEXTS)
        vectors = torch.tensor([row["embedding"] for row in rows])
        assert torch.allclose(vectors @ vectors[0], torch.tensor([1, 0.6946, 0.2569]), atol=5e-4)

    def test_text_over_the_limit(self, isoformer, minilm_package):
        refused(isoformer("run", minilm_package, "word " * 600), "602 tokens", "512", "--truncate")
        assert isoformer("run", minilm_package, "--truncate", "word " * 600).returncode == 0


class TestExport:
    def test_then_everything_else(self, isoformer, checkpoint, tmp_path):
        done = isoformer("export", "-m", checkpoint, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "wrote" in done.stdout
        assert isoformer("verify", tmp_path / "out").returncode == 0
        shown = isoformer("inspect", tmp_path / "out")
        assert "pooler_output" in shown.stdout
        assert json.loads(isoformer("inspect", tmp_path / "out", "--json").stdout)["family"] == "encoder"
        row = json.loads(isoformer("bench", tmp_path / "out", "--batch", "2", "--length", "7", "--json").stdout)
        assert row.keys() >= {"batch", "length", "median_ms", "p90_ms", "tokens_per_s", "peak_mb"}
        assert (row["batch"], row["length"]) == (2, 7)
        assert 0 < row["median_ms"] <= row["p90_ms"]
        refused(isoformer("run", tmp_path / "out", "text"), "tokenizer.json")

    def test_a_family_with_random_weights_and_options(self, isoformer, tmp_path):
        options = ("-o", "mask_rank=3", "-o", "position_rule=index", "--opset", "20")
        done = isoformer("export", "-m", "encoder", tmp_path / "out", *options)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "out/isoformer.json").read_text())
        assert manifest["opset"] == 20
        assert any(case.startswith("row-") for case in manifest["grid"])

    def test_a_module_of_ones_own(self, isoformer, tmp_path):
        (tmp_path / "my_module.py").write_text(
            """
from torch import nn
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.signature import Signature, TensorSpec

class Summary(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = MultiHeadAttention(12, 3)
        self.out = nn.Linear(12, 2)

    def forward(self, frames, mask):
        return self.out(self.attention(frames, frames, frames, mask))

def build():
    signature = Signature(
        inputs=(
            TensorSpec("frames", "float32", ("batch_size", "length", 12)),
            TensorSpec("mask", "int64", ("batch_size", "length"), kind="mask"),
        ),
        outputs=(TensorSpec("scores", "float32", ("batch_size", "length", 2)),),
    )
    return Summary(), signature
"""
        )
        done = isoformer("export", "-m", "my_module:build", "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert isoformer("verify", tmp_path / "out").returncode == 0
        refused(isoformer("run", tmp_path / "out", "text"), "no task")
        refused(isoformer("export", "-m", "my_module:nothing", "other", cwd=tmp_path), "nothing")

    def test_replaces_only_packages_and_only_when_told(self, isoformer, tmp_path):
        target, short = tmp_path / "out", ("-o", "max_positions=7")
        assert isoformer("export", "-m", "encoder", target, *short).returncode == 0
        before = (target / "isoformer.json").read_bytes()
        refused(isoformer("export", "-m", "encoder", target), "--force")
        assert (target / "isoformer.json").read_bytes() == before
        assert isoformer("export", "-m", "encoder", target, *short, "--force").returncode == 0
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/letter.txt").write_text("dear")
        refused(isoformer("export", "-m", "encoder", tmp_path / "mine", "--force"), "not a package")
        assert (tmp_path / "mine/letter.txt").read_text() == "dear"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


class TestTasks:
    @pytest.mark.parametrize(
        ("kind", "text", "field"),
        [(BertForSequenceClassification, "a text", "scores"), (BertForMaskedLM, "a [MASK] text", "tokens")],
    )
    def test_classify_and_fill_mask(self, isoformer, tmp_path, minilm, kind, text, field):
        torch.manual_seed(5)
        settings: dict[str, Any] = {
            "vocab_size": 30522,
            "hidden_size": 33,
            "num_attention_heads": 3,
            "num_hidden_layers": 1,
        }
        config = BertConfig(
            **settings, intermediate_size=53, max_position_embeddings=37, id2label={0: "a", 1: "b", 2: "c"}
        )
        kind(config).save_pretrained(tmp_path / "model")
        (tmp_path / "model/tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
        assert isoformer("export", "-m", tmp_path / "model", tmp_path / "out").returncode == 0
        done = isoformer("run", tmp_path / "out", text, "--json")
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)
        assert row["input"] == text
        scores = row[field].values() if field == "scores" else [token["score"] for token in row[field]]
        assert all(0 <= score <= 1 for score in scores)
        assert len(scores) == (3 if field == "scores" else 5)
        assert isoformer("run", tmp_path / "out", text).returncode == 0


class TestMistakes:
    @pytest.mark.parametrize("command", ["verify", "inspect", "run", "bench"])
    def test_no_such_package(self, isoformer, tmp_path, command):
        words = ["text"] if command == "run" else []
        refused(isoformer(command, tmp_path / "nowhere", *words), "nowhere", "no such folder")

    def test_no_such_model(self, isoformer, tmp_path):
        refused(isoformer("export", "-m", tmp_path / "nowhere", tmp_path / "out"), "nowhere")
        assert not list(tmp_path.iterdir())

    def test_broken_checkpoints(self, isoformer, checkpoint, tmp_path):
        import shutil

        def attempt(change) -> Path:
            folder = tmp_path / "broken"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(checkpoint, folder)
            change(folder)
            return folder

        def other_type(folder):
            settings = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(settings | {"model_type": "mamba"}))

        def truncate(folder):
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[: len(content) // 2])

        out = tmp_path / "out"
        without_config = attempt(lambda folder: (folder / "config.json").unlink())
        refused(isoformer("export", "-m", without_config, out), "config.json")
        refused(isoformer("export", "-m", attempt(other_type), out), "mamba")
        refused(isoformer("export", "-m", attempt(truncate), out), "model.safetensors")
        refused(isoformer("export", "-m", checkpoint, out, "--task", "sing"), "sing")
        refused(isoformer("export", "-m", checkpoint, out, "--opset", "26"), "26")
        refused(isoformer("export", "-m", checkpoint, out, "-o", "colour=red"), "colour")
        refused(isoformer("export", "-m", checkpoint, out, "--precision", "fp4"), "fp4")
        assert [path.name for path in tmp_path.iterdir()] == ["broken"]

    def test_cuda_without_cuda(self, isoformer, tiny_package):
        done = isoformer("verify", tiny_package, "--provider", "cuda")
        if done.returncode == 0:
            pytest.skip("there is a CUDA GPU here")
        refused(done, "CUDAExecutionProvider")

    def test_numbers_and_empty_input(self, isoformer, tiny_package):
        refused(isoformer("bench", tiny_package, "--batch", "1,x"), "--batch")
        refused(isoformer("bench", tiny_package, "--length", "65"), "65", "64")
        refused(isoformer("run", tiny_package), "no input")
        refused(isoformer("verify", tiny_package, "--runtime", "abacus"), "abacus")


def test_inspect_shows_a_source_that_is_a_plain_text(isoformer, copy_package):
    package = copy_package()
    manifest = json.loads((package / "isoformer.json").read_text(encoding="utf-8"))
    (package / "isoformer.json").write_text(json.dumps(manifest | {"source": "our own"}), encoding="utf-8")
    shown = isoformer("inspect", package)
    assert shown.returncode == 0, shown.stderr
    assert "our own" in shown.stdout


def test_families_lists_each_with_what_it_reads(isoformer):
    rows = [json.loads(line) for line in isoformer("families", "--json").stdout.splitlines()]
    found = {row["family"]: row for row in rows}
    assert "vit" in found["vision"]["checkpoints"]
    assert found["encoder"]["tasks"] == ["embed", "fill-mask", "classify"]
    assert found["speech"]["tasks"] == ["transcribe", "transcribe-ctc"]
    assert found["decoder"]["checkpoints"][-1] == "gguf"
    assert found["recommender"]["inputs"] == {"model": ["item_ids", "attention_mask"]}
    table = isoformer("families").stdout
    assert all(name in table for name in found)
