"""Graphs in 8 bits with the same bits everywhere: nothing that a runtime may order as it likes changes one."""

import dataclasses
import functools
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from isoformer.export import ExportError, quantize, reproducible
from isoformer.export.graph import to_onnx
from isoformer.models.families import decoder, encoder
from isoformer.runtime import Session, load
from isoformer.runtime.package import MANIFEST
from isoformer.runtime.verify import verify
from tests.conftest import export_small

FLOAT = onnx.TensorProto.FLOAT
# No other axis of a weight is 52, so that the channels can be told.
HIDDEN = 52
LLAMA = dataclasses.replace(
    decoder.TINY,
    vocab_size=97,
    hidden_size=HIDDEN,
    head_dim=14,
    intermediate_size=88,
    max_positions=67,
    qk_norm=True,
    sliding_window=None,
    window_layers=(),
)
GPT = dataclasses.replace(
    LLAMA,
    num_kv_heads=None,
    qk_norm=False,
    norm_kind="layer",
    position_kind="learned",
    gated=False,
    activation="gelu_tanh",
    qkv_bias=True,
    out_bias=True,
    feed_forward_bias=True,
)
PARTLY = dataclasses.replace(LLAMA, qk_norm=False, rotary_dim=10, logit_softcap=9.0)
CONFIGS = {"llama": LLAMA, "gpt": GPT, "partly turned": PARTLY}


def model_of(config: decoder.Config) -> decoder.Model:
    torch.manual_seed(3)
    model = decoder.Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms' weights and biases among them
    return model


@functools.cache
def exported(config: decoder.Config) -> bytes:
    """The canonical graph, which takes most of a test's time."""
    return ir.to_proto(to_onnx(model_of(config), decoder.signature(config), 23)).SerializeToString()


def graph_of(config: decoder.Config, *, low: bool = True, shuffled: bool = False) -> ir.Model:
    """low: in 8 bits. shuffled: the same function with its channels in another order, and so every sum over them."""
    graph = ir.from_proto(onnx.ModelProto.FromString(exported(config)))
    order = np.random.default_rng(4).permutation(HIDDEN)
    for name, value in list(graph.graph.initializers.items()) if shuffled else ():
        array = value.const_value.numpy()  # pyright: ignore[reportOptionalMemberAccess]
        for axis, size in enumerate(array.shape):
            array = array.take(order, axis) if size == HIDDEN else array
        value.const_value = ir.tensor(array, name=name)
    if low:
        quantize.int8(graph)
    return graph


def feeds(config: decoder.Config, batch: int = 3, past: int = 11, length: int = 5) -> dict[str, np.ndarray]:
    """Padding in front of every row but the first; the last row has no key at all."""
    rng, heads = np.random.default_rng(1), config.num_kv_heads or config.num_heads
    mask = np.arange(past + length) >= np.array([[0], [7], [past + length]])[:batch]
    shape = (batch, heads, past, config.head_dim or 0)
    return {
        "input_ids": rng.integers(0, config.vocab_size, (batch, length)),
        "attention_mask": mask.astype(np.int64),
        "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0)[:, past:],
        "logits_positions": np.tile(np.arange(length), (batch, 1)),
    } | {
        f"past_key_values.{layer}.{kind}": rng.standard_normal(shape).astype(np.float32)
        for layer in range(config.num_layers)
        for kind in ("key", "value")
    }


def run(graph: ir.Model, given: dict[str, np.ndarray], *, optimized: bool = True, threads: int = 1) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options)
    names = {value.name for value in made.get_inputs()}
    return [np.asarray(x) for x in made.run(None, {name: array for name, array in given.items() if name in names})]


def equal(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(some, others, strict=True))


@pytest.fixture(scope="module", params=CONFIGS)
def config(request) -> decoder.Config:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def rewritten(config) -> ir.Model:
    graph = graph_of(config)
    assert reproducible.apply(graph, config.max_positions)
    return graph


# ------------------------------------------------------------------------------------------------- the bits


def test_the_order_of_channels_changes_no_bit(config, rewritten):
    other, given = graph_of(config, shuffled=True), feeds(config)
    before = run(graph_of(config), given), run(other, given)
    assert not equal(*before)  # as it does without the pass
    reproducible.apply(other, config.max_positions)
    assert equal(run(rewritten, given), run(other, given))


def test_the_order_of_keys_in_the_cache_changes_no_bit(config):
    """In float32, since a rounding to 8 bits may hide it; the products have the same order in both."""
    given, order = feeds(config, batch=1), np.random.default_rng(2).permutation(11)
    turned = {name: array[:, :, order] if name.startswith("past") else array for name, array in given.items()}
    graph = graph_of(config, low=False)
    assert not equal(run(graph, given)[:1], run(graph, turned)[:1])
    reproducible.rewrite(graph, config.max_positions)
    assert equal(run(graph, given)[:1], run(graph, turned)[:1])


def test_optimizers_threads_and_other_rows_change_no_bit(config, rewritten):
    given = feeds(config)
    found = run(rewritten, given)
    assert equal(found, run(rewritten, given, optimized=False))
    assert equal(found, run(rewritten, given, threads=2))
    alone = run(rewritten, {name: array[1:2] for name, array in given.items()})
    assert equal([array[1:2] for array in found], alone)


def test_a_token_at_a_time_gives_the_bits_of_all_at_once(config, rewritten):
    """Products of one row and of several have kernels of their own."""
    given = feeds(config, batch=1, past=0)
    at_once, steps, past = run(rewritten, given), [], [array for name, array in given.items() if "past" in name]
    for place in range(5):
        step = {name: given[name][:, place : place + 1] for name in ("input_ids", "position_ids")}
        step |= {"attention_mask": np.ones((1, place + 1), np.int64), "logits_positions": np.zeros((1, 1), np.int64)}
        logits, *past = run(rewritten, step | dict(zip([n for n in given if "past" in n], past, strict=True)))
        steps.append(logits)
    assert equal(at_once, [np.concatenate(steps, 1), *past])


