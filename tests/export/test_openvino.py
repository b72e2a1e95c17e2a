"""The graph for OpenVINO in a package. What the provider computes with it: make test-openvino."""

import json
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from isoformer.export.errors import ExportError
from isoformer.models.families import decoder, encoder
from isoformer.runtime import PackageError, ProviderError, Session
from isoformer.runtime.package import MANIFEST, WEIGHTS, Package
from tests.conftest import export_small


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("openvino") / "tiny"
    model, signature = encoder.Model(encoder.TINY), encoder.signature(encoder.TINY)
    return export_small(model, signature, path, task=encoder.task(encoder.TINY), providers=("openvino",))


def test_one_graph_serves_both_precisions_and_reads_the_weights_that_are_there(package: Package) -> None:
    exact, rough = (package.variant(f"openvino-{precision}") for precision in ("float32", "bfloat16"))
    assert exact["path"] == rough["path"]
    assert "Attention" not in exact["operators"]
    assert exact["tolerances"] == package.manifest["tolerances"]
    for name, tolerance in rough["tolerances"].items():
        assert tolerance["absolute"] == 4 * tolerance["torch_bfloat16_max_error"]
        assert tolerance["absolute"] > 100 * exact["tolerances"][name]["absolute"]
    outside = [value.const_value for value in ir.load(package.path / exact["path"]).graph.initializers.values()]
    assert {x.location for x in outside if isinstance(x, ir.ExternalTensor)} == {WEIGHTS}
    assert (package.path / exact["path"]).stat().st_size < (package.path / WEIGHTS).stat().st_size


def test_batches_with_padding_have_a_graph_of_their_own(package: Package) -> None:
    exact, rough = (package.variant(f"openvino-{precision}-padded") for precision in ("float32", "bfloat16"))
    assert exact["path"] == rough["path"] != package.variant("openvino-float32")["path"]
    assert {"Attention", "Loop"}.isdisjoint(exact["operators"])
    assert exact["zero_at_padding"] == ["last_hidden_state"] == package.variant("cpu-float32")["zero_at_padding"]
    assert exact["golden"] == package.variant("cpu-float32")["golden"]
    for case, outputs in rough["golden"].items():
        for name, record in outputs.items():
            assert record["bound"] == rough["tolerances"][name]["absolute"] > exact["golden"][case][name]["bound"]


def test_the_manifest_says_what_it_was_compared_with(package: Package) -> None:
    manifest = json.loads((package.path / MANIFEST).read_text(encoding="utf-8"))
    for name in ("openvino-float32", "openvino-float32-padded"):
        found = manifest["parity"][f"{name} on onnxruntime cpu"]
        assert found["values"] == manifest["parity"]["onnxruntime cpu-float32"]["values"] > 0
        assert found["worst_share_of_bound"] < 1


def test_the_fastest_is_its_own_graph_for_this_provider_alone(package: Package) -> None:
    assert package.fastest("openvino") == "openvino-float32"
    assert package.fastest("openvino", "bfloat16") == "openvino-bfloat16"
    assert package.fastest("cpu") in (None, "cpu-float32")
    with pytest.raises(PackageError, match="no bfloat16 for cpu"):
        package.fastest("cpu", "bfloat16")


def test_without_the_plugin_it_is_refused_in_one_line_that_names_the_extra(package: Package) -> None:
    with pytest.raises(ProviderError, match=r"pip install 'isoformer\[openvino\]'") as caught:
        Session.fastest(package, "openvino")
    assert "\n" not in str(caught.value)


def test_it_is_for_encoders(tmp_path: Path) -> None:
    model, signature = decoder.Model(decoder.TINY), decoder.signature(decoder.TINY)
    with pytest.raises(ExportError, match="encoders"):
        export_small(model, signature, tmp_path / "decoder", providers=("openvino",))
    with pytest.raises(ExportError, match="not for tpu"):
        export_small(model, signature, tmp_path / "decoder", providers=("tpu",))
