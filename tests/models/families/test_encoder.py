import inspect
import itertools
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from isoformer.export.evidence import torch_runner
from isoformer.models import checkpoints, masks
from isoformer.models.families.encoder import TINY, Config, Model, signature, task
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.relations import relations

LABELS = ("low", "middle", "high", "other", "none")
PAD = 1
HEADS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean raw": {"normalize": False},
    "cls": {"pooling": "cls", "normalize": False},
    "pooler": {"pooler": True},
    "fill-mask": {"task": "fill-mask"},
    "classify": {"task": "classify", "labels": LABELS},
}
SHAPES: dict[str, dict[str, Any]] = {
    "post": {},
    "pre": {"norm_order": "pre"},
    "grouped": {"num_kv_heads": 1, "head_dim": 7},
    "sinusoidal": {"position_kind": "sinusoidal"},
    "no token types": {"num_token_types": 0},
    "relu": {"activation": "relu"},
}
RULES: dict[str, dict[str, Any]] = {
    "mask": {"position_rule": "mask"},
    "index": {"position_rule": "index"},
    "tokens": {"position_rule": "tokens", "pad_token_id": PAD},
}


def build(**options: Any) -> Model:
    """A float64 model of random weights, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    model = Model(replace(TINY, **options)).double().eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.3, generator=generator)
    return model.requires_grad_(False)


def random_ids(*shape: int, seed: int = 0, low: int = PAD + 1) -> Tensor:
    return torch.randint(low, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def random_types(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(7))


def run(model: Model, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> dict[str, Tensor]:
    return model(ids, mask, types if model.config.num_token_types > 1 else None)


def close(have: Tensor, want: Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


def differ(have: Tensor, want: Tensor) -> bool:
    return (have - want).abs().max().item() > 1e-4


def of_tokens(output: Tensor, mask: Tensor) -> Tensor:
    """The output's rows of real tokens, or the output itself where it has one row a sequence."""
    return output[mask == 1] if output.ndim == 3 else output


def padded(ids: Tensor, before: int, after: int, fill: int) -> tuple[Tensor, Tensor]:
    """ids (1, L) with that many columns of `fill` around them, and the mask that hides these."""
    wide = nn.functional.pad(ids, (before, after), value=fill)
    return wide, nn.functional.pad(torch.ones_like(ids), (before, after))


# padding


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", RULES)
def test_padding_changes_nothing_on_the_sides_that_the_signature_names(rule, head, side):
    model = build(**RULES[rule], **HEADS[head])
    ids = random_ids(1, 5)
    alone = run(model, ids, torch.ones_like(ids), random_types(1, 5))
    before, after = (3, 0) if side == "left" else (0, 3)
    wide, mask = padded(ids, before, after, PAD)
    types, _ = padded(random_types(1, 5), before, after, 1)
    outputs = run(model, wide, mask, types)
    if side in signature(model.config).padding:
        for name, output in outputs.items():
            close(of_tokens(output, mask), of_tokens(alone[name], torch.ones_like(ids)))
    else:
        pairs = [(of_tokens(o, mask), of_tokens(alone[n], torch.ones_like(ids))) for n, o in outputs.items()]
        assert any(differ(have, want) for have, want in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_on_either_side_changes_nothing_for_any_shape(shape):
    model = build(**SHAPES[shape])
    assert signature(model.config).padding == ("right", "left")
    ids = random_ids(1, 5)
    alone = run(model, ids, torch.ones_like(ids), random_types(1, 5))
    for before, after in ((2, 0), (0, 2), (3, 5)):
        wide, mask = padded(ids, before, after, 0)
        outputs = run(model, wide, mask, padded(random_types(1, 5), before, after, 0)[0])
        close(outputs["last_hidden_state"][mask == 1], alone["last_hidden_state"][0])
        close(outputs["sentence_embedding"], alone["sentence_embedding"])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    head=st.sampled_from(["mean", "pooler", "fill-mask", "classify"]),
)
def test_every_row_of_a_batch_is_its_real_tokens_run_alone(rows, seed, head):
    model = MODELS[head]
    mask = torch.tensor(rows).long()
    ids, types = random_ids(*mask.shape, seed=seed, low=0), random_types(*mask.shape)
    outputs = run(model, ids, mask, types)
    for b, real in enumerate(mask == 1):
        if not real.any():
            continue
        alone = run(model, ids[b : b + 1, real], torch.ones(1, int(real.sum())), types[b : b + 1, real])
        for name, output in outputs.items():
            close(output[b, real] if output.ndim == 3 else output[b], alone[name][0])


MODELS = {head: build(**HEADS[head]) for head in ("mean", "pooler", "fill-mask", "classify")}


