"""What a user will want next, by self-attention over what they chose so far (SASRec).

    item_ids, attention_mask → items + positions → num_layers × causal EncoderBlock → vector of the last item
    → its product with every item's embedding → the best items that are not in the history

Kang and McAuley 2018, https://arxiv.org/abs/1808.09781.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.layers import EncoderBlock, FeedForward, NormOrder
from isoformer.models.signature import Axis, Signature, TensorSpec

BATCH, LENGTH = "batch_size", "history_length"


@dataclass(frozen=True)
class Config:
    """Shape and kind of a recommender.

    num_items: items are numbered from 0, and none of the numbers stands for padding. max_positions: the longest
    history. top_k: how many items are recommended. exclude_history: never recommend what is in the history.
    Other than in the paper the norm may stand behind the branches ("post") and the activation is any of `layers`.
    """

    num_items: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_positions: int
    top_k: int = 10
    exclude_history: bool = True
    activation: str = "relu"
    norm_order: NormOrder = "pre"
    norm_eps: float = 1e-8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("num_items", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions", "top_k")
        check(self, dict.fromkeys(sizes, 1))
        seen = self.max_positions if self.exclude_history else 0
        if seen + self.top_k > self.num_items:
            raise ValueError(
                f"of {self.num_items} items, {self.top_k} must be left to recommend"
                + f" behind a history of {seen}" * self.exclude_history
            )


TINY = Config(
    num_items=101,
    hidden_size=21,
    num_heads=3,
    num_layers=2,
    intermediate_size=37,
    max_positions=64,
    top_k=5,
)


def signature(config: Config) -> Signature:
    """item_ids (B, L), attention_mask (B, L) → items (B, k), scores (B, k), logits (B, num_items).

    items: the best first; scores: their logits. logits: of the whole catalogue, those of the history too.
    """
    inputs = (
        TensorSpec("item_ids", "int64", (BATCH, LENGTH), high=config.num_items),
        TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask", default=1),
    )
    outputs = (
        TensorSpec("items", "int64", (BATCH, config.top_k), kind="choices", along="logits"),
        TensorSpec("scores", "float32", (BATCH, config.top_k)),
        TensorSpec("logits", "float32", (BATCH, config.num_items)),
    )
    return Signature(inputs, outputs, axes={LENGTH: Axis(1, config.max_positions)})


def task(_config: Config) -> dict[str, Any]:
    """What the runtime needs to know to do the task."""
    return {"name": "recommend"}


class Model(nn.Module):
    """The last item's vector beside every item's embedding; the embeddings of history and catalogue are one table."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.num_items, config.hidden_size)
        nn.init.normal_(self.items.weight, std=config.hidden_size**-0.5)
        self.positions = positions.LearnedPositions(config.max_positions, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = _norm(config) if config.norm_order == "pre" else nn.Identity()

    def forward(self, item_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """item_ids (B, L), oldest first, and attention_mask (B, L) → the outputs of the signature.

        A history without an item has the logits 0.
        """
        x = self.hidden(item_ids, attention_mask)
        logits = self.logits(last_real(x, attention_mask))
        candidates = logits
        if self.config.exclude_history:
            candidates = logits.masked_fill(self.seen(item_ids, attention_mask), -torch.inf)
        scores, items = candidates.topk(self.config.top_k)
        return {"items": items, "scores": scores, "logits": logits}

    def hidden(self, item_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) and (B, L) → (B, L, E): what each place says of the item after it, as training reads it."""
        batch, length = item_ids.shape
        mask = masks.padding(attention_mask) & masks.causal(length, length, item_ids.device)
        mask = masks.normalize(mask, batch, self.config.num_heads, length, length)
        # Hidden size under the root: the scale that Vaswani et al. 2017 give to tied embeddings.
        x = self.items(item_ids) * self.config.hidden_size**0.5 + self.positions(count_back(attention_mask))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """(…, E) → (…, num_items)."""
        return x @ self.items.weight.T

    def seen(self, item_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, num_items): which items stand in the history, padding left out."""
        counts = self.items.weight.new_zeros(item_ids.shape[0], self.config.num_items)
        return counts.scatter_add(1, item_ids, masks.as_bool(attention_mask).to(counts.dtype)) > 0


def count_back(attention_mask: Tensor) -> Tensor:
    """(B, L) positions that count the real items behind each place: 0 for the last, wherever it stands.

    The paper pads on the left of a rectangle of fixed width, so there too the last item has always the same position.
    """
    counted = attention_mask.to(torch.int64).cumsum(1)
    return counted[:, -1:] - counted


def last_real(x: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L, E) → (B, E): each row's vector at its last real place, zero in a row without one."""
    real = masks.as_bool(attention_mask)
    last = real & (count_back(attention_mask) == 0)  # (B, L), at most one True a row
    return (last.to(x.dtype)[:, None] @ x)[:, 0]


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        _norm(config),
        _norm(config),
        norm_order=config.norm_order,
        dropout=config.dropout,
    )
