"""Layers on real tokens only: the same numbers as the canonical graph wherever the mask contract says something."""

import dataclasses
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isoformer.export import ExportError, attention_scale, packed, padding_free, taken_apart
from isoformer.export.graph import to_onnx
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.families import encoder
from isoformer.models.signature import Signature, TensorSpec

LONGEST = encoder.TINY.max_positions


def session(graph: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])


@cache
def exported(config: encoder.Config) -> ir.Model:
    torch.manual_seed(3)
    return to_onnx(encoder.Model(config).eval(), encoder.signature(config), 23)


def for_openvino(graph: ir.Model) -> list[str]:
    """The graph for batches with padding, as it is exported."""
    assert attention_scale.into_keys(graph)
    zero = packed.apply(graph)
    assert taken_apart.apply(graph)
    return zero


def both(scores: int = padding_free.SCORES, form=padding_free.apply, **changes) -> tuple:
    """Sessions of the canonical graph and the padding-free one, and the outputs that are 0 at padding."""
    graph = exported(dataclasses.replace(encoder.TINY, **changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding_free, "SCORES", scores)
        free = graph.clone()
        zero = form(free)
    return session(graph), session(free), zero


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple]:
    """The kinds of heads, and one graph whose attention is never whole, and from 2 tokens on the long kind."""
    odd = {"norm_order": "pre", "num_kv_heads": 1, "position_kind": "sinusoidal", "num_token_types": 0}
    return {
        "embed": both(),
        "packed": both(form=for_openvino),
        "long": both(scores=1),
        "cls": both(pooling="cls", position_rule="index"),
        "fill-mask": both(task="fill-mask"),
        "classify": both(task="classify", labels=("a", "b", "c"), position_rule="index"),
        "pre": both(**odd),
        "packed pre": both(form=for_openvino, **odd),
        "packed logits": both(form=for_openvino, task="fill-mask"),
    }


def feeds(mask: np.ndarray, edge: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(mask.size)
    arrays = {
        "input_ids": rng.integers(0, encoder.TINY.vocab_size, mask.shape),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {value.name: arrays[value.name] for value in edge.get_inputs()}


def held(pair: tuple, mask: np.ndarray) -> None:
    """Equal at real tokens and at the first of each row, 0 at other padding; every other output is equal whole."""
    canonical, free, zero = pair
    inputs = feeds(mask, canonical)
    names = [value.name for value in canonical.get_outputs()]
    assert [value.name for value in free.get_outputs()] == names
    shown = mask | (np.arange(mask.shape[1]) == 0)
    for name, want, found in zip(names, canonical.run(names, inputs), free.run(names, inputs), strict=True):
        if name in zero:
            assert not found[~shown].any()
            want, found = want[shown], found[shown]
        np.testing.assert_allclose(found, want, rtol=0, atol=2e-6 * max(1, np.abs(want).max()), err_msg=name)


KINDS = ["embed", "long", "cls", "fill-mask", "classify", "pre", "packed", "packed pre", "packed logits"]
MASKS = {
    "none": np.ones((3, 7), bool),
    "right": np.arange(7) < np.array([[7], [2], [5]]),
    "left": np.arange(7) >= np.array([[3], [0], [6]]),
    "holes": np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], bool),
    "a sample": np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], bool),
    "nothing": np.zeros((2, 5), bool),
    "one token": np.ones((1, 1), bool),
    "no token": np.zeros((1, 1), bool),
    "longest": np.arange(LONGEST) < np.array([[LONGEST], [1]]),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_canonical_graphs(pairs, kind, mask):
    held(pairs[kind], mask)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_rectangles_of_other_widths_and_more_tokens_than_are_rounded_up_to(rows):
    pair = both(form=for_openvino, max_positions=67)
    lengths = np.array([[67], [41], [19], [2], [0]])[:rows]
    mask = np.arange(67) < lengths
    for one in (mask, mask[:, ::-1], mask[::-1], mask & (np.arange(67) % 3 > 0)):
        held(pair, one)


@given(st.data())
def test_any_mask(pairs, data):
    batch, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 13))
    rows = st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch)
    mask = np.array(data.draw(rows), bool)
    for kind in ("embed", "long", "packed"):
        held(pairs[kind], mask)


def test_hidden_states_alone_are_zero_at_padding(pairs):
    assert {kind: pair[2] for kind, pair in pairs.items()} == {
        "embed": ["last_hidden_state"],
        "long": ["last_hidden_state"],
        "cls": ["last_hidden_state"],
        "fill-mask": ["logits"],
        "classify": [],
        "pre": ["last_hidden_state"],
        "packed": ["last_hidden_state"],
        "packed pre": ["last_hidden_state"],
        "packed logits": ["logits"],
    }


def test_long_sequences_take_the_operator_that_holds_no_scores():
    graph = to_onnx(encoder.Model(encoder.TINY), encoder.signature(encoder.TINY), 23)
    padding_free.apply(graph)
    kinds = [node.op_type for node in graph.graph.all_nodes()]
    assert kinds.count("MultiHeadAttention") == encoder.TINY.num_layers
    assert kinds.count("Loop") == encoder.TINY.num_layers


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": True},
        {"left_window": 2, "right_window": 2},
        {"mask_rank": 3, "position_rule": "index"},
        {"mask_inputs": ("segment_ids",)},
        {"output_attentions": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_attention_is_left_alone(changes):
    config = dataclasses.replace(encoder.TINY, **changes)
    graph = to_onnx(encoder.Model(config), encoder.signature(config), 23)
    for form in (padding_free.apply, packed.apply):
        with pytest.raises(ExportError, match="padding-free graphs are for"):
            form(graph.clone())


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(12, 3)

    def forward(self, x, memory, mask):
        return self.attention(x, memory, memory, mask)


def test_attention_between_two_sequences_is_left_alone():
    x, memory = (TensorSpec(name, "float32", ("batch_size", axis, 12)) for name, axis in (("x", "q"), ("memory", "k")))
    mask = TensorSpec("mask", "int64", ("batch_size", "k"), kind="mask")
    out = TensorSpec("out", "float32", ("batch_size", "q", 12))
    graph = to_onnx(Cross(), Signature((x, memory, mask), (out,)), 23)
    with pytest.raises(ExportError, match="padding-free graphs are for"):
        padding_free.apply(graph)