@pytest.mark.parametrize("kind", ["RMSNormalization", "LayerNormalization"])
def test_a_norm_is_that_of_numpy_to_the_bit(kind):
    """Of which only the mean and the root are more than one rounding of float32."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 577), (577,)))
    model = one(kind, [x], {"weight": weight}, epsilon=1e-3)
    assert reproducible.apply(model, 1) == 1
    if kind == "LayerNormalization":
        x_centred = x - x.astype(np.float64).mean(-1, keepdims=True).astype(np.float32)
    else:
        x_centred = x
    root = np.sqrt((x_centred.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3).astype(np.float32)
    assert equal(run(model, {"x0": x}), [x_centred / root * weight])


def one(kind: str, inputs: list[np.ndarray], constants: dict[str, np.ndarray] | None = None, **attributes) -> ir.Model:
    """A graph of one operator."""
    names = [f"x{number}" for number in range(len(inputs))]
    made = helper.make_graph(
        [helper.make_node(kind, [*names, *(constants or {})], ["y"], **attributes)],
        "one",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.INT64 if x.dtype.kind == "i" else FLOAT, x.shape)
            for name, x in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


# ------------------------------------------------------------------------------------- what it computes


def test_it_computes_what_the_graph_computed(config):
    """In float32, where nothing is rounded to 8 bits; the row without keys among them."""
    given, graph = feeds(config), graph_of(config, low=False)
    wanted = run(graph, given)
    reproducible.rewrite(graph, config.max_positions)
    for found, exact in zip(run(graph, given), wanted, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("RMSNormalization", LLAMA),
        ("LayerNormalization", GPT),
        ("Sigmoid", LLAMA),
        ("Gelu", GPT),
        ("Tanh", PARTLY),
        ("RotaryEmbedding", LLAMA),
        ("Attention", LLAMA),
    ],
)
def test_one_operator_that_stays_in_float32_is_refused_by_name(kind, config, monkeypatch):
    class AllButOne(reproducible._Build):
        def __init__(self, graph, max_positions):
            super().__init__(graph, max_positions)
            del self.ways[kind]

    monkeypatch.setattr(reproducible, "_Build", AllButOne)
    with pytest.raises(ExportError, match=f"in the last bits of .*{kind}.* of float32; export without"):
        reproducible.apply(graph_of(config), config.max_positions)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (one("MatMul", [np.ones((3, 5)), np.ones((5, 7))]), "runtimes differ in the last bits of MatMul"),
        (one("Exp", [np.ones((3, 5))]), "runtimes differ in the last bits of Exp"),
        (one("RandomNormal", [], shape=[3, 5]), "runtimes differ in the last bits of RandomNormal"),
        (one("RandomNormalLike", [np.ones((3, 5), np.int64)], dtype=1), "in the last bits of RandomNormalLike"),
        (one("Gelu", [np.ones((3, 5))]), "no Gelu by erf in float64"),
        (one("RMSNormalization", [np.ones((3, 5)), np.ones(3)], axis=0), "norms along the last axis, not 0"),
        (one("Attention", [np.ones((1, 2, 3, 5))] * 3), "attention with a mask and a cache"),
        (one("RotaryEmbedding", [np.ones((1, 2, 3, 6))] * 3, interleaved=1), "rotary positions in pairs"),
    ],
    ids=["product", "exp", "random", "random of integers", "erf", "axis", "no cache", "pairs"],
)
def test_what_it_cannot_write_is_refused(model, said):
    with pytest.raises(ExportError, match=said):
        reproducible.apply(model, 1)


# ------------------------------------------------------------------------------------------------- the package


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("reproducible") / "made"
    return export_small(model_of(LLAMA), decoder.signature(LLAMA), path, precision="int8", reproducible=True)


def test_the_package_says_so_and_passes_its_checks(package):
    entry = package.variant("cpu-int8")
    assert entry["reproducible"] is True
    assert entry["cache"] == "plain"
    assert "| cpu-int8 | plain, reproducible |" in (package.path / "README.md").read_text()
    assert not {"RMSNormalization", "Attention", "com.microsoft::GroupQueryAttention"} & entry["operators"].keys()
    session = Session.fastest(package)
    assert session.variant == "cpu-int8"
    report = verify(package, session.run, "reproducible", seed=5, variant="cpu-int8")
    assert report.passed
    relations = [c for c in report.comparisons if c.check == "relation"]
    assert relations
    assert all(c.error == 0 for c in relations)  # rows alone and in a batch, in pieces and at once


def test_a_manifest_that_says_it_otherwise_is_refused(package):
    manifest = json.loads((package.path / MANIFEST).read_text())
    manifest["variants"]["cpu-int8"]["reproducible"] = "yes"
    (package.path / MANIFEST).rename(package.path / "kept")
    try:
        (package.path / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(Exception, match="reproducible"):
            load(package.path)
    finally:
        (package.path / "kept").rename(package.path / MANIFEST)


def test_it_is_for_decoders_in_8_bits(tmp_path):
    said = "--reproducible is for decoders with --precision int8"
    for precision in ("float32", "int4"):
        with pytest.raises(ExportError, match=said):
            export_small(
                model_of(LLAMA), decoder.signature(LLAMA), tmp_path / "x", precision=precision, reproducible=True
            )
    signature = encoder.signature(encoder.TINY)
    with pytest.raises(ExportError, match=said):
        export_small(encoder.Model(encoder.TINY), signature, tmp_path / "x", precision="int8", reproducible=True)
    assert not list(tmp_path.iterdir())
