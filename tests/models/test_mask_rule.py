from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoformer.models import masks
from isoformer.models.mask_rule import INPUTS, MaskRule

B, H, LQ, LK = 3, 2, 4, 7
SUBSETS = [names for count in range(len(INPUTS) + 1) for names in combinations(INPUTS, count)]
ORDERS = [
    {"causal": True},
    {"causal": True, "left_window": 2},
    {"causal": True, "right_window": 1},
    {"left_window": 3, "right_window": 1},
    {"right_window": 0},
    {},
]


def given_inputs(rank: int = 2, query_length: int = LQ, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    shape = {2: (B, LK), 3: (B, query_length, LK), 4: (B, H, query_length, LK)}[rank]
    return {
        "attention_mask": integers(2, *shape),
        "sequence_lengths": integers(LK + 1, B),
        "segment_ids": integers(3, B, LK),
        "prefix_lengths": integers(LK + 1, B),
    }


def one_by_one(rule: MaskRule, inputs: dict[str, Tensor], query_length: int = LQ) -> Tensor:
    """(B, H, Lq, Lk), each pair by itself from what the inputs mean."""
    values = {name: inputs[name].tolist() for name in rule.inputs}
    seen = torch.ones(B, H, query_length, LK, dtype=torch.bool)
    for b, h, i, j in product(range(B), range(H), range(query_length), range(LK)):
        at = i + LK - query_length
        taken = True
        if "attention_mask" in values:
            row = values["attention_mask"][b]
            row = row if rule.rank == 2 else row[i] if rule.rank == 3 else row[h][i]
            taken = row[j] == 1
        if "sequence_lengths" in values:
            taken = taken and j < values["sequence_lengths"][b]
        if "segment_ids" in values:
            own = values["segment_ids"][b]
            taken = taken and own[j] == own[at] != 0
        if rule.causal:
            prefix = values["prefix_lengths"][b] if "prefix_lengths" in values else 0
            taken = taken and (j <= at or j < prefix)
        behind = at - j
        if "attention_mask" in values and rule.rank == 2:  # windows count tokens
            tokens = [max(0, sum(values["attention_mask"][b][: k + 1]) - 1) for k in range(LK)]
            behind = tokens[at] - tokens[j]
        if rule.left_window is not None:
            taken = taken and behind <= rule.left_window
        if rule.right_window is not None:
            taken = taken and -behind <= rule.right_window
        seen[b, h, i, j] = taken
    return seen


def built(rule: MaskRule, inputs: dict[str, Tensor], query_length: int = LQ, **options: Any) -> Tensor:
    mask = rule.build(inputs, query_length, LK, batch=len(next(iter(inputs.values()), range(B))), **options)
    assert mask is not None
    assert mask.dtype == torch.bool
    return masks.normalize(mask, B, H, query_length, LK).expand(B, H, query_length, LK)


# build


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_every_set_of_inputs_is_the_and_of_what_each_says(rank, order):
    for names in SUBSETS:
        if "prefix_lengths" in names and not order.get("causal"):
            continue
        rule = MaskRule(names, rank, H, **order)
        for query_length in (LQ, LK, 1):
            inputs = given_inputs(rank, query_length)
            if not names and not order:
                assert rule.build(inputs, query_length, LK, batch=B) is None
                continue
            assert torch.equal(built(rule, inputs, query_length), one_by_one(rule, inputs, query_length)), names


@settings(max_examples=30, deadline=None)
@given(
    names=st.sampled_from(SUBSETS),
    rank=st.sampled_from([2, 3, 4]),
    left=st.none() | st.integers(0, LK),
    right=st.none() | st.integers(0, LK),
    query_length=st.integers(1, LK),
    seed=st.integers(0, 99),
)
def test_any_rule_over_any_inputs(names, rank, left, right, query_length, seed):
    rule = MaskRule(names, rank, H, causal=True, left_window=left, right_window=right)
    inputs = given_inputs(rank, query_length, seed)
    assert torch.equal(built(rule, inputs, query_length), one_by_one(rule, inputs, query_length))


def test_what_the_rule_does_not_name_is_not_read():
    inputs = given_inputs()
    only = MaskRule(("sequence_lengths",))
    assert torch.equal(built(only, inputs), built(only, {"sequence_lengths": inputs["sequence_lengths"]}))


def test_the_order_of_the_names_means_nothing():
    inputs = given_inputs()
    assert torch.equal(built(MaskRule(INPUTS, causal=True), inputs), built(MaskRule(INPUTS[::-1], causal=True), inputs))


def test_names_stand_behind_a_prefix():
    inputs = given_inputs()
    behind = {f"encoder_{name}": value for name, value in inputs.items()}
    rule = MaskRule(("attention_mask", "sequence_lengths"))
    assert torch.equal(built(rule, behind, prefix="encoder_"), built(rule, inputs))
    with pytest.raises(ValueError, match="built from encoder_attention_mask, which is not given"):
        rule.build(inputs, LQ, LK, batch=B, prefix="encoder_")


def test_an_empty_prefix_is_causal_and_a_whole_one_hides_nothing():
    rule = MaskRule(("prefix_lengths",), causal=True)
    mask = built(rule, {"prefix_lengths": torch.tensor([0, LK, 0])})
    assert torch.equal(mask[:1], masks.causal(LQ, LK).expand(1, H, LQ, LK))
    assert mask[1].all()


def test_a_prefix_does_not_open_what_else_is_masked():
    rule = MaskRule(("attention_mask", "prefix_lengths"), causal=True, left_window=1)
    mask = built(rule, {"attention_mask": torch.zeros(B, LK).long(), "prefix_lengths": torch.full((B,), LK)})
    assert not mask.any()
    window = built(rule, {"attention_mask": torch.ones(B, LK).long(), "prefix_lengths": torch.full((B,), LK)})
    assert torch.equal(window[:1, :1], masks.sliding_window(LQ, LK, 1, None))


def test_padding_tokens_of_a_packed_row_see_nothing_and_are_not_seen():
    rule = MaskRule(("segment_ids",))
    numbers = torch.tensor([[1, 1, 2, 0, 2, 0, 0]]).expand(B, LK)
    mask = built(rule, {"segment_ids": numbers}, LK)[0, 0]
    assert torch.equal(mask, mask.T)
    assert not mask[numbers[0] == 0].any()
    assert mask[2].tolist() == [False, False, True, False, True, False, False]


@pytest.mark.parametrize(("rank", "shape"), [(2, (B, LQ, LK)), (3, (B, LK)), (3, (B, 1, LQ, LK)), (4, (B, LQ, LK))])
@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_of_another_rank_is_refused_and_not_read_as_something_else(rank, shape, causal):
    """(B, Lq, Lk) beside a causal mask (1, 1, Lq, Lk) would be B heads."""
    with pytest.raises(ValueError, match="attention_mask has shape") as error:
        MaskRule(rank=rank, causal=causal).build({"attention_mask": torch.ones(shape)}, LQ, LK, batch=B)
    wanted = {2: (B, LK), 3: (B, LQ, LK), 4: (B, 1, LQ, LK)}[rank]
    assert f"{shape}; it is {wanted} here" in str(error.value)


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match="other than 0 and 1"):
        MaskRule().build({"attention_mask": torch.tensor([[0.0, -1e4]])}, 2, 2, batch=1)


