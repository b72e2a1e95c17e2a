"""An encoder's other graphs: what is measured before they are kept, and what a package does with them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from isoformer.export import ExportError, encoder_variants
from isoformer.export.evidence import torch_runner
from isoformer.export.smooth import smooth
from isoformer.models.families import encoder
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime import PackageError, Session, load
from isoformer.runtime.package import MANIFEST, WEIGHTS, sha256
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.verify import verify
from tests.conftest import export_small

CONFIG = dataclasses.replace(encoder.TINY, hidden_size=66, intermediate_size=106)
FREE, LOW = "cpu-float32", "cpu-int8"
TEXT = "A fox. A crow sat in a tree!\nIt held cheese. Why? Nobody knows.\n\nThe end of it.\n"


def model_of(config: encoder.Config = CONFIG) -> encoder.Model:
    torch.manual_seed(11)
    return encoder.Model(config).eval()


def written(path: Path, config: encoder.Config = CONFIG, precision: str = "int8", text: str = TEXT) -> Path:
    edge, task = encoder.signature(config), encoder.task(config)
    return export_small(model_of(config), edge, path, task=task, precision=precision, text=text).path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("encoder") / "package")


def batch(lengths: tuple[int, ...] = (7, 3, 0)) -> dict[str, np.ndarray]:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_a_package_says_how_its_variants_were_measured(package):
    found = load(package)
    free, low = found.variant(FREE), found.variant(LOW)
    assert found.manifest["preferred"] == "int8"
    assert (free["zero_at_padding"], low["zero_at_padding"]) == (["last_hidden_state"],) * 2
    assert free["tolerances"] == found.manifest["tolerances"]
    assert low["gate"]["texts"] == 6
    assert low["gate"]["cosine"] >= low["gate"]["limits"]["cosine"] == 0.998
    assert low["gate"]["spearman"] >= low["gate"]["limits"]["spearman"] == 0.997
    for output, entry in low["tolerances"].items():
        assert entry["absolute"] == 2 * entry["error"]
        assert entry["error"] > 30 * found.manifest["tolerances"][output]["torch_float32_max_error"]  # fewer bits
    assert "onnxruntime cpu-float32" in found.manifest["parity"]
    assert "mean cosine with float32's vectors" in (package / "README.md").read_text(encoding="utf-8")


def test_the_weights_of_float32_stand_there_once(package):
    assert (package / WEIGHTS).stat().st_size > 50_000
    assert (package / "variants" / FREE / "model.onnx").stat().st_size < (package / WEIGHTS).stat().st_size / 2


def test_the_fastest_session_is_the_padding_free_one_of_the_precision(package):
    assert Session.fastest(package).variant == LOW
    assert Session.fastest(package, precision="float32").variant == FREE
    exact, free, low = (Session(package, variant=name).run(batch()) for name in (None, FREE, LOW))
    np.testing.assert_allclose(free["sentence_embedding"], exact["sentence_embedding"], atol=1e-6)
    np.testing.assert_allclose(low["sentence_embedding"], exact["sentence_embedding"], atol=0.05)
    assert not free["last_hidden_state"][1, 3:].any()
    assert not free["sentence_embedding"][2].any()  # a sequence without a token


@pytest.mark.parametrize("variant", [FREE, LOW])
def test_verification_holds_variants_to_the_float64_reference(package, variant):
    found = load(package)
    report = verify(found, Session(found, variant=variant).run, variant, seed=3, variant=variant)
    assert report.passed, report.failures[0].line()
    assert {c.check for c in report.comparisons} == {"golden", "grid", "relation"}


@pytest.mark.parametrize("variant", [FREE, LOW])
def test_a_changed_variant_is_found_out(package, copy_of, variant):
    copied = copy_of(package)
    file = copied / "variants" / variant / "model.onnx"
    graph = onnx.load(file, load_external_data=False)
    bias = next(x for x in graph.graph.initializer if list(x.dims) == [CONFIG.hidden_size])
    values = onnx.numpy_helper.to_array(bias, str(copied)).copy() + 0.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph, file)
    manifest = json.loads((copied / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][f"variants/{variant}/model.onnx"] = sha256(file)
    (copied / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    found = load(copied)
    assert not verify(found, Session(found, variant=variant).run, variant, seed=3, variant=variant).passed


def test_hidden_states_that_are_not_zero_at_padding_are_found_out(package):
    """The canonical graph computes queries at padding, which this variant promises not to show."""
    found = load(package)
    report = verify(found, Session(found).run, "canonical", seed=3, variant=FREE)
    assert {c.output for c in report.failures} == {"last_hidden_state"}


@pytest.mark.parametrize("task", ["classify", "fill-mask"])
def test_the_gates_of_other_tasks(tmp_path, task):
    config = dataclasses.replace(CONFIG, task=task, labels=("good", "bad"), position_rule="index")
    gate = load(written(tmp_path / "package", config)).variant(LOW)["gate"]
    assert gate["limits"] == ({"same_labels": 0.99} if task == "classify" else {"perplexity": 1.03, "agreement": 0.85})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_miss_the_gate(value, package):
    """The largest of NaNs is the first, which may well be float32's label."""
    plain = load(package).signature
    with pytest.raises(ExportError, match="quality gate is missed: an answer in int8 is infinite or NaN"):
        encoder_variants.gate(
            {"name": "classify", "labels": ["good", "bad"]},
            plain,
            lambda _inputs: {"logits": np.array([[1.0, 0.0]])},
            lambda _inputs: {"logits": np.array([[value, 0.0]])},
            [[1, 2], [3, 4]],
            "int8",
        )


