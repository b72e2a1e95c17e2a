"""Attention as PyTorch has it, as transformers has it and as people write it, with arguments of one form.

Each takes query, key and value (B, H, L, D) and a mask; scores are not scaled.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.masks.bert import Given, attention_of_bert
from benchmarks.masks.problem import B, D, H, L
from isoformer.models.attention import attend


class Sdpa(nn.Module):
    """PyTorch's own function; a mask of booleans, or of 0 and -inf."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


class Isoformer(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return attend(query, key, value, mask, scale=1.0)


class MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention, its projections the identity; True is "left out" there."""

    def __init__(self, by_keys: bool, need_weights: bool) -> None:
        super().__init__()
        self.by_keys, self.need_weights = by_keys, need_weights
        self.inner = nn.MultiheadAttention(H * D, H, bias=False, batch_first=True)
        identity = torch.eye(H * D)
        with torch.no_grad():
            self.inner.in_proj_weight.copy_(torch.cat((math.sqrt(D) * identity, identity, identity)))
            self.inner.out_proj.weight.copy_(identity)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
        if self.by_keys:
            masks = {"key_padding_mask": mask == 0}
        else:
            masks = {"attn_mask": ~mask.expand(B, H, L, L).flatten(0, 1)}
        out = self.inner(q, k, v, need_weights=self.need_weights, **masks)[0]
        return out.unflatten(2, (H, D)).transpose(1, 2)


class Additive(nn.Module):
    """softmax(scores + filler where masked) @ value."""

    def __init__(self, filler: float) -> None:
        super().__init__()
        self.filler = filler

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        added = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, self.filler)
        return (query @ key.mT + added).softmax(-1) @ value


class TimesScores(nn.Module):
    """softmax(scores * mask) @ value."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return ((query @ key.mT) * mask).softmax(-1) @ value


class TimesWeights(nn.Module):
    """(softmax(scores) * mask) @ value."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return ((query @ key.mT).softmax(-1) * mask) @ value


class Bert(nn.Module):
    """What is left of transformers' BertModel in `bert`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.bert = attention_of_bert(kind, Given())

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        x = torch.cat([x.transpose(1, 2).flatten(2) for x in (query, key, value)], dim=-1)
        return self.bert(inputs_embeds=x, attention_mask=mask).last_hidden_state.unflatten(2, (H, D)).transpose(1, 2)