@pytest.mark.parametrize("rule", ["mask", "index"])
def test_the_tokens_under_the_mask_change_nothing(rule):
    model = build(**RULES[rule], pooler=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]])
    ids, other = random_ids(2, 5), random_ids(2, 5, seed=1)
    types = random_types(2, 5)
    assert (ids != other)[mask == 0].all()
    have = run(model, torch.where(mask == 1, ids, other), mask, torch.where(mask == 1, types, 1 - types))
    for name, want in run(model, ids, mask, types).items():
        close(of_tokens(have[name], mask), of_tokens(want, mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64], ids=str)
def test_a_mask_of_any_number_type_is_the_same_mask(dtype):
    model = build(pooler=True)
    ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]])
    for name, want in run(model, ids, mask).items():
        assert torch.equal(run(model, ids, mask.to(dtype))[name], want)


@pytest.mark.parametrize(
    "mask", [torch.tensor([[0.0, -10000.0, 0.0]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0.5, 1.0, 1.0]])]
)
def test_a_mask_of_other_numbers_is_refused(mask):
    for rule in RULES.values():
        with pytest.raises(ValueError, match="other than 0 and 1"):
            build(**rule)(random_ids(1, 3), mask)


@pytest.mark.parametrize("shape", [(2, 7), (3, 5), (2, 1, 1, 7), (2, 2, 5, 5)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        build(position_rule="index")(random_ids(2, 5), torch.ones(shape))


# masks that the graph builds

LENGTHS = torch.tensor([5, 3, 1])


def last_hidden(model: Model, ids: Tensor, **inputs: Tensor) -> Tensor:
    return model(ids, token_type_ids=random_types(*ids.shape), **inputs)["last_hidden_state"]


@pytest.mark.parametrize("rule", ["mask", "index"])
@pytest.mark.parametrize("head", HEADS)
def test_lengths_are_the_padding_that_they_count(rule, head):
    ids, mask = random_ids(3, 5), (torch.arange(5) < LENGTHS[:, None]).long()
    want = run(build(**RULES[rule], **HEADS[head]), ids, mask, random_types(3, 5))
    model = build(**RULES[rule], **HEADS[head], mask_inputs=("sequence_lengths",))
    outputs = model(ids, token_type_ids=random_types(3, 5), sequence_lengths=LENGTHS)
    for name, output in outputs.items():
        close(output, want[name])


def test_every_input_takes_its_keys_from_the_others():
    """What one leaves out no other brings back, in attention and in the mean."""
    names = ("attention_mask", "sequence_lengths", "segment_ids")
    ids, mask = random_ids(3, 5), torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    segments = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    model = build(mask_inputs=names, position_rule="index")
    found = model(ids, mask, random_types(3, 5), sequence_lengths=torch.tensor([5, 4, 3]), segment_ids=segments)
    both = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    want = run(build(position_rule="index"), ids, both, random_types(3, 5))
    for name, output in found.items():
        close(of_tokens(output, both), of_tokens(want[name], both))


@pytest.mark.parametrize("names", [("segment_ids",), ("attention_mask", "segment_ids")], ids=str)
def test_packed_sequences_are_the_sequences_alone(names):
    """Positions begin anew in each, so a row of two is the two."""
    model, ids, types = build(mask_inputs=names), random_ids(1, 7), random_types(1, 7)
    segments = torch.tensor([[1, 1, 1, 0, 2, 2, 0]])
    inputs = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in names else {}
    packed = model(ids, token_type_ids=types, segment_ids=segments, **inputs)["last_hidden_state"]
    for number in (1, 2):
        own = segments[0] == number
        alone = run(build(), ids[:, own], torch.ones(1, int(own.sum())), types[:, own])["last_hidden_state"]
        close(packed[:, own], alone)


def test_the_mean_is_over_every_segment_and_no_padding():
    model = build(mask_inputs=("segment_ids",), normalize=False)
    segments = torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]])
    out = model(random_ids(2, 4), segment_ids=segments)
    for b, count in enumerate((3, 1)):
        close(out["sentence_embedding"][b], out["last_hidden_state"][b, :count].mean(0))