def test_rows_stand_where_the_keys_end_also_behind_a_cache():
    """Chunks of a sequence have the rows of the whole."""
    rule = MaskRule(("segment_ids", "sequence_lengths"), causal=True, left_window=2)
    inputs = given_inputs()
    whole = built(rule, inputs, LK)
    for first in range(LK):
        assert torch.equal(built(rule, inputs, LK - first), whole[:, :, first:])


# specs


@pytest.mark.parametrize(
    ("rank", "axes"),
    [(2, ("b", "keys")), (3, ("b", "queries", "keys")), (4, ("b", 5, "queries", "keys"))],
)
def test_the_inputs_as_a_signature_lists_them(rank, axes):
    specs = MaskRule(INPUTS, rank, 5, causal=True).specs("queries", "keys", prefix="p_", batch="b")
    assert [spec.name for spec in specs] == [f"p_{name}" for name in INPUTS]
    assert {spec.dtype for spec in specs} == {"int64"}
    mask, lengths, segments, prefix = specs
    assert (mask.kind, mask.axes, mask.default) == ("mask", axes, 1)
    assert (lengths.kind, lengths.axes, lengths.along, lengths.default) == ("lengths", ("b",), "keys", None)
    assert (segments.kind, segments.axes, segments.default) == ("segments", ("b", "keys"), 1)
    assert (prefix.kind, prefix.axes, prefix.along, prefix.default) == ("prefix", ("b",), "keys", None)


def test_inputs_come_in_the_order_in_which_they_are_named():
    names = ("segment_ids", "attention_mask")
    assert tuple(spec.name for spec in MaskRule(names).specs("q", "k")) == names
    assert MaskRule(()).specs("q", "k") == []
    assert MaskRule().specs("q", "k")[0].axes[0] == "batch_size"


# refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"inputs": ("mask",)}, "each once, not mask"),
        ({"inputs": ("attention_mask", "attention_mask")}, "each once, not attention_mask, attention_mask"),
        ({"inputs": ("segment_ids", "lengths")}, "attention_mask, sequence_lengths, segment_ids, prefix_lengths, each"),
        ({"rank": 1}, "rank of attention_mask is 1; it is 2, 3 or 4"),
        ({"rank": 5}, "rank of attention_mask is 5; it is 2, 3 or 4"),
        ({"left_window": -1}, "the window reaches -1 keys to the left; it must be a whole number"),
        ({"right_window": -3}, "the window reaches -3 keys to the right"),
        ({"inputs": ("prefix_lengths",)}, "prefix_lengths open a causal mask; set causal"),
    ],
)
def test_what_makes_no_sense_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        MaskRule(**options)
    with pytest.raises(ValueError, match=named):
        replace(MaskRule(), **options)


def test_a_window_of_nothing_is_a_window():
    square = torch.ones(LK, LK)
    assert torch.equal(built(MaskRule((), left_window=0), {}, LK)[0, 0], square.triu().bool())
    assert torch.equal(built(MaskRule((), right_window=0), {}, LK)[0, 0], square.tril().bool())
