from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoformer.export.evidence import torch_runner
from isoformer.models import positions
from isoformer.models.attention import attend_with_weights
from isoformer.models.families.attention import TINY, Config, Model, signature, task
from isoformer.models.mask_rule import INPUTS
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.relations import relations

B, L, LK, P, E = 2, 5, 7, 3, 12
SIZES = {
    "batch_size": B,
    "sequence_length": L,
    "encoder_sequence_length": LK,
    "past_sequence_length": P,
    "total_sequence_length": P + L,
}
DYNAMIC = positions.DynamicNTKScaling(factor=2.0, max_positions=8)


def config(**options: Any) -> Config:
    return Config(**{"hidden_size": E, "num_heads": 3, **options})


def build(options: Config) -> Model:
    """A float64 model of random weights, biases, norms and sinks included."""
    generator = torch.Generator().manual_seed(0)
    model = Model(options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.requires_grad_(False)


def inputs(options: Config, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for spec in signature(options).inputs:
        shape = [SIZES[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        high = {"mask": 2, "segments": 3}.get(spec.kind, SIZES.get(spec.along or "", 0) + 1)
        made[spec.name] = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            if spec.dtype == "float32"
            else torch.randint(0, high, shape, generator=generator)
        )
    return made


def heads(linear: nn.Linear, x: Tensor, count: int) -> Tensor:
    return linear(x).unflatten(-1, (count, -1)).transpose(1, 2)


def close(have: Tensor, want: Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


# what it computes

CONFIGS: dict[str, Config] = {
    "tiny": TINY,
    "no mask": config(mask_inputs=()),
    "padding": config(output_attentions=True),
    "every input": config(mask_inputs=INPUTS, causal=True, left_window=3),
    "rank 3": config(mask_rank=3, right_window=1),
    "rank 4": config(mask_rank=4, mask_heads=3, num_kv_heads=1, value_head_dim=5, head_dim=7),
    "options": config(scale=0.7, softcap=1.3, sinks=True, qk_norm=True, bias=False, output_attentions=True),
    "cross": config(cross=True, key_size=9, output_attentions=True),
    "cross lengths": config(cross=True, mask_inputs=("sequence_lengths",)),
    "cache": config(cache=True, causal=True, num_kv_heads=1, value_head_dim=5, output_attentions=True),
    "cache without a mask": config(cache=True, causal=True, mask_inputs=()),
    "cache lengths": config(cache=True, causal=True, mask_inputs=("sequence_lengths",)),
    "cache segments": config(cache=True, causal=True, mask_inputs=("segment_ids",)),
    "cache rank 3": config(cache=True, mask_rank=3),
    "alibi": config(cache=True, causal=True, position_kind="alibi"),
    "relative": config(position_kind="relative", relative_buckets=8, relative_distance=10),
    "relative causal": config(position_kind="relative", causal=True, cache=True),
    "rotary": config(position_kind="rotary", head_dim=6, rotary_dim=4, rotary_base=50.0),
    "rotary pairs": config(position_kind="rotary", rotary_interleaved=True, cache=True, causal=True),
    "rotary scaled": config(position_kind="rotary", rotary_scaling=positions.LinearScaling(4.0)),
    "rotary by place": config(position_kind="rotary", mask_inputs=("segment_ids",), cache=True, causal=True),
}


def by_hand(model: Model, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs from the weights, through pure functions."""
    c, layer = model.config, model.attention
    x = given["hidden_states"]
    source = given.get("encoder_hidden_states", x)
    kv_heads = c.num_kv_heads or c.num_heads
    q = heads(layer.query_linear, x, c.num_heads)
    k, v = (heads(linear, source, kv_heads) for linear in (layer.key_linear, layer.value_linear))
    if c.qk_norm:
        norms = (cast(nn.RMSNorm, layer.query_norm).weight, cast(nn.RMSNorm, layer.key_norm).weight)
        q, k = (nn.functional.rms_norm(y, y.shape[-1:], w, c.norm_eps) for y, w in zip((q, k), norms, strict=True))
    past = P if c.cache else 0
    if c.position_kind == "rotary":
        rotary = positions.Rotary(
            q.shape[-1],
            base=c.rotary_base,
            rotary_dim=c.rotary_dim,
            interleaved=c.rotary_interleaved,
            scaling=c.rotary_scaling,
        )
        where = torch.arange(past, past + L).expand(B, L)
        if "attention_mask" in given:
            where = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)[:, past:]
        q, k = rotary(q, where), rotary(k, where)
    if c.cache:
        k = torch.cat([given["past_key_values.0.key"], k], 2)
        v = torch.cat([given["past_key_values.0.value"], v], 2)
    lq, lk = q.shape[2], k.shape[2]
    mask = c.masks.build(given, lq, lk, prefix="encoder_" if c.cross else "", batch=B)
    bias = None
    tokens = (given.get("attention_mask", torch.ones(B, lk)).cumsum(1) - 1).clamp(min=0).long()  # (B, Lk)
    behind = tokens[:, lk - lq :, None] - tokens[:, None, :]  # counted in tokens, not in places
    if c.position_kind == "alibi":
        bias = -positions.alibi_slopes(c.num_heads).to(x.dtype)[:, None, None] * behind.abs()[:, None]
    if model.relative is not None:
        line = model.relative(1, 199, offset=99)[0, :, 0].flip(-1)  # of distances -99 … 99
        bias = line[:, behind + 99].transpose(0, 1)
    options = {"scale": c.scale, "softcap": c.softcap, "sinks": layer.sinks, "bias": bias}
    out, shares = attend_with_weights(q, k, v, mask, **options)
    result = {"attention_output": layer.out_linear(out.transpose(1, 2).flatten(2))}
    if c.cache:
        result |= {"present.0.key": k, "present.0.value": v}
    return result | ({"attentions.0": shares} if c.output_attentions else {})


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layer_is_its_parts(name):
    model = build(CONFIGS[name])
    given = inputs(model.config)
    outputs = model(**given)
    wanted = by_hand(model, given)
    assert outputs.keys() == wanted.keys()
    for key, want in wanted.items():
        close(outputs[key], want, 1e-6 if model.config.position_kind == "rotary" else 1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_signature_is_what_the_layer_takes_and_gives(name):
    options = CONFIGS[name]
    edge = signature(options)
    outputs = build(options)(**inputs(options))
    assert list(outputs) == [spec.name for spec in edge.outputs]
    for spec in edge.outputs:
        assert spec.dtype == "float32"
        assert outputs[spec.name].shape == tuple(SIZES[a] if isinstance(a, str) else a for a in spec.axes)
    assert task(options) is None


@pytest.mark.parametrize("name", [name for name, c in CONFIGS.items() if c.mask_inputs])
def test_every_input_matters(name):
    """Another value of each input changes an answer; none is read in vain."""
    model = build(CONFIGS[name])
    matter: set[str] = set()
    for seed in range(0, 16, 2):  # of several draws, since one input may hide what another shows
        given, other = inputs(model.config, seed), inputs(model.config, seed + 1)
        before = model(**given)["attention_output"]
        matter |= {k for k in given if not torch.equal(model(**given | {k: other[k]})["attention_output"], before)}
    assert matter == {spec.name for spec in signature(model.config).inputs}


def test_the_weights_of_a_configuration():
    names = dict(Model(config(bias=False, sinks=True, qk_norm=True)).named_parameters())
    linear = {f"attention.{name}_linear.weight" for name in ("query", "key", "value", "out")}
    assert names.keys() == {*linear, "attention.sinks", "attention.query_norm.weight", "attention.key_norm.weight"}
    assert "attention.out_linear.bias" in dict(Model(config()).named_parameters())
    relative = Model(config(position_kind="relative", relative_buckets=8, relative_distance=10)).relative
    want = positions.RelativeBias(3, num_buckets=8, max_distance=10)
    assert relative is not None
    want.load_state_dict(relative.state_dict())
    assert torch.equal(relative(40, 40), want(40, 40))


def test_the_mask_has_the_heads_of_the_configuration():
    (mask,) = (spec for spec in signature(config(mask_rank=4, mask_heads=3)).inputs if spec.kind == "mask")
    assert mask.axes == ("batch_size", 3, "sequence_length", "sequence_length")


def test_a_token_without_keys_has_the_bias_alone():
    model = build(config(cross=True, key_size=9))
    given = inputs(model.config)
    given["encoder_attention_mask"][1] = 0
    out = model(**given)["attention_output"]
    assert torch.equal(out[1], model.attention.out_linear.bias.expand(L, E))
    assert not torch.equal(out[0], out[1])


def test_relative_bias_looks_both_ways_unless_causal():
    for causal in (True, False):
        model = build(config(position_kind="relative", causal=causal))
        assert model.relative is not None
        ahead = model.relative(L, L).triu(1)
        assert torch.equal(ahead[0, :, 0, 1:], ahead[0, :, 0, 1:2].expand(3, L - 1)) == causal


# what it promises

PROMISES = CONFIGS | {
    **{
        f"{kind} {' '.join(names)}{' cached' if cache else ''}": config(
            position_kind=kind, mask_inputs=names, causal=True, cache=cache
        )
        for kind in ("none", "rotary", "alibi")
        for names in ((), *((name,) for name in INPUTS), ("attention_mask", "prefix_lengths"))
        for cache in (False, True)
    },
    "dynamic": config(position_kind="rotary", rotary_scaling=DYNAMIC, cache=True, causal=True),
    "dynamic by place": config(position_kind="rotary", rotary_scaling=DYNAMIC, mask_inputs=("segment_ids",)),
    "dynamic lengths": config(position_kind="rotary", rotary_scaling=DYNAMIC, mask_inputs=("sequence_lengths",)),
}


@pytest.mark.parametrize("name", PROMISES)
def test_every_promise_of_the_signature_holds(name):
    model = build(PROMISES[name])
    edge = signature(model.config)
    run = torch_runner(model, edge, torch.float64)
    tolerances = dict.fromkeys((spec.name for spec in edge.outputs), 1e-9)
    plain = RuntimeSignature.read(edge.to_dict())
    found = list(relations(plain, tolerances, run, "torch", np.random.default_rng(5)))
    assert found
    assert [c.line() for c in found if not c.passed] == []
    seen = {c.case.split("-")[0] for c in found}
    assert ("chunks" in seen) == edge.chunked
    one_mask = [spec for spec in plain.inputs if spec.masks]
    if len(one_mask) == 1 and model.config.mask_rank == 2:
        assert {c.case.rsplit("-", 1)[0] for c in found} >= {"content", *(f"padded-{side}" for side in edge.padding)}


@pytest.mark.parametrize(
    ("options", "padding", "chunked"),
    [
        ({}, ("right", "left"), False),
        ({"cache": True, "causal": True}, ("right", "left"), True),
        ({"cache": True, "causal": True, "mask_inputs": ()}, ("right", "left"), True),
        ({"cache": True, "causal": True, "mask_inputs": ("segment_ids",)}, ("right", "left"), True),
        ({"cache": True, "causal": True, "mask_inputs": ("sequence_lengths",)}, ("right",), False),
        ({"causal": True, "mask_inputs": ("attention_mask", "prefix_lengths")}, ("right",), False),
        ({"cache": True, "mask_rank": 3}, ("right", "left"), False),
        ({"cache": True, "causal": True, "position_kind": "rotary"}, ("right", "left"), True),
        (
            {"cache": True, "causal": True, "position_kind": "rotary", "mask_inputs": ("segment_ids",)},
            ("right",),
            True,
        ),
        ({"position_kind": "rotary", "mask_inputs": ("segment_ids",)}, ("right", "left"), False),
        (
            {"cache": True, "causal": True, "position_kind": "rotary", "rotary_scaling": DYNAMIC},
            ("right", "left"),
            False,
        ),
        ({"position_kind": "rotary", "rotary_scaling": DYNAMIC, "mask_rank": 3}, (), False),
        ({"cross": True}, ("right", "left"), False),
    ],
)
def test_padding_and_chunks_that_are_promised(options, padding, chunked):
    edge = signature(config(**options))
    assert (edge.padding, edge.chunked) == (padding, chunked)


def test_dynamic_frequencies_really_break_what_is_not_promised():
    """The reason for the exceptions: with the promise made all the same, the relations see it broken."""
    model = build(PROMISES["dynamic"])
    edge = replace(signature(model.config), chunked=True)
    plain = RuntimeSignature.read(edge.to_dict())
    tolerances = dict.fromkeys((spec.name for spec in edge.outputs), 1e-9)
    run = torch_runner(model, edge, torch.float64)
    found = relations(plain, tolerances, run, "torch", np.random.default_rng(5))
    assert {c.case.split("-")[0] for c in found if not c.passed} == {"chunks"}


def test_parts_of_a_sequence_are_the_whole_also_padded_on_the_left():
    model = build(TINY)
    edge = signature(TINY)
    layer = model.attention
    x = torch.randn(B, 11, TINY.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.ones(B, 11, dtype=torch.int64)
    mask[1, :4] = 0
    past = {
        spec.name: torch.zeros(B, layer.num_kv_heads, 0, int(spec.axes[3]), dtype=torch.float64)
        for spec in edge.inputs
        if spec.name.startswith("past")
    }
    want = model(hidden_states=x, attention_mask=mask, **past)
    parts = []
    for start, stop in ((0, 2), (2, 3), (3, 11)):
        out = model(hidden_states=x[:, start:stop], attention_mask=mask[:, :stop], **past)
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        parts.append(out["attention_output"])
    close(torch.cat(parts, 1), want["attention_output"])
    close(past["past_key_values.0.key"], want["present.0.key"])


# refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cross": True, "cache": True}, "cross has no order"),
        ({"cross": True, "causal": True}, "cross has no order"),
        ({"cross": True, "left_window": 3}, "cross has no order"),
        ({"cross": True, "right_window": 0}, "cross has no order"),
        ({"cross": True, "position_kind": "rotary"}, "cross has no order"),
        ({"cross": True, "position_kind": "alibi"}, "cross has no order"),
        ({"cross": True, "position_kind": "relative"}, "cross has no order"),
        (
            {"cross": True, "mask_inputs": ("segment_ids",)},
            "cross takes attention_mask or sequence_lengths, not segment",
        ),
        ({"key_size": 9}, "key_size 9 is for cross"),
        ({"cache": True}, "with a cache the layer is causal"),
        (
            {"position_kind": "learned"},
            r"position_kind 'learned' is not one of \('none', 'rotary', 'alibi', 'relative'\)",
        ),
        ({"mask_inputs": ("prefix_lengths",)}, "prefix_lengths open a causal mask"),
        ({"mask_rank": 5, "causal": True}, "rank of attention_mask is 5"),
        ({"left_window": -1}, "the window reaches -1 keys to the left"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        config(**options)
    with pytest.raises(ValueError, match=named):
        replace(config(), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_heads": 5}, "hidden_size 12 is not a multiple of num_heads 5"),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"num_heads": 0, "head_dim": 3}, "num_heads is 0"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"position_kind": "rotary", "head_dim": 3}, "rotary_dim 3 is not an even number"),
        ({"position_kind": "rotary", "rotary_dim": 6}, "rotary_dim 6 is not an even number from 2 to head_dim 4"),
    ],
)
def test_a_model_refuses_what_its_parts_refuse(options, named):
    for make in (Model, signature):
        with pytest.raises(ValueError, match=named):
            make(config(**options))


@pytest.mark.parametrize("shape", [(B, L + 1), (B + 1, L), (B, 1, L), (L,)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        build(config())(hidden_states=torch.zeros(B, L, E).double(), attention_mask=torch.ones(shape))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "changes",
    [
        {"left_window": 2, "position_kind": "rotary"},
        {"position_kind": "alibi"},
        {"position_kind": "relative"},
        {"position_kind": "rotary", "sinks": True, "softcap": 5.0},
    ],
)
def test_ragged_chunks_behind_a_cache_equal_each_row_alone(side, changes):
    """Three rows that grow by other numbers of tokens in each chunk, so that padding stands between their tokens."""
    torch.manual_seed(3)
    config = Config(24, 4, 2, causal=True, cache=True, **changes)
    model = Model(config).double().eval()
    steps = [[3, 1, 4], [1, 2, 2], [4, 1, 1]]
    rows = [torch.randn(sum(step[row] for step in steps), 24, dtype=torch.float64) for row in range(3)]

    def run(x, mask, key, value):
        past = {"past_key_values.0.key": key, "past_key_values.0.value": value}
        return model(x, attention_mask=mask, **past)

    def empty(batch):
        return torch.zeros(batch, 2, 0, 6, dtype=torch.float64)

    alone = [run(row[None], torch.ones(1, len(row)), empty(1), empty(1))["attention_output"][0] for row in rows]
    key, value, mask, done = empty(3), empty(3), torch.zeros(3, 0), [0, 0, 0]
    for step in steps:
        width = max(step)
        x, real = torch.randn(3, width, 24, dtype=torch.float64), torch.zeros(3, width)
        places = [slice(0, n) if side == "right" else slice(width - n, width) for n in step]
        for row, (place, n) in enumerate(zip(places, step, strict=True)):
            x[row, place], real[row, place] = rows[row][done[row] : done[row] + n], 1
        mask = torch.cat([mask, real], 1)
        out = run(x, mask, key, value)
        key, value = out["present.0.key"], out["present.0.value"]
        for row, (place, n) in enumerate(zip(places, step, strict=True)):
            wanted = alone[row][done[row] : done[row] + n]
            torch.testing.assert_close(out["attention_output"][row, place], wanted, rtol=0, atol=1e-13)
            done[row] += n