@pytest.mark.parametrize(
    "options",
    [{"causal": True}, {"left_window": 1}, {"right_window": 1}, {"causal": True, "left_window": 2}],
    ids=str,
)
def test_causality_and_windows_are_the_masks_of_rank_3(options):
    left, right = options.get("left_window"), options.get("right_window")
    ids, length = random_ids(2, 7), 7
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1, 1]])
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 5], [0, 0, 1, 1, 2, 3, 4]])  # windows count these, not places
    behind = tokens[:, :, None] - tokens[:, None, :]
    order = (behind <= (length if left is None else left)) & (-behind <= (length if right is None else right))
    order = order & masks.causal(length, length)[0] if options.get("causal") else order
    want = run(
        build(position_rule="index", mask_rank=3), ids, (order & mask[:, None].bool()).long(), random_types(2, 7)
    )
    found = run(build(position_rule="index", **options), ids, mask, random_types(2, 7))
    close(found["last_hidden_state"], want["last_hidden_state"])
    plain = run(build(position_rule="index"), ids, mask, random_types(2, 7))
    assert differ(found["last_hidden_state"], plain["last_hidden_state"])


def test_a_causal_token_does_not_see_what_comes_after_unless_the_prefix_holds_it():
    model = build(mask_inputs=("prefix_lengths",), causal=True, num_layers=3)
    ids = random_ids(3, 6)
    other = ids.clone()
    other[:, 3] = ids[:, 3] % 90 + 5
    prefixes = torch.tensor([0, 3, 4])
    changed = last_hidden(model, ids, prefix_lengths=prefixes) - last_hidden(model, other, prefix_lengths=prefixes)
    moved = changed.abs().amax(-1) > 1e-9
    assert moved.tolist() == [[False] * 3 + [True] * 3, [False] * 3 + [True] * 3, [True] * 6]


def test_without_mask_inputs_every_token_is_real():
    ids = random_ids(2, 5)
    model = build(mask_inputs=())
    want = run(build(), ids, torch.ones_like(ids), random_types(2, 5))
    for name, output in model(ids, token_type_ids=random_types(2, 5)).items():
        close(output, want[name])
    assert "attention_mask" not in [spec.name for spec in signature(model.config).inputs]


@pytest.mark.parametrize("names", [(), ("segment_ids",), ("sequence_lengths", "attention_mask")], ids=str)
def test_the_mask_as_applied_is_given_with_the_weights(names):
    model = build(mask_inputs=names, causal=True, output_attentions=True)
    given = {
        "segment_ids": torch.tensor([[1, 1, 2, 2, 0]]).expand(3, 5),
        "sequence_lengths": LENGTHS,
        "attention_mask": torch.tensor([[1, 0, 1, 1, 1]]).expand(3, 5),
    }
    out = model(random_ids(3, 5), **{name: given[name] for name in names})
    want = model.config.masks.build(given, 5, 5, batch=3)
    assert want is not None
    assert torch.equal(out["attention_visible"], want.expand(3, 1, 5, 5))
    for layer in range(2):
        assert (out[f"attentions.{layer}"][~want.expand(3, 3, 5, 5)] == 0).all()
        close(out[f"attentions.{layer}"].sum(-1), want.any(-1).expand(3, 3, 5).double())


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({"mask_inputs": ("sequence_lengths",)}, ("right",)),
        ({"mask_inputs": ("attention_mask", "prefix_lengths"), "causal": True}, ("right",)),
        ({"mask_inputs": ("segment_ids",)}, ("right", "left")),
        ({"causal": True, "left_window": 3}, ("right", "left")),
    ],
    ids=str,
)
def test_padding_that_is_promised(options, padding):
    assert signature(replace(TINY, **options)).padding == padding


PROMISES = [
    {**mask, **head}
    for mask in (
        {"mask_inputs": ("sequence_lengths",)},
        {"mask_inputs": ("segment_ids",)},
        {"mask_inputs": ("prefix_lengths",), "causal": True},
        {"mask_inputs": ("attention_mask", "prefix_lengths"), "causal": True},
        {"mask_inputs": (), "causal": True},
        {"causal": True, "left_window": 2},
    )
    for head in ({}, {"pooling": "cls"}, {"position_rule": "index"}, {"task": "fill-mask"}, {"output_attentions": True})
]


@pytest.mark.parametrize("options", PROMISES, ids=str)
def test_every_promise_of_the_signature_holds(options):
    model = build(**options)
    edge = signature(model.config)
    plain = RuntimeSignature.read(edge.to_dict())
    tolerances = dict.fromkeys((spec.name for spec in edge.outputs), 1e-9)
    run_float64 = torch_runner(model, edge, torch.float64)
    found = list(relations(plain, tolerances, run_float64, "torch", np.random.default_rng(5)))
    assert found
    assert [c.line() for c in found if not c.passed] == []


# sequences without a real token


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_fully_masked_sequence_is_finite_and_leaves_its_neighbours_alone(rule, head, order):
    model = build(**RULES[rule], **HEADS[head], norm_order=order)
    ids, types = random_ids(3, 5), random_types(3, 5)
    ids[1] = PAD
    mask = torch.tensor([[1] * 5, [0] * 5, [1, 1, 1, 0, 0]])
    for name, output in run(model, ids, mask, types).items():
        assert output.isfinite().all()
        close(output[[0, 2]], run(model, ids[[0, 2]], mask[[0, 2]], types[[0, 2]])[name])


