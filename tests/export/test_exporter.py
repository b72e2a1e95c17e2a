"""export(): what it writes, what it refuses, and that nothing half-written is left behind."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from isoformer.export import ExportError, checks, export, exporter, translations
from isoformer.export.graph import to_onnx
from isoformer.models.families import encoder
from isoformer.models.signature import Axis, Signature, TensorSpec
from isoformer.runtime import InputError, Session, load
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from tests.conftest import export_small

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch_size", "length", 3)),),
    outputs=(TensorSpec("y", "float32", ("batch_size", "length", 5)),),
)


class Linear(nn.Module):
    """The least that fits SIGNATURE."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x):
        return self.linear(x)


def tiny(**changes):
    config = dataclasses.replace(encoder.TINY, **changes)
    return encoder.Model(config), encoder.signature(config), config


class TestGraph:
    @pytest.fixture
    def graph(self, tiny_package) -> onnx.GraphProto:
        return onnx.load(tiny_package / "model.onnx").graph

    def test_one_attention_a_layer_on_three_axes_behind_one_product(self, graph):
        makers = {name: node for node in graph.node for name in node.output}
        nodes = [node for node in graph.node if node.op_type == "Attention"]
        assert len(nodes) == encoder.TINY.num_layers
        for node in nodes:
            attributes = {a.name: a.i for a in node.attribute if a.name.endswith("heads")}
            assert attributes == {"q_num_heads": 3, "kv_num_heads": 3}
            sources = {id(makers[name]) for name in node.input[:3]}
            assert len(sources) == 1
            assert makers[node.input[0]].op_type == "Split"
        assert not any(node.op_type in ("Transpose", "Softmax") for node in graph.node)

    def test_axes_are_open_and_named(self, graph):
        for value in graph.input:
            names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            assert names == ["batch_size", "sequence_length"]

    def test_no_trace_of_the_machine(self, tiny_package):
        content = (tiny_package / "model.onnx").read_bytes() + (tiny_package / "isoformer.json").read_bytes()
        assert str(exporter.__file__).encode() not in content
        assert b"site-packages" not in content

    def test_a_tied_decoder_is_stored_once(self, tmp_path):
        model, signature, config = tiny(task="fill-mask", vocab_size=307)
        package = export_small(model, signature, tmp_path / "out", task=encoder.task(config))
        graph = onnx.load(package.model).graph
        shapes = [sorted(t.dims) for t in graph.initializer]
        assert shapes.count([33, 307]) == 1

    def test_external_data(self, tmp_path):
        model, signature, _ = tiny()
        package = export_small(model, signature, tmp_path / "out", external_data_bytes=1000)
        assert {"model.onnx", "model.onnx_data"} <= package.manifest["files"].keys()
        assert package.model.stat().st_size < (package.path / "model.onnx_data").stat().st_size
        ids = np.array([[3, 5, 7]])
        with torch.no_grad():
            expected = model(
                torch.from_numpy(ids), torch.ones(1, 3, dtype=torch.int64), torch.zeros_like(torch.tensor(ids))
            )
        out = Session(load(package.path)).run({"input_ids": ids})
        np.testing.assert_allclose(out["last_hidden_state"], expected["last_hidden_state"], atol=1e-5)

    def test_the_model_keeps_its_mode(self, tmp_path):
        model, signature, _ = tiny(dropout=0.5)
        model.train()
        export_small(model, signature, tmp_path / "out")
        assert model.training