def test_a_gate_that_is_missed_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(encoder_variants.LIMITS, "int8", encoder_variants.Limits(1.5, 0.9, 0.9))
    with pytest.raises(ExportError, match=r"quality gate is missed: the mean cosine .* \(at least 1.5\)"):
        written(tmp_path / "package")
    assert not any(tmp_path.iterdir())


def test_too_few_sentences_and_tasks_without_a_measure_are_refused(tmp_path):
    with pytest.raises(ExportError, match="has 2 sentences; it needs 4 at least"):
        written(tmp_path / "few", text="One. Two.")
    with pytest.raises(ExportError, match="precision int8 needs a task whose quality can be measured; None has no"):
        export_small(model_of(), encoder.signature(CONFIG), tmp_path / "none", precision="int8")


def test_smoothing_leaves_a_post_norm_model_as_it_is():
    model, edge = model_of(), encoder.signature(CONFIG)
    inputs = encoder_variants._inputs(RuntimeSignature.read(edge.to_dict()), [3, 1, 4, 1, 5])
    before = torch_runner(model, edge, torch.float64)(inputs)
    block = cast(Any, model.blocks[0])
    weights = block.attention.query_linear.weight.clone()
    run = torch_runner(model, edge, torch.float64, copied=False)
    assert smooth(model, lambda: run(inputs)) == 2 * CONFIG.num_layers
    assert not torch.equal(block.attention.inner.query_linear.weight.float(), weights)
    for name, value in run(inputs).items():
        np.testing.assert_allclose(value, before[name], atol=1e-12)


class LargestOfAll(nn.Module):
    """Its answer depends on padding: the largest hidden state over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = model_of()

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.body(input_ids, attention_mask, token_type_ids)["last_hidden_state"].amax(1)


def test_a_model_whose_answer_depends_on_padding_keeps_its_canonical_graph(tmp_path):
    out = TensorSpec("largest", "float32", ("batch_size", CONFIG.hidden_size))
    edge = encoder.signature(CONFIG)
    edge = Signature(edge.inputs, (out,), axes=edge.axes, padding=())
    found = export_small(LargestOfAll().eval(), edge, tmp_path / "package")
    assert not found.variants
    assert not (tmp_path / "package" / "variants" / FREE).exists()
    assert "no padding-free graph, since padding changes what the model answers" in found.manifest["notes"][0]
    with pytest.raises(PackageError, match="has no int8 for cpu"):
        Session.fastest(found, precision="int8")


@pytest.fixture
def copy_of(tmp_path: Path):
    return lambda package: Path(shutil.copytree(package, tmp_path / "copy"))