@pytest.mark.parametrize(
    ("pooling", "dtype"),
    [("mean", torch.float64), ("mean", torch.float32), ("mean", torch.bfloat16), ("cls", torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rule", ["mask", "index"])
def test_a_sequence_without_a_real_token_has_the_zero_embedding(rule, normalize, pooling, dtype):
    model = build(position_rule=rule, pooling=pooling, normalize=normalize).to(dtype)
    outputs = model(random_ids(2, 5), torch.tensor([[0] * 5, [1] * 5]))
    embedding = outputs["sentence_embedding"]
    assert outputs["last_hidden_state"].isfinite().all()
    assert embedding[1].abs().max() > 0.01
    assert torch.equal(embedding[0], torch.zeros_like(embedding[0]))


def test_a_fully_masked_batch_has_finite_gradients():
    model = build().requires_grad_(True)
    outputs = model(random_ids(2, 5), torch.zeros(2, 5))
    torch.stack([output.sum() for output in outputs.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# masks of rank 3 and 4


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", ["index", "tokens"])
def test_padding_written_as_a_mask_of_higher_rank_is_the_same_padding(rule, head, rank):
    two = build(**RULES[rule], **HEADS[head])
    more = build(**RULES[rule], **HEADS[head], mask_rank=rank)
    ids, types = random_ids(2, 5), random_types(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    high = mask[:, None, :].expand(2, 5, 5)
    high = high if rank == 3 else high[:, None]
    for name, want in run(two, ids, mask, types).items():
        close(run(more, ids, high, types)[name], want)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_under_a_causal_mask_a_token_is_the_last_of_its_own_sequence(rank, order):
    model = build(position_rule="index", mask_rank=rank, norm_order=order)
    ids, types = random_ids(1, 7), random_types(1, 7)
    mask = masks.causal(7, 7)[:, 0] if rank == 3 else masks.causal(7, 7)
    whole = run(model, ids, mask, types)["last_hidden_state"]
    for length in range(1, 8):
        square = mask[..., :length, :length]
        part = run(model, ids[:, :length], square, types[:, :length])["last_hidden_state"]
        close(part[:, -1], whole[:, length - 1])
    full = run(model, ids, torch.ones_like(mask), types)["last_hidden_state"]
    assert differ(full[:, 0], whole[:, 0])


def test_packed_segments_are_the_sequences_alone_but_for_their_positions():
    model = build(position_rule="index", mask_rank=3, normalize=False)
    with torch.no_grad():
        model.embeddings.positions.weight[3:5] = model.embeddings.positions.weight[:2]
    ids = random_ids(1, 5)
    outputs = model(ids, masks.segments(torch.tensor([[1, 1, 1, 2, 2]]))[:, 0])["last_hidden_state"]
    for part in (slice(0, 3), slice(3, 5)):
        alone = ids[:, part]
        close(outputs[:, part], model(alone, torch.ones(1, alone.shape[1], alone.shape[1]))["last_hidden_state"])


@pytest.mark.parametrize("rank", [3, 4])
def test_the_mean_is_over_the_tokens_that_some_query_sees(rank):
    model = build(position_rule="index", mask_rank=rank, normalize=False)
    mask = torch.zeros(2, 5, 5)
    mask[0, 1, 0] = mask[0, 1, 3] = mask[0, 4, 3] = 1
    outputs = model(random_ids(2, 5), mask if rank == 3 else mask[:, None])
    hidden, embedding = outputs["last_hidden_state"], outputs["sentence_embedding"]
    close(embedding[0], hidden[0, [0, 3]].mean(0))
    assert torch.equal(embedding[1], torch.zeros_like(embedding[1]))
    assert hidden.isfinite().all()


# heads


def test_mean_pooling_is_the_mean_of_real_tokens_and_normalised_on_request():
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    raw = build(normalize=False)(random_ids(2, 5), mask)
    close(raw["sentence_embedding"][0], raw["last_hidden_state"][0, [0, 2, 3]].mean(0))
    close(raw["sentence_embedding"][1], raw["last_hidden_state"][1, 4])
    unit = build()(random_ids(2, 5), mask)["sentence_embedding"]
    close(unit, raw["sentence_embedding"] / raw["sentence_embedding"].square().sum(1, keepdim=True).sqrt())


@pytest.mark.parametrize(("rule", "second"), [("mask", 3), ("index", 0), ("tokens", 0)])
def test_the_first_token_is_the_first_real_one_where_positions_follow_the_mask(rule, second):
    model = build(**RULES[rule], pooling="cls", normalize=False, pooler=True)
    ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    outputs = run(model, ids, mask, random_types(2, 5))
    hidden = outputs["last_hidden_state"]
    first = torch.stack([hidden[0, 0], hidden[1, second]])
    assert torch.equal(outputs["sentence_embedding"], first)
    pooler = model.get_submodule("head.pooler")
    close(outputs["pooler_output"], torch.tanh(pooler(first)))


def test_cls_pooling_ignores_left_padding():
    model = build(pooling="cls")
    ids = random_ids(1, 5)
    wide, mask = padded(ids, 3, 0, 3)
    close(model(wide, mask)["sentence_embedding"], model(ids, torch.ones(1, 5))["sentence_embedding"])


def test_a_tied_decoder_is_the_table_of_words():
    tied, apart = Model(replace(TINY, task="fill-mask")), Model(replace(TINY, task="fill-mask", tied_decoder=False))
    words, size = TINY.vocab_size, TINY.vocab_size * TINY.hidden_size
    assert tied.get_parameter("head.decoder.weight") is tied.embeddings.tokens.weight
    assert apart.get_parameter("head.decoder.weight") is not apart.embeddings.tokens.weight
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in tied.parameters()) == size
    assert tied.get_parameter("head.decoder.bias").shape == (words,)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_the_activation_of_a_head_is_the_one_configured(name):
    function = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "tanh": torch.tanh}[name]
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    hidden = build()(ids, mask)["last_hidden_state"]
    words = build(task="fill-mask", head_activation=name)
    head = words.head
    same_body = {n: p for n, p in build().state_dict().items() if not n.startswith("head.")}
    words.load_state_dict(same_body, strict=False)
    want = head.get_submodule("decoder")(head.get_submodule("norm")(function(head.get_submodule("dense")(hidden))))
    close(words(ids, mask)["logits"], want)
    classes = build(task="classify", labels=LABELS, head_activation=name)
    classes.load_state_dict(same_body, strict=False)
    dense, classifier = (classes.head.get_submodule(part) for part in ("dense", "classifier"))
    close(classes(ids, mask)["logits"], classifier(function(dense(hidden[:, 0]))))


# embeddings and blocks


def test_embeddings_are_the_normalised_sum_of_three_tables():
    model = build(position_rule="index")
    part = model.embeddings
    ids, types = random_ids(2, 5), random_types(2, 5)
    assert part.token_types is not None
    total = part.tokens.weight[ids] + part.positions.weight[:5] + part.token_types.weight[types]
    mean = total.mean(2, keepdim=True)
    spread = (total.var(2, unbiased=False, keepdim=True) + TINY.norm_eps).sqrt()
    close(part(ids, torch.ones(2, 5), types), (total - mean) / spread * part.norm.weight + part.norm.bias)


def test_token_types_left_out_are_zero():
    model = build()
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    want = model(ids, mask, torch.zeros(2, 5, dtype=torch.int64))["last_hidden_state"]
    close(model(ids, mask)["last_hidden_state"], want)
    assert differ(model(ids, mask, torch.ones(2, 5, dtype=torch.int64))["last_hidden_state"], want)


def test_one_token_type_is_added_everywhere():
    one, none = build(num_token_types=1), build(num_token_types=0)
    state = one.state_dict()
    state["embeddings.tokens.weight"] = state["embeddings.tokens.weight"] + state.pop("embeddings.token_types.weight")
    none.load_state_dict(state)
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    close(one(ids, mask)["last_hidden_state"], none(ids, mask)["last_hidden_state"])


@pytest.mark.parametrize("order", ["post", "pre"])
def test_blocks_that_add_nothing_leave_only_norms(order):
    model = build(norm_order=order)
    for block in model.blocks:
        for name in ("attention.out_linear", "feed_forward.down"):
            for parameter in block.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    want = model.embeddings(ids, mask, None)
    if order == "pre":
        want = model.final_norm(want)
    else:
        for block in model.blocks:
            want = block.get_submodule("feed_forward_norm")(block.get_submodule("attention_norm")(want))
    close(model(ids, mask)["last_hidden_state"], want)
    assert differ(want, model.embeddings(ids, mask, None))


def test_a_model_has_the_layers_and_sizes_of_its_configuration():
    model = Model(replace(TINY, num_layers=5, num_kv_heads=1, head_dim=7, num_token_types=3))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert len(model.blocks) == 5
    assert shapes["embeddings.tokens.weight"] == (101, 33)
    assert shapes["embeddings.positions.weight"] == (64, 33)
    assert shapes["embeddings.token_types.weight"] == (3, 33)
    assert shapes["blocks.4.attention.query_linear.weight"] == (21, 33)
    assert shapes["blocks.4.attention.key_linear.weight"] == (7, 33)
    assert shapes["blocks.4.attention.out_linear.weight"] == (33, 21)
    assert shapes["blocks.4.feed_forward.up.weight"] == (53, 33)
    assert shapes["blocks.4.feed_forward.down.weight"] == (33, 53)
    assert all(module.eps == 1e-12 for module in model.modules() if isinstance(module, nn.LayerNorm))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_reaches_every_weight(shape, head):
    model = build(**SHAPES[shape], **HEADS[head]).requires_grad_(True)
    outputs = run(
        model, random_ids(3, 5), torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]), random_types(3, 5)
    )
    generator = torch.Generator().manual_seed(1)
    random = [(o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs.values()]
    torch.stack(random).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("key_linear.bias"):  # softmax does not see what it adds
            assert parameter.grad.abs().max() > 1e-8, name


def test_a_masked_token_gets_no_gradient():
    model = build(normalize=False).requires_grad_(True)
    ids = torch.tensor([[2, 3, 5, 7, 11]])
    model(ids, torch.tensor([[1, 0, 1, 0, 1]]))["sentence_embedding"].square().sum().backward()
    grad = model.embeddings.tokens.weight.grad
    assert grad is not None
    assert grad.abs().sum(1).nonzero()[:, 0].tolist() == [2, 5, 11]


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = build(dropout=0.5)
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    want = build()(ids, mask)["last_hidden_state"]
    assert torch.equal(model(ids, mask)["last_hidden_state"], want)
    assert differ(model.train()(ids, mask)["last_hidden_state"], want)


def test_dropout_acts_on_embeddings_and_classes_too():
    model = build(dropout=1.0, task="classify", labels=LABELS).train()
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    assert torch.equal(model.embeddings(ids, mask, None), torch.zeros(2, 5, 33, dtype=torch.float64))
    assert torch.equal(model(ids, mask)["logits"], model.get_parameter("head.classifier.bias").expand(2, -1))


# attention weights


def test_attention_weights_are_those_of_transformers(tmp_path):
    torch.manual_seed(3)
    settings: dict[str, Any] = {"attn_implementation": "eager", "vocab_size": 101, "hidden_size": 33}
    settings |= {"num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 53, "initializer_range": 0.3}
    theirs = BertModel(BertConfig(**settings, max_position_embeddings=64)).double().eval()
    theirs.save_pretrained(tmp_path)
    found = checkpoints.read(tmp_path)
    model = replace(found, config=replace(found.config, output_attentions=True)).model().double().eval()
    ids, types = random_ids(3, 7), random_types(3, 7)
    mask = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 0]])
    with torch.no_grad():
        expected = theirs(ids, mask, types, output_attentions=True).attentions
        outputs = model(ids, mask, types)
    for layer, want in enumerate(expected):
        have = outputs[f"attentions.{layer}"]
        assert have.std() > 0.1
        close(have.transpose(1, 2)[mask == 1], want.transpose(1, 2)[mask == 1], atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_attention_weights_sum_to_one_or_are_zero(rank, shape):
    options = SHAPES[shape] | {"mask_rank": rank, "position_rule": "index"}
    model, plain = build(**options, output_attentions=True), build(**options)
    ids, types = random_ids(3, 5), random_types(3, 5)
    mask = torch.tensor([[1] * 5, [0, 1, 1, 0, 1], [0] * 5])
    if rank > 2:
        mask = mask[:, None] * masks.causal(5, 5)[0].long()  # the first row of the second sequence has no key
    outputs = run(model, ids, mask if rank < 4 else mask[:, None], types)
    visible = outputs["attention_visible"]
    assert visible.dtype == torch.bool
    assert torch.equal(visible, (mask[:, None, None] if rank == 2 else mask[:, None]).bool().expand(3, 1, 5, 5))
    for layer in range(TINY.num_layers):
        weights = outputs[f"attentions.{layer}"]
        assert ((weights == 0) == ~visible).all()
        close(weights.sum(-1), visible.any(-1).expand(3, 3, 5).double())
        assert differ(weights[0, 0], weights[0, 1])
    assert differ(outputs["attentions.0"], outputs["attentions.1"])
    for name, want in run(plain, ids, mask if rank < 4 else mask[:, None], types).items():
        close(outputs[name], want)


def test_attention_weights_have_a_finite_gradient():
    model = build(output_attentions=True).requires_grad_(True)
    outputs = model(random_ids(2, 5), torch.tensor([[0] * 5, [1, 1, 1, 0, 0]]))
    outputs["attentions.1"].square().sum().backward()
    grad = model.get_parameter("blocks.1.attention.query_linear.weight").grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad.abs().max() > 1e-6


# lengths


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_the_longest_sequence_is_as_long_as_the_signature_says(rule, kind):
    model = build(**RULES[rule], position_kind=kind, max_positions=13)
    longest = 11 if rule == "tokens" else 13
    assert signature(model.config).axes["sequence_length"].max == model.config.max_length == longest
    ids = random_ids(1, longest)
    assert model(ids, torch.ones(1, longest))["last_hidden_state"].isfinite().all()
    with pytest.raises((ValueError, IndexError)):
        model(random_ids(1, longest + 1), torch.ones(1, longest + 1))


# configuration


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions"]
)
@pytest.mark.parametrize("size", [0, -3])
def test_sizes_begin_at_one(name, size):
    with pytest.raises(ValueError, match=f"{name} is {size}; it must be a whole number, at least 1"):
        replace(TINY, **{name: size})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm_order": "sandwich"}, r"norm_order 'sandwich' is not one of \('post', 'pre'\)"),
        ({"position_kind": "rotary"}, "position_kind 'rotary' is not one of"),
        ({"position_rule": "left"}, "position_rule 'left' is not one of"),
        ({"mask_rank": 5}, "mask_rank 5 is not one of"),
        ({"mask_rank": "3"}, "mask_rank '3' is not one of"),
        ({"mask_inputs": ("mask",)}, "mask inputs are attention_mask, .*each once, not mask"),
        ({"mask_inputs": ("prefix_lengths",)}, "prefix_lengths open a causal mask"),
        ({"left_window": -1}, "the window reaches -1 keys to the left"),
        ({"right_window": -2}, "the window reaches -2 keys to the right"),
        ({"task": "generate"}, "task 'generate' is not one of"),
        ({"pooling": "max"}, "pooling 'max' is not one of"),
        ({"problem": "ranking"}, "problem 'ranking' is not one of"),
        ({"mask_rank": 3}, "position_rule 'mask' counts along a mask of rank 2"),
        ({"mask_rank": 4}, "position_rule 'mask' counts along a mask of rank 2"),
        ({"task": "classify"}, "the task classify needs labels"),
        ({"position_rule": "tokens", "pad_token_id": 63}, "max_positions 64 leaves no position behind pad 63"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        replace(TINY, **options)


def test_the_last_position_behind_the_padding_token_is_enough():
    assert replace(TINY, position_rule="tokens", pad_token_id=62).max_length == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": 34}, "hidden_size 34 is not a multiple of num_heads 3"),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"activation": "mish"}, "activation 'mish' is not one of"),
        ({"task": "fill-mask", "head_activation": "mish"}, "activation 'mish' is not one of"),
    ],
)
def test_a_model_refuses_what_its_parts_refuse(options, named):
    with pytest.raises(ValueError, match=named):
        Model(replace(TINY, **options))


