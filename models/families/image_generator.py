"""Autoregressive image models, as Image GPT: a decoder that writes an image pixel by pixel, behind the image's class.

    class, pixel 0, pixel 1, …  →  scores of pixel 0, pixel 1, pixel 2, …        row by row, from the top left

A pixel is one of a few levels. Levels, classes and "no class" share one vocabulary, and the graph is a decoder's
(`families/decoder.py`): whatever drives that one drives this one. Chen et al. 2020 (Image GPT,
https://proceedings.mlr.press/v119/chen20s.html), Parmar et al. 2018 (Image Transformer,
https://arxiv.org/abs/1802.05751).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoformer.models import cache, positions
from isoformer.models.config import check
from isoformer.models.families import decoder
from isoformer.models.signature import Signature


@dataclass(frozen=True)
class Config:
    """Shape and kind of an image model.

    Tokens: 0 … levels - 1 are pixels, from dark to bright, levels + c is the class labels[c], and the last one stands
    for "no class". An image has height × width pixels. The blocks are GPT-2's: pre-norm, biases, GELU.
    """

    levels: int
    labels: tuple[str, ...]
    height: int
    width: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("height", "width", "hidden_size", "num_heads", "num_layers", "intermediate_size")
        check(self, {"levels": 2} | dict.fromkeys(sizes, 1))
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {', '.join(self.labels)}; each must be another")

    @property
    def no_class(self) -> int:
        """The token in front of an image of any class."""
        return self.levels + len(self.labels)

    @property
    def decoder(self) -> decoder.Config:
        """The model as a decoder's: its positions are the class's and each pixel's."""
        return decoder.Config(
            vocab_size=self.no_class + 1,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            intermediate_size=self.intermediate_size,
            max_positions=1 + self.height * self.width,
            norm_kind="layer",
            norm_eps=self.norm_eps,
            position_kind="learned",
            activation=self.activation,
            gated=False,
            qkv_bias=True,
            out_bias=True,
            feed_forward_bias=True,
            tied_embeddings=False,
        )


TINY = Config(
    levels=5,
    labels=("round", "square", "other"),
    height=7,
    width=11,
    hidden_size=24,
    num_heads=3,
    num_layers=2,
    intermediate_size=37,
)


def signature(config: Config) -> Signature:
    """A decoder's, see `decoder.signature`: position 0 is the class's, 1 + row * width + column a pixel's."""
    return decoder.signature(config.decoder)


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to draw."""
    return {
        "name": "generate-image",
        "kind": "autoregressive",
        "height": config.height,
        "width": config.width,
        "levels": config.levels,
        "labels": list(config.labels),
        "no_class": config.no_class,
    }


class Model(nn.Module):
    """The decoder with positions of two axes; `forward` is the graph, `scores` is for training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.decoder = decoder.Model(config.decoder)
        self.decoder.add_module("positions", GridPositions(config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_positions: Tensor,
        **past: Tensor,
    ) -> dict[str, Tensor]:
        """The inputs of the signature by name → its outputs by name."""
        return self.decoder(input_ids, attention_mask, position_ids, logits_positions, **past)

    def scores(self, classes: Tensor, pixels: Tensor) -> Tensor:
        """classes (B,) tokens, pixels (B, N) levels in raster order → logits (B, N, levels) of each pixel, given the
        class and the pixels before it."""
        input_ids = torch.cat([classes[:, None], pixels[:, :-1]], 1)
        where = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        layer = self.config.decoder
        nothing = cache.empty(
            len(input_ids), layer.num_heads, layer.hidden_size // layer.num_heads, dtype=self.decoder.head.weight.dtype
        )
        kinds = {"key": nothing.key, "value": nothing.value}
        past = {f"past_key_values.{i}.{kind}": x for i in range(layer.num_layers) for kind, x in kinds.items()}
        logits = self.decoder(input_ids, torch.ones_like(input_ids), where, where, **past)["logits"]
        return logits[:, :, : self.config.levels]


class GridPositions(nn.Module):
    """Position 0: a vector of its own; position 1 + row * width + column: rows[row] + columns[column], all learned."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        self.start = nn.Parameter(torch.empty(config.hidden_size).normal_(std=0.02))
        self.rows = positions.LearnedPositions(config.height, config.hidden_size)
        self.columns = positions.LearnedPositions(config.width, config.hidden_size)

    def forward(self, where: Tensor) -> Tensor:
        """where (B, L) → (B, L, E). Raises ValueError when a position is not of the image."""
        pixel = (where - 1).clamp(min=0)
        row = torch.div(pixel, self.width, rounding_mode="floor")
        at = self.rows(row) + self.columns(pixel - row * self.width)
        return torch.where((where == 0)[:, :, None], self.start, at)
