import math
import pickle
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom import modeling_bloom
from transformers.models.gpt_neox import GPTNeoXConfig, modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import LlamaConfig, modeling_llama
from transformers.models.t5 import T5Config, modeling_t5

from isoformer.models import masks
from isoformer.models.attention import scores, weights
from isoformer.models.positions import (
    DynamicNTKScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    RelativeBias,
    Rotary,
    RotaryScaling,
    ShawBias,
    SinusoidalPositions,
    YarnScaling,
    alibi,
    alibi_slopes,
    count_not_pad,
    count_real,
    rotate,
)

POSITIONS, HIDDEN = 7, 5
BATCH, HEADS, LENGTH, HEAD_DIM = 2, 3, 5, 14
KINDS = [LearnedPositions, SinusoidalPositions]
rectangles = st.integers(1, 11).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=3)
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_stands_for_the_first_rows(kind):
    table = kind(POSITIONS, HIDDEN)
    for length in (0, 1, 3, POSITIONS):
        assert torch.equal(table(length), table.weight[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_look_up_their_rows(kind):
    table = kind(POSITIONS, HIDDEN)
    rows = table(torch.tensor([[2, 0, 6], [5, 5, 1]]))
    assert rows.shape == (2, 3, HIDDEN)
    for b, i, position in [(0, 0, 2), (0, 1, 0), (0, 2, 6), (1, 0, 5), (1, 1, 5), (1, 2, 1)]:
        assert torch.equal(rows[b, i], table.weight[position])


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_over_the_table_is_refused(kind):
    with pytest.raises(ValueError, match=r"length 8 is over the 7 positions"):
        kind(POSITIONS, HIDDEN)(POSITIONS + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [7, -1])
def test_a_number_that_is_not_in_the_table_is_refused(kind, wrong):
    with pytest.raises(ValueError, match=rf"position {wrong} is not in 0 … 6"):
        kind(POSITIONS, HIDDEN)(torch.tensor([[6, 0, wrong]]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_numbers_look_up_no_rows(kind):
    assert kind(POSITIONS, HIDDEN)(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, HIDDEN)


def test_learned_positions_are_trained_and_begin_apart():
    table = LearnedPositions(POSITIONS, HIDDEN)
    assert table.weight.unique(dim=0).shape == (POSITIONS, HIDDEN)
    table(torch.tensor([[3]])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.nonzero()[:, 0].unique().tolist() == [3]


@pytest.mark.parametrize("hidden", [1, 2, 5, 11, 12])
def test_sinusoidal_positions_are_the_formula(hidden):
    table = SinusoidalPositions(POSITIONS, hidden)
    expected = torch.tensor(
        [
            [(math.cos if e % 2 else math.sin)(p / 10000 ** ((e - e % 2) / hidden)) for e in range(hidden)]
            for p in range(POSITIONS)
        ]
    )
    torch.testing.assert_close(table(POSITIONS), expected, atol=1e-6, rtol=0)


def test_sinusoidal_positions_are_neither_saved_nor_trained():
    table = SinusoidalPositions(POSITIONS, HIDDEN)
    assert table.state_dict() == {}
    assert list(table.parameters()) == []
    assert table.double().weight.dtype == torch.float64  # but move with their model


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32], ids=str)
def test_count_real_begins_at_the_first_real_token(dtype):
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]]).to(dtype)
    expected = torch.tensor([[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 1, 1, 2]])
    counted = count_real(mask)
    assert counted.dtype == torch.int64
    assert torch.equal(counted, expected)