def test_a_configuration_does_not_change():
    with pytest.raises(FrozenInstanceError):
        TINY.hidden_size = 5  # pyright: ignore[reportAttributeAccessIssue]


# signature and task


def options_of_every_kind() -> list[dict[str, Any]]:
    rules = [{"position_rule": rule, "mask_rank": rank} for rule in ("index", "tokens") for rank in (2, 3, 4)]
    types = [{"num_token_types": count} for count in (0, 1, 2)]
    every = itertools.product([*HEADS.values(), {"output_attentions": True}], [{}, *rules], types)
    return [head | rule | {"pad_token_id": PAD} | count for head, rule, count in every]


def test_every_signature_is_what_its_model_takes_and_gives():
    sizes = {"batch_size": 2, "sequence_length": 7}
    for options in options_of_every_kind():
        config = replace(TINY, num_layers=1, **options)
        model, edge = Model(config).eval(), signature(config)
        taken = list(inspect.signature(model.forward).parameters)
        assert [spec.name for spec in edge.inputs] == taken[: 3 if config.num_token_types > 1 else 2]
        feeds = []
        for spec in edge.inputs:
            shape = [sizes.get(axis, axis) for axis in spec.axes]  # pyright: ignore
            assert spec.dtype == "int64"
            if spec.kind == "mask":
                feeds.append(torch.ones(shape, dtype=torch.int64))
                continue
            assert spec.high is not None
            feeds.append(random_ids(*shape) % spec.high)
        with torch.no_grad():
            outputs = model(*feeds)
        assert list(outputs) == [spec.name for spec in edge.outputs]
        for spec in edge.outputs:
            assert outputs[spec.name].shape == tuple(sizes.get(axis, axis) for axis in spec.axes)  # pyright: ignore
            assert outputs[spec.name].dtype == getattr(torch, spec.dtype)


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("mean", ["last_hidden_state", "sentence_embedding"]),
        ("pooler", ["last_hidden_state", "sentence_embedding", "pooler_output"]),
        ("fill-mask", ["logits"]),
        ("classify", ["logits"]),
    ],
)
def test_the_outputs_of_each_task(head, names):
    config = replace(TINY, **HEADS[head])
    assert [spec.name for spec in signature(config).outputs] == names
    more = ["attentions.0", "attentions.1", "attention_visible"]
    assert [spec.name for spec in signature(replace(config, output_attentions=True)).outputs] == names + more


