import math

import pytest
import torch
from torch import Tensor, nn

from isoformer.models.attention import MultiHeadAttention
from isoformer.models.layers import ACTIVATIONS, EncoderBlock, FeedForward, NormOrder, activation

FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name):
    x = [-7.0, -1.3, -0.2, 0.0, 0.5, 1.1, 3.0]
    expected = torch.tensor([FORMULAS[name](value) for value in x], dtype=torch.float64)
    torch.testing.assert_close(activation(name)(torch.tensor(x, dtype=torch.float64)), expected, atol=1e-14, rtol=0)


def test_an_unknown_activation_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'mish' is not one of gelu, gelu_tanh, relu, silu, tanh"):
        activation("mish")
    with pytest.raises(ValueError, match=r"'mish' is not one of"):
        FeedForward(3, 5, "mish")


def test_feed_forward_is_two_linear_maps_around_the_activation():
    layer = FeedForward(2, 3, "relu").double()
    up, down = [[1.0, 2.0], [-3.0, 1.0], [0.5, -1.0]], [[1.0, -2.0, 3.0], [5.0, 7.0, -1.0]]
    with torch.no_grad():
        layer.up.weight.copy_(torch.tensor(up))
        layer.up.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.down.weight.copy_(torch.tensor(down))
        layer.down.bias.copy_(torch.tensor([-0.25, 0.75]))
    # x = (1, 1): up 3.5, -3, 1.5 → relu 3.5, 0, 1.5 → 3.5 + 4.5 - 0.25 and 17.5 - 1.5 + 0.75
    # x = (-1, 0): up -0.5, 2, 1.5 → relu 0, 2, 1.5 → -4 + 4.5 - 0.25 and 14 - 1.5 + 0.75
    out = layer(torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64))
    assert out.tolist() == [[[7.75, 16.75], [0.25, 13.25]]]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_feed_forward_applies_the_activation_that_it_is_given(name):
    layer = FeedForward(1, 1, name).double()
    nn.init.ones_(layer.up.weight)
    nn.init.ones_(layer.down.weight)
    nn.init.zeros_(layer.up.bias)
    nn.init.zeros_(layer.down.bias)
    assert layer(torch.tensor([[[-0.7]]], dtype=torch.float64)).item() == pytest.approx(FORMULAS[name](-0.7), abs=1e-14)


class Affine(nn.Module):
    def __init__(self, factor: float, term: float) -> None:
        super().__init__()
        self.factor, self.term = factor, term

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.term


class Weighted(nn.Module):
    """An attention whose answer shows which argument came where."""

    mask: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.mask = mask
        return 2 * query + 3 * key + 5 * value


def affine_block(order: NormOrder, dropout: float = 0.0) -> EncoderBlock:
    return EncoderBlock(Weighted(), Affine(11, 0), Affine(1, 7), Affine(-1, 13), norm_order=order, dropout=dropout)


def test_a_post_norm_block_normalises_each_sum():
    # x = 2: attention 20, sum 22, norm 29; feed-forward 319, sum 348, norm -335
    assert affine_block("post")(torch.tensor(2.0)).item() == -335


def test_a_pre_norm_block_normalises_what_enters_each_branch():
    # x = 2: norm 9, attention 90, sum 92; norm -79, feed-forward -869, sum -777
    assert affine_block("pre")(torch.tensor(2.0)).item() == -777


def test_post_is_the_default_order():
    block = EncoderBlock(Weighted(), Affine(11, 0), Affine(1, 7), Affine(-1, 13))
    assert block(torch.tensor(2.0)).item() == -335


@pytest.mark.parametrize(("order", "alone"), [("post", 4.0), ("pre", 2.0)])
def test_dropout_acts_on_both_branches_in_training_alone(order, alone):
    block = affine_block(order, dropout=1.0)
    assert block.train()(torch.tensor(2.0)).item() == alone  # post: 2 + 7, then 13 - 9
    assert block.eval()(torch.tensor(2.0)).item() == {"post": -335, "pre": -777}[order]


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_block_hands_its_mask_to_attention(order):
    block = affine_block(order)
    mask = torch.tensor([[True, False]])
    block(torch.tensor(2.0), mask)
    assert block.attention.mask is mask
    block(torch.tensor(2.0))
    assert block.attention.mask is None


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="'sandwich' is neither 'post' nor 'pre'"):
        EncoderBlock(Weighted(), Affine(1, 0), Affine(1, 0), Affine(1, 0), norm_order="sandwich")  # pyright: ignore


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_whole_block_keeps_masked_tokens_out_and_trains_every_weight(order):
    torch.manual_seed(0)
    block = EncoderBlock(
        MultiHeadAttention(6, 3), FeedForward(6, 11), nn.LayerNorm(6), nn.LayerNorm(6), norm_order=order
    ).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    out = block(x, mask)
    assert out.shape == x.shape
    changed = torch.where(mask[:, :, None] == 1, x, torch.randn_like(x))
    torch.testing.assert_close(block(changed, mask)[mask == 1], out[mask == 1], atol=1e-12, rtol=0)
    assert not torch.allclose(block(changed)[mask == 1], out[mask == 1], atol=1e-3)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name != "attention.key_linear.bias":  # softmax does not see what it adds
            assert parameter.grad.abs().max() > 1e-6, name