def test_count_real_without_a_real_token_stays_in_the_table():
    assert torch.equal(count_real(torch.zeros(2, 3)), torch.zeros(2, 3, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(rectangle=rectangles)
def test_count_real_numbers_the_real_tokens_in_order(rectangle):
    mask = torch.tensor(rectangle) > 0
    counted = count_real(mask)
    for row, real in zip(counted, mask, strict=True):
        assert row[real].tolist() == list(range(int(real.sum())))
        assert row.min() >= 0
        assert row.max() < max(1, int(real.sum()))


@settings(max_examples=40, deadline=None)
@given(rectangle=rectangles, pad=st.integers(0, 3))
def test_count_not_pad_counts_from_behind_the_padding_token(rectangle, pad):
    counted = count_not_pad(torch.tensor(rectangle), pad)
    for row, ids in zip(counted.tolist(), rectangle, strict=True):
        real = [position for position, token in zip(row, ids, strict=True) if token != pad]
        assert real == list(range(pad + 1, pad + 1 + len(real)))
        assert all(position == pad for position, token in zip(row, ids, strict=True) if token == pad)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def as_complex(x: Tensor, interleaved: bool) -> Tensor:
    """Each pair of dimensions as one number."""
    half = x.shape[-1] // 2
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return torch.complex(a, b)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 6, HEAD_DIM])
def test_rotate_multiplies_pairs_by_the_unit_circle(rotary_dim, interleaved):
    x = draw(BATCH, HEADS, LENGTH, HEAD_DIM)
    angles = draw(BATCH, 1, LENGTH, rotary_dim // 2, seed=11)
    turned = rotate(x, angles.cos(), angles.sin(), interleaved=interleaved)
    expected = as_complex(x[..., :rotary_dim], interleaved) * torch.exp(1j * angles)
    torch.testing.assert_close(as_complex(turned[..., :rotary_dim], interleaved), expected, rtol=0, atol=1e-14)
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])


def test_rotate_refuses_angles_that_do_not_fit():
    x, angles = draw(1, 1, 3, 6), draw(1, 1, 3, 4)
    with pytest.raises(ValueError, match="4 angles turn 8 dimensions; the head has 6"):
        rotate(x, angles, angles)
    with pytest.raises(ValueError, match="cos holds 3 angles and sin 2"):
        rotate(x, angles[..., :3], angles[..., :2])


ROTARIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "base": {"base": 500000.0},
    "partial": {"rotary_dim": 6},
    "interleaved": {"interleaved": True, "rotary_dim": 10},
    "linear": {"scaling": LinearScaling(3.0)},
    "dynamic": {"scaling": DynamicNTKScaling(2.0, 4)},
    "yarn": {"scaling": YarnScaling(4.0, 64)},
    "llama3": {"scaling": Llama3Scaling(8.0, 1.0, 4.0, 64)},
}
rotaries = pytest.mark.parametrize("options", ROTARIES.values(), ids=ROTARIES)