def test_the_inputs_and_their_bounds():
    ids, mask, types = signature(replace(TINY, num_token_types=3)).inputs
    assert (ids.name, ids.low, ids.high, ids.pad, ids.default) == ("input_ids", 0, 101, None, None)
    assert (mask.name, mask.kind, mask.axes, mask.default) == ("attention_mask", "mask", ids.axes, 1)
    assert (types.name, types.high, types.default, types.axes) == ("token_type_ids", 3, 0, ids.axes)
    for count in (0, 1):
        assert [spec.name for spec in signature(replace(TINY, num_token_types=count)).inputs] == [ids.name, mask.name]
    assert signature(replace(TINY, position_rule="tokens", pad_token_id=5)).inputs[0].pad == 5
    assert signature(replace(TINY, position_rule="index", pad_token_id=5)).inputs[0].pad is None


@pytest.mark.parametrize(
    ("rank", "axes"),
    [
        (2, ("batch_size", "sequence_length")),
        (3, ("batch_size", "sequence_length", "sequence_length")),
        (4, ("batch_size", 1, "sequence_length", "sequence_length")),
    ],
)
def test_the_mask_has_the_axes_of_its_rank(rank, axes):
    assert signature(replace(TINY, position_rule="index", mask_rank=rank)).inputs[1].axes == axes


