"""The float16 graph for CUDA in a package, measured on the CPU. What a GPU makes of it: python -m benchmarks.cuda."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from isoformer.export import encoder_variants
from isoformer.export.errors import ExportError
from isoformer.models.families import attention, encoder
from isoformer.runtime import PackageError, ProviderError, Session
from isoformer.runtime.cost import cost_on
from isoformer.runtime.package import MANIFEST, Package, load
from isoformer.runtime.verify import verify
from tests.conftest import export_small, require_gpu

NAME = "cuda-float16"


def exported(path: Path) -> Package:
    torch.manual_seed(7)
    model, signature = encoder.Model(encoder.TINY), encoder.signature(encoder.TINY)
    return export_small(model, signature, path, task=encoder.task(encoder.TINY), providers=("cuda",))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return exported(tmp_path_factory.mktemp("cuda") / "tiny")


def on_cpu(package: Package, path: Path) -> Package:
    """A copy whose float16 variant is the CPU provider's, so that it can be run here."""
    copied = Path(shutil.copytree(package.path, path))
    manifest = json.loads((copied / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"][NAME]["provider"] = "cpu"
    (copied / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return load(copied)


def test_the_manifest_says_what_was_measured_where(package: Package) -> None:
    variant = package.variant(NAME)
    assert (variant["provider"], variant["precision"], variant["measured_on"]) == ("cuda", "float16", "cpu")
    found = package.manifest["parity"][f"{NAME} on onnxruntime cpu"]
    assert found["values"] > 0
    assert 0 < found["worst_share_of_bound"] < 1
    assert not any(name.startswith("onnxruntime cuda") for name in package.manifest["parity"])
    for name, tolerance in variant["tolerances"].items():
        assert tolerance["absolute"] == 4 * tolerance["torch_float16_max_error"]
        assert tolerance["absolute"] > 100 * package.manifest["tolerances"][name]["absolute"]
    gate = variant["gate"]
    assert gate["limits"] == {"cosine": 0.9999, "spearman": 0.9999}
    for found in (gate, gate["torch_float16"]):
        assert 0.9999 <= found["cosine"] <= 1
        assert 0.9999 <= found["spearman"] <= 1


def test_inside_it_is_float16_and_at_the_edge_what_the_canonical_graph_is(package: Package) -> None:
    graph = ir.load(package.path / package.variant(NAME)["path"]).graph
    layers = [node for node in graph if node.op_type == "Attention"]
    assert len(layers) == encoder.TINY.num_layers
    for node in layers:
        assert [x.dtype for x in node.inputs if x is not None] == [ir.DataType.FLOAT16] * 4
    dtypes = {str(value.name): value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert {dtypes[spec.name] for spec in package.signature.inputs} == {ir.DataType.INT64}
    assert {dtypes[spec.name] for spec in package.signature.outputs} == {ir.DataType.FLOAT}
    weights = [x.const_value for x in graph.initializers.values() if x.shape is not None and len(x.shape) == 2]
    assert {x.dtype for x in weights if x is not None} == {ir.DataType.FLOAT16}


def test_it_is_taken_only_where_it_is_asked_for(package: Package) -> None:
    assert package.fastest("cuda") is None
    assert package.fastest("cuda", "float16") == NAME
    with pytest.raises(PackageError, match="no float16 for cpu"):
        package.fastest("cpu", "float16")
    assert Session.fastest(package).variant != NAME


def test_without_a_gpu_it_is_refused_in_one_line(package: Package) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU here")
    with pytest.raises(ProviderError, match="CUDAExecutionProvider") as caught:
        Session.fastest(package, "cuda", precision="float16")
    assert "\n" not in str(caught.value)


def test_every_check_passes_by_its_own_bounds_and_a_query_without_keys_is_zero(
    package: Package, tmp_path: Path
) -> None:
    found = on_cpu(package, tmp_path / "tiny")
    session = Session(found, variant=NAME)
    report = verify(found, session.run, NAME, seed=5, variant=NAME)
    assert report.passed, [one.line() for one in report.failures]
    assert report.worst() > 1e-3
    ids, mask = np.full((3, 7), 5), np.ones((3, 7), np.int64)
    mask[1], mask[2, 4:] = 0, 0
    out = session.run({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    assert not out[1].any()
    assert np.isfinite(out).all()


def test_a_weight_that_is_off_is_found_out(package: Package, tmp_path: Path) -> None:
    found = on_cpu(package, tmp_path / "tiny")
    file = found.path / found.variant(NAME)["path"]
    graph = ir.load(file)
    ir.external_data.load_to_model(graph)
    value = next(x for n, x in graph.graph.initializers.items() if "query_key_value.weight" in n)
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float16(1.1), name=value.name)
    ir.save(graph, file)
    assert not verify(found, Session(found, variant=NAME).run, NAME, seed=5, variant=NAME).passed


@pytest.mark.slow
def test_a_gate_that_is_missed_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoder_variants.LIMITS, "float16", encoder_variants.Limits(0.9, 1.5, 0.9))
    with pytest.raises(ExportError, match=r"quality gate is missed: .* similarities .* \(at least 1.5\)"):
        exported(tmp_path / "tiny")
    assert not any(tmp_path.iterdir())


def test_what_has_no_measure_and_what_is_no_precision_are_refused(tmp_path: Path) -> None:
    model, signature = attention.Model(attention.TINY), attention.signature(attention.TINY)
    with pytest.raises(ExportError, match="float16 needs a task whose quality can be measured; None has no"):
        export_small(model, signature, tmp_path / "one", providers=("cuda",))
    with pytest.raises(ExportError, match="float16 is for GPUs: --provider cuda"):
        export_small(model, signature, tmp_path / "two", precision="float16")
    with pytest.raises(ExportError, match="for openvino and cuda, not for tpu"):
        export_small(model, signature, tmp_path / "three", providers=("tpu",))


def test_lists_of_texts_are_as_wide_as_the_fused_kernel_takes_a_mask() -> None:
    assert [cost_on("cuda").width(length) for length in (1, 8, 13, 128)] == [8, 8, 16, 128]


def test_on_a_gpu_every_check_passes_by_the_same_bounds(package: Package) -> None:
    require_gpu()
    session = Session(package, "cuda", variant=NAME)
    report = verify(package, session.run, "onnxruntime cuda-float16", seed=3, variant=NAME)
    assert report.passed, [one.line() for one in report.failures]