@pytest.mark.parametrize("position", [0, 1, 3, 100_003])
def test_rotary_in_float64_is_the_formula(position):
    """Against 50 digits: at 100,003 a frequency that was rounded to float32 is off by 6e-3."""
    cos, sin = Rotary(HEAD_DIM).cos_sin(torch.tensor([[position]]), torch.float64)
    with mpmath.workdps(50):
        angles = [position * mpmath.mpf(10000) ** (mpmath.mpf(-2 * i) / HEAD_DIM) for i in range(HEAD_DIM // 2)]
        expected = torch.tensor([[float(f(a)) for a in angles] for f in (mpmath.cos, mpmath.sin)], dtype=torch.float64)
    found = torch.stack((cos, sin)).reshape(2, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15 + position * 4e-16)


@rotaries
def test_a_length_stands_for_its_positions(options):
    rotary, x = Rotary(HEAD_DIM, **options), draw(BATCH, HEADS, LENGTH, HEAD_DIM, dtype=torch.float32)
    each = torch.arange(LENGTH).expand(BATCH, LENGTH)
    assert torch.equal(rotary(x, LENGTH), rotary(x, each))
    assert torch.equal(rotary(x, each[:1]), rotary(x, each.int()))


@rotaries
def test_each_row_has_its_own_positions(options):
    """Also with dynamic NTK scaling, where rows have different frequencies."""
    rotary, x = Rotary(HEAD_DIM, **options), draw(BATCH, HEADS, LENGTH, HEAD_DIM)
    positions = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    alone = [rotary(x[b : b + 1], positions[b : b + 1]) for b in range(BATCH)]
    assert torch.equal(rotary(x, positions), torch.cat(alone))


@settings(max_examples=25, deadline=None)
@given(
    options=st.sampled_from([options for name, options in ROTARIES.items() if name != "dynamic"]),
    query=st.integers(0, 5000),
    key=st.integers(0, 5000),
    shift=st.integers(1, 5000),
)
def test_scores_depend_on_the_distance_alone(options, query, key, shift):
    rotary, q, k = Rotary(HEAD_DIM, **options), draw(1, 1, 1, HEAD_DIM), draw(1, 1, 1, HEAD_DIM, seed=11)

    def score(query: int, key: int) -> float:
        return float((rotary(q, torch.tensor([[query]])) * rotary(k, torch.tensor([[key]]))).sum())

    assert score(query, key) == pytest.approx(score(query + shift, key + shift), rel=0, abs=1e-10)
    assert score(query, key) != pytest.approx(score(query, key + shift), rel=0, abs=1e-10)


@rotaries
def test_vectors_keep_their_lengths(options):
    """But for YaRN's factor, which is the same for all."""
    rotary, x = Rotary(HEAD_DIM, **options), draw(BATCH, HEADS, LENGTH, HEAD_DIM)
    factor = 0.1 * math.log(4.0) + 1 if isinstance(options.get("scaling"), YarnScaling) else 1.0
    torch.testing.assert_close(rotary(x, LENGTH).norm(dim=-1), x.norm(dim=-1) * factor, rtol=1e-14, atol=0)


@rotaries
def test_the_gradient_is_right(options):
    rotary, x = Rotary(HEAD_DIM, **options), draw(1, 2, 3, HEAD_DIM).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotary(x, torch.tensor([[0, 7, 2]])), (x,))


@rotaries
@pytest.mark.parametrize("convert", ["half", "bfloat16", "float", "double", "meta"])
def test_frequencies_survive_every_conversion(options, convert):
    exact, model = Rotary(HEAD_DIM, **options).inv_freq, torch.nn.ModuleList([Rotary(HEAD_DIM, **options)])
    if convert == "meta":
        with torch.device("meta"):
            model = torch.nn.ModuleList([Rotary(HEAD_DIM, **options)])
        model.to_empty(device="cpu")
    else:
        getattr(model, convert)()
    found = pickle.loads(pickle.dumps(model))[0].inv_freq  # noqa: S301
    assert found.dtype == torch.float64
    assert torch.equal(found, exact)
    assert model.state_dict() == {}
    assert list(model.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_the_result_not_the_angle(dtype):
    rotary, x = Rotary(HEAD_DIM).to(dtype), draw(1, 1, 1, HEAD_DIM, dtype=dtype)
    position = torch.tensor([[2003]])  # in float16 2003 * 0.27 is rounded to steps of 0.25 or more
    found = rotary(x, position)
    assert found.dtype == dtype
    wanted = rotary(x.double(), position)
    assert (found - wanted).abs().max() < 4 * torch.finfo(dtype).eps * x.abs().max()


def test_rotary_refuses_what_does_not_fit():
    for rotary_dim in (3, 0, 16):
        with pytest.raises(ValueError, match=f"rotary_dim {rotary_dim} is not an even number from 2 to head_dim 14"):
            Rotary(HEAD_DIM, rotary_dim=rotary_dim)
    with pytest.raises(ValueError, match="rotary_dim 5 is not an even number from 2 to head_dim 5"):
        Rotary(5)
    with pytest.raises(ValueError, match=r"base is 1\.0; it must be above 1"):
        Rotary(HEAD_DIM, base=1.0)
    rotary, x = Rotary(HEAD_DIM), draw(BATCH, HEADS, LENGTH, HEAD_DIM)
    with pytest.raises(ValueError, match=r"\(batch, heads, length, 14\), not \(2, 3, 5, 13\)"):
        rotary(x[..., 1:], LENGTH)
    with pytest.raises(ValueError, match=r"integers, not torch.float64 of shape \(2, 5\)"):
        rotary(x, x[:, 0, :, 0])
    for positions in (LENGTH + 1, 1, torch.zeros(BATCH, 1, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"positions \(\d, \d\) do not fit x \(2, 3, 5, 14\)"):
            rotary(x, positions)


SCALED: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, wide": {"rope_type": "yarn", "factor": 40, "beta_fast": 3, "beta_slow": 0.1, "truncate": False},
    "yarn, no ramp": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4},
    "yarn, a step": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},
    "yarn, a long ramp": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 1e-9},
    "yarn, shorter": {"rope_type": "yarn", "factor": 0.5},
    "yarn, factor given": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
    "yarn, mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn, no factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 19},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3, 32": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 9.0,
        "original_max_position_embeddings": 701,
    },
}
MAX_POSITIONS = 101
scaled = pytest.mark.parametrize("parameters", SCALED.values(), ids=SCALED)


