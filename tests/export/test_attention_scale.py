"""Attention's scale in the weights of its keys: the same answers, the canonical weights, and what is left alone."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from isoformer.export import attention_scale
from isoformer.export.graph import to_onnx
from isoformer.models.families import decoder, encoder


@cache
def exported(config: encoder.Config) -> ir.Model:
    torch.manual_seed(5)
    return to_onnx(encoder.Model(config).eval(), encoder.signature(config), 23)


def graph_of(**changes) -> ir.Model:
    return exported(dataclasses.replace(encoder.TINY, **changes)).clone()


def answers(graph: ir.Model) -> Any:
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    mask = np.arange(7) < np.array([[7], [3], [0]])
    inputs = {"attention_mask": mask.astype(np.int64), "input_ids": rng.integers(0, 97, mask.shape)}
    inputs["token_type_ids"] = rng.integers(0, 2, mask.shape)
    return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})


def attention(graph: ir.Model) -> list[ir.Node]:
    return [node for node in graph.graph if node.op_type == "Attention"]


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1, "norm_order": "pre"}], ids=["post", "grouped"])
def test_the_answers_stay_and_the_weights_too(changes):
    graph = graph_of(**changes)
    before, weights = answers(graph), dict(graph.graph.initializers)
    assert attention_scale.into_keys(graph) == len(attention(graph)) > 0
    assert [node.attributes["scale"].as_float() for node in attention(graph)] == [1.0] * len(attention(graph))
    for name, value in weights.items():
        assert graph.graph.initializers[name] is value
    for one, other in zip(before, answers(graph), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * max(1, np.abs(one).max()))


def test_keys_that_something_else_reads_are_left_alone():
    graph = graph_of()
    node = attention(graph)[0]
    whole: Any = node.inputs[1].producer().inputs[0]  # pyright: ignore[reportOptionalMemberAccess]
    extra = ir.node("Identity", [whole])
    extra.outputs[0].name, extra.outputs[0].type, extra.outputs[0].shape = "extra", whole.type, whole.shape
    graph.graph.append(extra)
    graph.graph.outputs.append(extra.outputs[0])
    before = answers(graph)
    assert attention_scale.into_keys(graph) == len(attention(graph)) - 1
    for one, other in zip(before, answers(graph), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * max(1, np.abs(one).max()))


# ----------------------------------------------------------------------------------------------- queries


def steps_of(graph: ir.Model) -> Any:
    """The logits at every place of two rows, behind a cache of 3 tokens, and what is held then."""
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    inputs = {
        "input_ids": rng.integers(0, 101, (2, 5)),
        "attention_mask": np.array([[1] * 8, [0] * 2 + [1] * 6]),
        "position_ids": np.arange(3, 8) - np.array([[0], [2]]),
        "logits_positions": np.tile(np.arange(5), (2, 1)),
    }
    for value in session.get_inputs()[4:]:
        inputs[value.name] = rng.standard_normal((2, value.shape[1], 3, value.shape[3])).astype(np.float32)
    return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})


CHANGES = {
    "rotary": {},
    "partly": {"rotary_dim": 4},
    "normed": {"qk_norm": True},
    "biased": {"qkv_bias": True, "num_kv_heads": None},
    "learned": {"position_kind": "learned", "norm_kind": "layer", "gated": False, "qkv_bias": True},
    "scaled": {"scale": 0.3},
}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_scale_goes_into_queries_of_every_kind(changes, folded):
    config = dataclasses.replace(decoder.TINY, **changes)
    torch.manual_seed(3)
    graph = to_onnx(decoder.Model(config).eval(), decoder.signature(config), 23)
    before, weights = steps_of(graph), dict(graph.graph.initializers)
    assert attention_scale.into_queries(graph, folded=folded) == config.num_layers
    assert [node.attributes["scale"].as_float() for node in attention(graph)] == [1.0] * config.num_layers
    for name, value in weights.items():
        assert graph.graph.initializers[name] is value
    products = [node for node in graph.graph if node.op_type == "Mul" and str(node.name).startswith("query_scale")]
    assert bool(products) == (not folded)
    for one, other in zip(before, steps_of(graph), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=4e-6 * max(1, np.abs(one).max()))