@pytest.mark.parametrize(
    ("rule", "head", "left"),
    [
        *(("mask", head, True) for head in HEADS),
        *(("index", head, False) for head in HEADS),
        *(("tokens", head, head in ("mean", "mean raw", "fill-mask")) for head in HEADS),
    ],
)
def test_left_padding_is_promised_where_it_is_ignored(rule, head, left):
    config = replace(TINY, **RULES[rule], **HEADS[head])
    assert signature(config).padding == (("right", "left") if left else ("right",))


def test_the_task_is_what_the_runtime_reads():
    assert task(TINY) == {"name": "embed"}
    assert task(replace(TINY, task="fill-mask")) == {"name": "fill-mask"}
    config = replace(TINY, task="classify", labels=("no", "yes"), problem="multi_label")
    assert task(config) == {"name": "classify", "labels": ["no", "yes"], "problem": "multi_label"}


# export


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task": "classify", "labels": LABELS, "norm_order": "pre"},
        {"task": "fill-mask", "position_rule": "tokens", "mask_rank": 3},
        {"position_rule": "index", "mask_rank": 4, "pooler": True, "position_kind": "sinusoidal"},
    ],
    ids=["mask", "classify", "tokens", "index"],
)
def test_a_model_exports_with_batch_and_length_left_open(options):
    model = build(**options)
    edge = signature(model.config)
    dims = {
        "batch_size": torch.export.Dim("batch_size", min=1, max=64),
        "sequence_length": torch.export.Dim("sequence_length", min=1, max=model.config.max_length),
    }

    def example(batch: int, length: int) -> tuple[Tensor, ...]:
        mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) > 0.3
        rank = model.config.mask_rank
        square = mask[:, None, :] & masks.sliding_window(length, length, 2, 3)[0]
        full = {2: mask, 3: square, 4: square[:, None]}[rank]
        return random_ids(batch, length), full.long(), random_types(batch, length)

    shapes = tuple({i: dims[a] for i, a in enumerate(spec.axes) if isinstance(a, str)} for spec in edge.inputs)
    program = torch.export.export(model, example(3, 5), dynamic_shapes=shapes, strict=False).module()
    for sizes in ((2, 11), (5, 3), (7, 7)):
        outputs = program(*example(*sizes))
        for name, want in model(*example(*sizes)).items():
            close(outputs[name], want)


def test_the_small_configuration_is_of_odd_sizes():
    assert isinstance(TINY, Config)
    assert (TINY.hidden_size, TINY.num_heads, TINY.intermediate_size, TINY.vocab_size) == (33, 3, 53, 101)
