"""Attention in ONNX, whole and taken apart: PyTorch's numbers, and exactly zero for a row without keys."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.export import ExportError, reference, translations
from isoformer.export.graph import to_onnx
from isoformer.models.attention import attend
from isoformer.models.signature import Signature, TensorSpec

Arrays = dict[str, np.ndarray]
BATCH, QUERIES, KEYS = "batch_size", "query_length", "key_length"
OPSETS = [20, 23]


@dataclass(frozen=True)
class Variant:
    """attend() of H query heads over K key heads of size 5 with values of size 7; mask and bias of MASKS and BIASES."""

    heads: int = 3
    kv_heads: int = 3
    mask: str | None = None
    scale: float | None = None
    bias: str | None = None


MASKS: dict[str, tuple[str | int, ...]] = {
    "mask_of_3_heads": (BATCH, 3, QUERIES, KEYS),
    "mask_of_6_heads": (BATCH, 6, QUERIES, KEYS),
    "mask_of_rows": (BATCH, 1, QUERIES, KEYS),
    "mask_of_keys": (BATCH, KEYS),
}
MASKED = {
    "every_head": Variant(mask="mask_of_3_heads"),
    "grouped": Variant(heads=6, mask="mask_of_6_heads"),
    "one_key_head": Variant(kv_heads=1, mask="mask_of_rows", scale=0.3),
    "key_padding": Variant(heads=6, mask="mask_of_keys", scale=1.0),
}
BIASES: dict[str, tuple[str | int, ...]] = {
    "bias_of_heads": (1, 3, QUERIES, KEYS),
    "bias_of_keys": (BATCH, 1, 1, KEYS),
    "bias_of_6_heads": (BATCH, 6, QUERIES, 1),
}
BIASED = {
    "additive": Variant(bias="bias_of_heads"),
    "additive_padding": Variant(heads=6, bias="bias_of_keys", scale=0.3),
    "additive_rows": Variant(heads=6, kv_heads=1, bias="bias_of_6_heads"),
    "mask_and_bias": Variant(mask="mask_of_rows", bias="bias_of_heads"),
}
VARIANTS = MASKED | BIASED | {"no_mask": Variant(), "no_mask_grouped": Variant(heads=6, kv_heads=1, scale=0.7)}


class Attends(nn.Module):
    """Every variant by its name, from inputs that they share."""

    def __init__(self, variants: dict[str, Variant]) -> None:
        super().__init__()
        self.variants = variants

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {
            name: attend(
                inputs[f"query_{v.heads}"],
                inputs[f"key_{v.kv_heads}"],
                inputs[f"value_{v.kv_heads}"],
                inputs[v.mask] if v.mask else None,
                scale=v.scale,
                bias=inputs[v.bias] if v.bias else None,
            )
            for name, v in self.variants.items()
        }


def signature(variants: dict[str, Variant]) -> Signature:
    heads, kv_heads = ({getattr(v, name) for v in variants.values()} for name in ("heads", "kv_heads"))
    return Signature(
        (
            *(TensorSpec(f"query_{h}", "float32", (BATCH, h, QUERIES, 5)) for h in sorted(heads)),
            *(TensorSpec(f"key_{k}", "float32", (BATCH, k, KEYS, 5)) for k in sorted(kv_heads)),
            *(TensorSpec(f"value_{k}", "float32", (BATCH, k, KEYS, 7)) for k in sorted(kv_heads)),
            *(
                TensorSpec(n, "bool", a, kind="mask")
                for n, a in MASKS.items()
                if n in {v.mask for v in variants.values()}
            ),
            *(TensorSpec(n, "float32", a) for n, a in BIASES.items() if n in {v.bias for v in variants.values()}),
        ),
        tuple(TensorSpec(name, "float32", (BATCH, v.heads, QUERIES, 7)) for name, v in variants.items()),
    )


@dataclass(frozen=True)
class Exported:
    """The graph, and the two runtimes that run it."""

    graph: ir.Model
    opset: int
    runtimes: dict[str, Callable[[Arrays], Arrays]]


def export(variants: dict[str, Variant], opset: int, folder: Path) -> Exported:
    graph = to_onnx(Attends(variants), signature(variants), opset)
    ir.save(graph, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(variants, map(np.asarray, session.run(list(variants), inputs)), strict=True))

    return Exported(graph, opset, {"onnxruntime": run, "reference": reference.runner(folder / "model.onnx")})


@pytest.fixture(scope="module", params=OPSETS, ids=lambda opset: f"opset {opset}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(VARIANTS, request.param, tmp_path_factory.mktemp("attend"))


def draw(batch: int = 2, queries: int = 5, keys: int = 11, variants: dict[str, Variant] = VARIANTS) -> Arrays:
    """Random inputs; each mask leaves the last sequence without keys, and of the first one row, where it can."""
    rng = np.random.default_rng([batch, queries, keys])
    sizes = {BATCH: batch, QUERIES: queries, KEYS: keys}
    inputs: Arrays = {}
    for spec in signature(variants).inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        if spec.kind == "mask":
            inputs[spec.name] = inputs[spec.name] < 0.3
            inputs[spec.name][0, ..., 0] = True
            inputs[spec.name][-1] = False
            if len(shape) == 4:
                inputs[spec.name][0, -1, -1] = False
        if spec.name in BIASES:
            inputs[spec.name][rng.random(shape) < 0.4] = -np.inf
            inputs[spec.name][0, ..., 0] = 0.5
            inputs[spec.name][-1, -1, -1] = -np.inf
    return inputs


def module(inputs: Arrays, variants: dict[str, Variant] = VARIANTS) -> Arrays:
    """PyTorch in float64."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    return {name: out.numpy() for name, out in Attends(variants)(**tensors).items()}