def llama(parameters: dict[str, Any], head_dim: int, base: float) -> modeling_llama.LlamaRotaryEmbedding:
    parameters = {"original_max_position_embeddings": MAX_POSITIONS, **parameters, "rope_theta": base}
    if parameters["rope_type"] not in ("yarn", "llama3"):
        del parameters["original_max_position_embeddings"]
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=MAX_POSITIONS, rope_parameters=parameters)
    return modeling_llama.LlamaRotaryEmbedding(config)


@scaled
@pytest.mark.parametrize(("head_dim", "base"), [(14, 10000.0), (64, 500000.0), (128, 1e6)])
def test_scaled_frequencies_are_those_of_transformers(parameters, head_dim, base):
    """Which computes them in float32: each is right to a few units in the last place."""
    theirs, scaling = llama(parameters, head_dim, base), RotaryScaling.from_config(parameters, MAX_POSITIONS)
    ours = Rotary(head_dim, base=base, scaling=scaling)
    torch.testing.assert_close(ours.inv_freq, theirs.inv_freq.double(), rtol=1e-6, atol=0)
    assert scaling.attention_scaling == pytest.approx(theirs.attention_scaling, rel=1e-15)
    positions = torch.randint(0, 23, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    cos, sin = theirs(torch.empty(1), positions)
    for mine, wanted in zip(ours.cos_sin(positions, torch.float32), (cos, sin), strict=True):
        torch.testing.assert_close(mine[:, 0], wanted[..., : head_dim // 2], rtol=0, atol=23 * 4e-7)


@pytest.mark.parametrize("length", [1, MAX_POSITIONS - 1, MAX_POSITIONS, MAX_POSITIONS + 1, 997, 100_003])
def test_dynamic_frequencies_are_those_of_transformers(length):
    parameters = SCALED["dynamic"]
    theirs = llama(parameters, HEAD_DIM, 10000.0)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs.config, seq_len=length)
    scaling = RotaryScaling.from_config(parameters, MAX_POSITIONS)
    rotary = Rotary(HEAD_DIM, scaling=scaling)
    found = scaling.at(rotary.inv_freq, torch.tensor([[0, length - 1, length // 2]]))
    assert found.shape == (1, 1, HEAD_DIM // 2)
    torch.testing.assert_close(found[0, 0], expected.double(), rtol=1e-6, atol=0)
    assert torch.equal(found[0, 0], rotary.inv_freq) == (length <= MAX_POSITIONS)


def test_a_configuration_may_be_of_older_transformers():
    assert RotaryScaling.from_config({"type": "linear", "factor": 2.0}) == LinearScaling(2.0)
    assert RotaryScaling.from_config({"rope_theta": 5e5, "partial_rotary_factor": 0.5}) == RotaryScaling()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "longrope"}, "rope_type 'longrope' is not one of default, linear, dynamic, yarn, llama3"),
        ({"type": "mrope", "mrope_section": [1]}, "rope_type 'mrope' is not one of"),
        ({"rope_type": "default", "mrope_section": [1]}, "'default' does not have mrope_section; it takes nothing"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 3.0}, "does not have alpha; it takes factor, max_positions"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic' needs max_positions"),
        ({"rope_type": "linear"}, "rope_type 'linear' needs factor"),
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type 'yarn' needs original_max_positions"),
        ({"rope_type": "linear", "factor": 0.0}, r"factor is 0\.0; it must be a positive number"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'; it must be a positive number"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        RotaryScaling.from_config(parameters)


def test_scaling_rules_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"beta_fast 1\.0 is below beta_slow 2\.0"):
        YarnScaling(2.0, 64, beta_fast=1.0, beta_slow=2.0)
    with pytest.raises(ValueError, match=r"low_freq_factor 4\.0 is not between 0 and high_freq_factor 4\.0"):
        Llama3Scaling(8.0, 4.0, 4.0, 64)
    with pytest.raises(ValueError, match="max_positions is 0; it must be a positive number"):
        DynamicNTKScaling(2.0, 0)
    with pytest.raises(ValueError, match="rotary_dim is 2; dynamic NTK scaling needs at least 4"):
        Rotary(HEAD_DIM, rotary_dim=2, scaling=DynamicNTKScaling(2.0, 64))


def test_rotate_is_llamas():
    q, positions = draw(BATCH, HEADS, LENGTH, HEAD_DIM, dtype=torch.float32), torch.tensor([[3, 1, 4, 1, 5]])
    rotary = Rotary(HEAD_DIM)
    cos, sin = (torch.cat((half, half), -1)[:, 0] for half in rotary.cos_sin(positions, q.dtype))
    assert torch.equal(rotary(q, positions), modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)[0])


def test_partial_rotary_is_gpt_neoxs():
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(hidden_size=48, num_attention_heads=2, rope_parameters=parameters)
    q, positions = draw(BATCH, 2, LENGTH, 24, dtype=torch.float32), torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    cos, sin = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)(q, positions)
    wanted, _ = modeling_gpt_neox.apply_rotary_pos_emb(q, q, cos, sin)
    torch.testing.assert_close(Rotary(24, rotary_dim=6)(q, positions), wanted, rtol=0, atol=1e-5)
    cos, sin = (torch.cat((half, half), -1)[:, 0] for half in Rotary(24, rotary_dim=6).cos_sin(positions, q.dtype))
    wanted, _ = modeling_gpt_neox.apply_rotary_pos_emb(q, q, cos, sin)
    assert torch.equal(Rotary(24, rotary_dim=6)(q, positions), wanted)


def test_interleaved_rotary_is_gpt_js():
    q, positions = draw(BATCH, HEADS, LENGTH, HEAD_DIM, dtype=torch.float32), torch.tensor([[3, 1, 4, 1, 5]])
    table = modeling_gptj.create_sinusoidal_positions(11, HEAD_DIM)[positions]  # the sines, then the cosines
    sin, cos = table.chunk(2, -1)
    wanted = modeling_gptj.apply_rotary_pos_emb(q.transpose(1, 2), sin, cos).transpose(1, 2)
    assert torch.equal(rotate(q, cos[:, None], sin[:, None], interleaved=True), wanted)
    torch.testing.assert_close(Rotary(HEAD_DIM, interleaved=True)(q, positions), wanted, rtol=0, atol=1e-5)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16)[:2].tolist() == [2**-0.5, 2**-1]
    assert alibi_slopes(1).tolist() == [2**-8]


@pytest.mark.parametrize("num_heads", range(1, 41))
def test_alibi_slopes_are_those_of_transformers(num_heads):
    wanted = modeling_bloom._get_alibi_slopes(num_heads, torch.device("cpu"))
    torch.testing.assert_close(alibi_slopes(num_heads), wanted.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [None, 0, 2, 11])
def test_alibi_is_the_formula(offset, dtype):
    heads, queries, keys = 3, 5, 7
    bias = alibi(heads, queries, keys, offset=offset, dtype=dtype)
    first = keys - queries if offset is None else offset
    assert (bias.shape, bias.dtype) == ((1, heads, queries, keys), dtype)
    for h, slope in enumerate([2**-4, 2**-8, 2**-2]):
        wanted = [[-slope * abs(i + first - j) for j in range(keys)] for i in range(queries)]
        assert bias[0, h].tolist() == wanted


def test_alibi_takes_an_offset_for_each_row():
    each = alibi(3, 2, 7, offset=torch.tensor([5, 1]))
    assert torch.equal(each, torch.cat([alibi(3, 2, 7, offset=5), alibi(3, 2, 7, offset=1)]))


def test_alibi_gives_blooms_weights():
    heads, length = 6, 7
    q, k = draw(1, heads, length, 4), draw(1, heads, length, 4, seed=11)
    by_key = modeling_bloom.build_alibi_tensor(torch.ones(1, length), heads, torch.float64).view(1, heads, 1, length)
    causal = masks.causal(length, length)
    mine, theirs = (
        weights(scores(q, k, causal, bias=b)) for b in (alibi(heads, length, length, dtype=torch.float64), by_key)
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)  # their slopes are float32


T5_KINDS = [
    (32, 128, True),
    (32, 128, False),
    (8, 20, True),
    (9, 33, False),
    (64, 512, True),
    (4, 3, True),
    (2, 2, False),
]


def t5(bias: RelativeBias, max_distance: int, bidirectional: bool) -> modeling_t5.T5Attention:
    """T5's attention with the weights of `bias`."""
    num_buckets, num_heads = bias.weight.shape
    config = T5Config(
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    theirs = modeling_t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    theirs.relative_attention_bias.load_state_dict(bias.state_dict())
    return theirs


@pytest.mark.parametrize(("num_buckets", "max_distance", "bidirectional"), T5_KINDS)
def test_relative_bias_is_t5s(num_buckets, max_distance, bidirectional):
    bias = RelativeBias(HEADS, num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    theirs = t5(bias, max_distance, bidirectional)
    for queries, keys in [(1, 1), (5, 7), (7, 5), (1, 2001), (2001, 1), (131, 137)]:
        for past in (0, 1, 13, 2000):
            assert torch.equal(bias(queries, keys, offset=past), theirs.compute_bias(queries, keys, None, past))
        if keys >= queries:
            assert torch.equal(bias(queries, keys), theirs.compute_bias(queries, keys, None, keys - queries))


def test_relative_bias_takes_an_offset_for_each_row():
    bias = RelativeBias(HEADS)
    each = bias(2, 7, offset=torch.tensor([5, 1]))
    assert torch.equal(each, torch.cat([bias(2, 7, offset=5), bias(2, 7, offset=1)]))


def test_buckets_are_exact_where_floating_point_is_not():
    """24 + 24 log(d/24) / log(81/24) is 32 at d = 36 and 40 at d = 54: 81/24 = (36/24)^3, 54/24 = (36/24)^2.

    T5 computes it in float32, whose logarithm differs between processors: there it is that or one less,
    and ours at every other distance.
    """
    bias = RelativeBias(1, num_buckets=48, max_distance=81, bidirectional=False)
    distances = torch.arange(82)
    ours = bias.buckets[81 + distances]
    assert ours[[35, 36, 53, 54]].tolist() == [31, 32, 39, 40]
    published = modeling_t5.T5Attention._relative_position_bucket(-distances, False, 48, 81)
    below = ours - published
    assert set(below[[36, 54]].tolist()) <= {0, 1}
    below[[36, 54]] = 0
    assert not below.any()


def test_relative_bias_is_trained_and_its_buckets_are_not_saved():
    bias = RelativeBias(HEADS).half()
    assert list(bias.state_dict()) == ["weight"]
    assert bias.buckets.dtype == torch.int64
    bias(3, 3).sum().backward()
    assert bias.weight.grad is not None
    # distances 0 (three times), 1 and 2 behind, and 1 and 2 ahead, whose buckets begin at 16
    found = {b: int(count) for b, count in enumerate(bias.weight.grad[:, 0]) if count}
    assert found == {0: 3, 1: 2, 2: 1, 17: 2, 18: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_heads": 3, "num_buckets": 7}, "num_buckets is 7; bidirectional=True needs an even number"),
        ({"num_heads": 3, "num_buckets": 2}, "num_buckets is 2; bidirectional=True needs an even number"),
        ({"num_heads": 3, "num_buckets": 1, "bidirectional": False}, "num_buckets is 1; bidirectional=False"),
        ({"num_heads": 3, "max_distance": 8}, "max_distance 8 is not over the 8 distances"),
    ],
)
def test_relative_bias_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        RelativeBias(**options)


@pytest.mark.parametrize("offset", [None, 0, torch.tensor([4, 1])], ids=str)
def test_shaw_bias_is_the_formula(offset):
    shaw, query, keys = ShawBias(HEAD_DIM, 2).double(), draw(BATCH, HEADS, LENGTH, HEAD_DIM), 11
    found = shaw(query, keys, offset=offset)
    assert found.shape == (BATCH, HEADS, LENGTH, keys)
    for b in range(BATCH):
        first = offset if isinstance(offset, int) else keys - LENGTH if offset is None else int(offset[b])
        for i in range(LENGTH):
            for j in range(keys):
                row = shaw.weight[min(max(j - (i + first), -2), 2) + 2]
                torch.testing.assert_close(found[b, :, i, j], query[b, :, i] @ row, rtol=0, atol=1e-14)


def test_biases_refuse_sizes_below_one():
    for make, name in [
        (lambda: alibi_slopes(0), "num_heads is 0"),
        (lambda: alibi(-1, 2, 2), "num_heads is -1"),
        (lambda: ShawBias(0, 2), "head_dim is 0"),
        (lambda: ShawBias(5, 0), "max_distance is 0"),
    ]:
        with pytest.raises(ValueError, match=f"{name}; it must be at least 1"):
            make()