class TestRefusals:
    @pytest.mark.parametrize("opset", [19, 26])
    def test_opsets_out_of_range(self, tmp_path, opset):
        with pytest.raises(ExportError, match=str(opset)):
            export(Linear(), SIGNATURE, tmp_path / "out", opset=opset)

    def test_an_axis_that_is_not_open(self, tmp_path):
        class Fixed(nn.Module):
            def forward(self, x):
                return x.reshape(2, -1, 3).new_ones(2, x.shape[1], 5) + x.sum()

        with pytest.raises(ExportError):
            export(Fixed(), SIGNATURE, tmp_path / "out")

    def test_outputs_that_the_signature_does_not_have(self, tmp_path):
        class Named(nn.Module):
            def forward(self, x):
                return {"z": x}

        with pytest.raises(ExportError, match="z"):
            export(Named(), SIGNATURE, tmp_path / "out")

    def test_a_graph_that_computes_something_else(self, tmp_path, monkeypatch):
        """A translation with another scale passes every check of the form and fails the numbers."""
        right = translations.table(23)[translations.SDPA]
        wrong = {translations.SDPA: lambda q, k, v, m=None, *_, **__: right(q, k, v, m, scale=0.3)}
        monkeypatch.setattr(translations, "table", lambda _opset: wrong)
        model, signature, _ = tiny()
        with pytest.raises(ExportError, match="does not compute the same"):
            export_small(model, signature, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_a_model_of_nan(self, tmp_path):
        model, signature, _ = tiny()
        with torch.no_grad():
            model.embeddings.norm.weight[0] = float("nan")
        with pytest.raises(ExportError, match="NaN"):
            export_small(model, signature, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_an_interrupted_export_leaves_nothing(self, tmp_path):
        def interrupt(stage, _done, _total):
            if stage == "parity":
                raise KeyboardInterrupt

        model, signature, _ = tiny()
        with pytest.raises(KeyboardInterrupt):
            export_small(model, signature, tmp_path / "deep/out", progress=interrupt)
        assert not list((tmp_path / "deep").iterdir())

    def test_a_folder_that_appeared_meanwhile_is_kept(self, tmp_path):
        def intrude(stage, done, _total):
            if (stage, done) == ("parity", 0):
                (tmp_path / "out").mkdir()
                (tmp_path / "out/letter").write_text("dear")

        model, signature, _ = tiny()
        with pytest.raises(ExportError, match="not a package"):
            export_small(model, signature, tmp_path / "out", progress=intrude)
        assert (tmp_path / "out/letter").read_text() == "dear"


def test_axes_with_a_least_size_of_their_own(tmp_path):
    signature = dataclasses.replace(SIGNATURE, axes={"length": Axis(min=3, max=17)})
    package = export(Linear(), signature, tmp_path / "out")
    lengths = {case.rpartition("x")[2] for case in package.manifest["grid"]}
    assert max(map(int, lengths)) == 17
    with pytest.raises(ValueError, match="least is 3"):
        Session(package).run({"x": np.zeros((1, 2, 3), np.float32)})


class TestSums:
    """Axes that are sums: past and new positions, and all of them."""

    PAST, NEW, TOTAL = "past_length", "length", "total_length"

    def signature(self, *, mask: bool = True, parts: tuple[str, ...] = (PAST, NEW), axis: str = TOTAL) -> Signature:
        inputs = [
            TensorSpec("x", "float32", ("batch_size", self.NEW, 3)),
            TensorSpec("past", "float32", ("batch_size", self.PAST, 3)),
        ]
        if mask:
            inputs.append(TensorSpec("mask", "int64", ("batch_size", self.TOTAL), kind="mask"))
        output = TensorSpec("present", "float32", ("batch_size", axis, 3))
        axes = {self.PAST: Axis(0), self.TOTAL: Axis(sum_of=parts)}
        return Signature(tuple(inputs), (output,), axes=axes)

    @staticmethod
    def module(function) -> nn.Module:
        class Present(nn.Module):
            def forward(self, x, past, mask=None):
                return function(x, past, mask)

        return Present()

    def edge(self, signature: Signature, function) -> list[list]:
        graph = to_onnx(self.module(function), signature, 23)
        assert checks.axes(graph, signature) == []
        return [
            [size if isinstance(size, int) else size.value for size in value.shape or ()]
            for value in (*graph.graph.inputs, *graph.graph.outputs)
        ]

    @pytest.mark.parametrize("mask", [True, False])
    def test_names_at_the_edge_are_the_signatures(self, mask):
        signature = self.signature(mask=mask)
        axes = self.edge(signature, lambda x, past, _mask: torch.cat([past, x], 1))
        assert axes == [list(spec.axes) for spec in (*signature.inputs, *signature.outputs)]

    def test_a_sum_that_comes_from_the_mask_alone_has_its_name_too(self):
        axes = self.edge(self.signature(), lambda _x, _past, mask: mask[..., None].float().expand(-1, -1, 3) * 2)
        assert axes[-1] == ["batch_size", self.TOTAL, 3]

    def test_an_output_that_is_another_length_is_not_given_the_name(self):
        """A position is lost, the new ones stand twice, or only one part is there."""

        def function(x, past, _mask):
            lost, twice = torch.cat([past[:, 1:], x], 1), torch.cat([past, x, x], 1)
            return {"present": torch.cat([past, x], 1), "lost": lost, "twice": twice, "old": past * 2, "new": x * 2}

        plain = self.signature()
        names = ("present", "lost", "twice", "old", "new")
        outputs = tuple(TensorSpec(name, "float32", plain.outputs[0].axes) for name in names)
        signature = dataclasses.replace(plain, outputs=outputs)
        findings = checks.axes(to_onnx(self.module(function), signature, 23), signature)
        assert [finding.split()[1] for finding in findings] == ["lost", "twice", "old", "new"]
        assert all(f.endswith(f"the signature says ['batch_size', '{self.TOTAL}', 3]") for f in findings)

    def test_a_sum_of_others_than_the_model_adds_is_refused(self):
        """The model adds the mask to past and new together; the signature says past and past."""
        model = self.module(lambda x, past, mask: torch.cat([past, x], 1) * mask[..., None])
        with pytest.raises(ExportError, match="an axis of the signature is not free in the model") as caught:
            to_onnx(model, self.signature(parts=(self.PAST, self.PAST)), 23)
        assert "\n" not in str(caught.value)

    def test_a_model_that_asks_for_another_sum_is_refused(self):
        model = self.module(lambda x, past, mask: torch.cat([past, x, x], 1) * mask[..., None])
        with pytest.raises(ExportError, match="an axis of the signature is not free in the model"):
            to_onnx(model, self.signature(), 23)

    def test_the_graph_runs_with_any_past(self, tmp_path):
        graph = to_onnx(
            self.module(lambda x, past, mask: torch.cat([past, x], 1) * mask[..., None]), self.signature(), 23
        )
        ir.save(graph, tmp_path / "model.onnx")
        session = Session(Package(tmp_path, {}, RuntimeSignature.read(self.signature().to_dict())))
        for past in (0, 1, 5):
            x, cached = np.full((2, 3, 3), 2, np.float32), np.ones((2, past, 3), np.float32)
            inputs = {"x": x, "past": cached, "mask": np.ones((2, past + 3), np.int64)}
            np.testing.assert_array_equal(session.run(inputs)["present"], np.concatenate([cached, x], 1))
            words = f"total_length is {past + 2}; past_length {past} \\+ length 3 is {past + 3}"
            with pytest.raises(InputError, match=words):
                session.run(inputs | {"mask": np.ones((2, past + 2), np.int64)})


def test_the_manifest_is_plain_json(tiny_package):
    manifest = json.loads((tiny_package / "isoformer.json").read_text(), parse_constant=pytest.fail)
    assert manifest["schema"] == 1
    assert manifest["mask_contract"] == 1
    assert manifest["operators"]["Attention"] == 2
    assert all(entry["factor"] == 4 for entry in manifest["tolerances"].values())