def empty_rows(name: str, inputs: Arrays) -> np.ndarray:
    """(B, H, Lq) of the variant's output, True for a row without any key."""
    variant = VARIANTS[name]
    shape = (*inputs[f"query_{variant.heads}"].shape[:3], inputs["key_1"].shape[2])
    seen = np.ones(shape, bool)
    if variant.mask:
        mask = inputs[variant.mask]
        seen = seen & (mask if mask.ndim == 4 else mask[:, None, None, :])
    if variant.bias:
        seen = seen & (inputs[variant.bias] > -np.inf)
    return np.logical_not(seen.any(-1))


SIZES = [(2, 5, 11), (1, 1, 1), (3, 7, 2), (1, 13, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_numbers_are_pytorchs(exported: Exported, sizes: tuple[int, int, int]) -> None:
    inputs = draw(*sizes)
    wanted = module(inputs)
    for run in exported.runtimes.values():
        found = run(inputs)
        assert list(found) == list(VARIANTS)
        for name, value in found.items():
            assert (value.dtype, value.shape) == (np.float32, wanted[name].shape)
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", MASKED | BIASED)
def test_row_without_keys_is_exactly_zero(exported: Exported, name: str, sizes: tuple[int, int, int]) -> None:
    inputs = draw(*sizes)
    empty = empty_rows(name, inputs)
    assert empty.any()
    assert name in BIASED or empty.all() == (sizes[0] == 1)
    for run in exported.runtimes.values():
        value = run(inputs)[name]
        assert not value[empty].any()
        assert value[~empty].all()


def test_everything_masked_is_zero_everywhere(exported: Exported) -> None:
    inputs = draw()
    inputs |= {name: np.zeros_like(inputs[name]) for name in MASKS}
    inputs |= {name: np.full_like(inputs[name], -np.inf) for name in BIASES}
    for run in exported.runtimes.values():
        outputs = run(inputs)
        assert not any(outputs[name].any() for name in MASKED | BIASED)


def test_what_stands_under_the_mask_does_not_matter(exported: Exported) -> None:
    """Not even numbers so large that they would swallow the others."""
    inputs = draw()
    for name in MASKS:
        inputs[name][..., 3] = False
    wanted = exported.runtimes["onnxruntime"](inputs)
    for name in inputs:
        if name.startswith(("key_", "value_")):
            inputs[name][:, :, 3] = 1e4 if name.startswith("key_") else -1e30
    found = exported.runtimes["onnxruntime"](inputs)
    for name in MASKED:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_what_minus_infinity_leaves_out_does_not_matter(exported: Exported) -> None:
    inputs = draw()
    for name in ("bias_of_heads", "bias_of_keys"):
        inputs[name][..., 3] = -np.inf
    wanted = exported.runtimes["onnxruntime"](inputs)
    for name in inputs:
        if name.startswith(("key_", "value_")):
            inputs[name][:, :, 3] = 1e4 if name.startswith("key_") else -1e30
    found = exported.runtimes["onnxruntime"](inputs)
    for name in ("additive", "additive_padding", "mask_and_bias"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_bias_of_zero_and_minus_infinity_is_the_mask(exported: Exported) -> None:
    inputs = draw()
    kept = np.ones_like(inputs["mask_of_rows"])
    visible = inputs["bias_of_heads"] > -np.inf
    inputs |= {"bias_of_heads": np.where(visible, np.float32(0), np.float32(-np.inf)), "mask_of_rows": kept}
    inputs["mask_of_3_heads"] = np.broadcast_to(visible, inputs["mask_of_3_heads"].shape).copy()
    for run in exported.runtimes.values():
        outputs = run(inputs)
        for name in ("additive", "mask_and_bias"):
            np.testing.assert_allclose(outputs[name], outputs["every_head"], rtol=0, atol=1e-6)


def test_one_key_gives_its_value(exported: Exported) -> None:
    """A closed form: whoever sees one key alone answers with its value."""
    inputs = draw()
    for name in MASKS:
        inputs[name][:] = False
        inputs[name][..., 3] = True
    for run in exported.runtimes.values():
        outputs = run(inputs)
        for name, variant in MASKED.items():
            value = inputs[f"value_{variant.kv_heads}"][:, :, 3:4]
            wanted = np.repeat(value, variant.heads // variant.kv_heads, axis=1)
            np.testing.assert_allclose(outputs[name], np.broadcast_to(wanted, outputs[name].shape), rtol=1e-6)


def test_equal_keys_give_the_mean_of_the_values(exported: Exported) -> None:
    """A closed form: scores that are all equal weigh what takes part equally."""
    inputs = draw()
    inputs |= {name: np.ones_like(value) for name, value in inputs.items() if name.startswith("key_")}
    for run in exported.runtimes.values():
        outputs = run(inputs)
        kept = inputs["mask_of_3_heads"][:, :, :, :, None]  # (B, H, Lq, Lk, 1)
        total = (kept * inputs["value_3"][:, :, None]).sum(3)
        np.testing.assert_allclose(outputs["every_head"], total / np.maximum(kept.sum(3), 1), rtol=0, atol=1e-6)
        mean = inputs["value_3"].mean(2, keepdims=True)
        np.testing.assert_allclose(outputs["no_mask"], np.broadcast_to(mean, (2, 3, 5, 7)), rtol=0, atol=1e-6)


def test_operators(exported: Exported) -> None:
    nodes = list(exported.graph.graph)
    kinds = [node.op_type for node in nodes]
    whole = exported.opset >= 23
    assert kinds.count("Attention") == (len(VARIANTS) if whole else 0)
    assert kinds.count("Softmax") == (0 if whole else len(VARIANTS))
    assert {node.domain for node in nodes} == {""}
    assert exported.graph.opset_imports[""] == exported.opset


def test_scale_is_only_written_where_it_is_given(exported: Exported) -> None:
    if exported.opset >= 23:
        scales = [n.attributes.get("scale") for n in exported.graph.graph if n.op_type == "Attention"]
        assert [scale and round(scale.as_float(), 6) for scale in scales] == [v.scale for v in VARIANTS.values()]
    else:  # the queries are multiplied, once for each scale; by 1 they are not
        scaled = {(v.heads, v.scale) for v in VARIANTS.values() if v.scale != 1}
        assert [n.op_type for n in exported.graph.graph].count("Mul") == len(scaled)


@pytest.mark.parametrize("opset", OPSETS)
def test_scales_that_are_not_positive(opset: int, tmp_path: Path) -> None:
    """Zero weighs every key alike, and a negative scale turns the order round; neither is the default."""
    variants = {"zero": Variant(mask="mask_of_rows", scale=0.0), "negative": Variant(mask="mask_of_rows", scale=-0.7)}
    inputs = draw(variants=variants)
    found = export(variants, opset, tmp_path).runtimes["onnxruntime"](inputs)
    for name, wanted in module(inputs, variants).items():
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("options", "words"),
    [({"is_causal": True}, r"pass masks\.causal"), ({"dropout_p": 0.25}, "put the model in eval mode")],
    ids=["causal", "dropout"],
)
def test_what_cannot_be_exported(opset: int, options: dict, words: str) -> None:
    translate = translations.table(opset)[translations.SDPA]
    with pytest.raises(ValueError, match=words):
        translate(None, None, None, **options)


class Causal(nn.Module):
    """PyTorch's own function with its own causality."""

    def forward(self, query_3: Tensor, key_3: Tensor, value_3: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query_3, key_3, value_3, is_causal=True)


def test_what_cannot_be_exported_is_said_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"pass masks\.causal") as caught:
        to_onnx(Causal(), signature({"out": Variant()}), 23)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [19, 26])
def test_opsets_out_of_range(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not supported; it goes from 20 to 25"):
        to_onnx(Attends(VARIANTS), signature(VARIANTS), opset)


def test_table() -> None:
    tables = {opset: translations.table(opset) for opset in (20, 22, 23, 25)}
    assert all(list(table) == [translations.SDPA] for table in tables.values())
    assert tables[20] == tables[22]
    assert tables[23] == tables[25]
    assert tables[22] != tables[23]
