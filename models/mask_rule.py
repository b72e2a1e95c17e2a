"""Which masks a model applies, and the small inputs from which its graph builds them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isoformer.models import masks
from isoformer.models.positions import count_real
from isoformer.models.signature import TensorSpec

INPUTS = ("attention_mask", "sequence_lengths", "segment_ids", "prefix_lengths")


@dataclass(frozen=True)
class MaskRule:
    """The AND of what the inputs say, causality and a sliding window.

        attention_mask     (B, Lk), (B, Lq, Lk) or (B, heads, Lq, Lk) by `rank`: 1 takes part
        sequence_lengths   (B,): so many keys from the left take part
        segment_ids        (B, Lk): sequences packed into a row, numbered from 1; 0 is padding
        prefix_lengths     (B,): so many first keys are seen by every query, in spite of `causal`

    left_window, right_window: how many keys before and after itself a query sees; None is no limit. They count
    the tokens of a two-axis attention_mask, and places elsewhere.

    Raises ValueError for an unknown input, a rank that is not 2, 3 or 4, no heads, a negative window,
    and prefix_lengths without causal.
    """

    inputs: tuple[str, ...] = ("attention_mask",)
    rank: int = 2
    heads: int = 1
    causal: bool = False
    left_window: int | None = None
    right_window: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.inputs, str):
            raise ValueError(f"mask inputs are several names, like ({self.inputs!r},), not one text")
        for name in self.inputs:
            if name not in INPUTS or self.inputs.count(name) > 1:
                raise ValueError(f"mask inputs are {', '.join(INPUTS)}, each once, not {', '.join(self.inputs)}")
        if self.rank not in (2, 3, 4):
            raise ValueError(f"the rank of attention_mask is {self.rank}; it is 2, 3 or 4")
        if type(self.heads) is not int or self.heads < 1:
            raise ValueError(f"attention_mask is for {self.heads!r} heads; it must be a whole number, at least 1")
        masks.check_window(self.left_window, self.right_window)
        if "prefix_lengths" in self.inputs and not self.causal:
            raise ValueError("prefix_lengths open a causal mask; set causal, or leave them out")

    def specs(self, queries: str, keys: str, *, prefix: str = "", batch: str = "batch_size") -> list[TensorSpec]:
        """The inputs as a Signature lists them, each name behind `prefix`."""
        shape = {2: (batch, keys), 3: (batch, queries, keys), 4: (batch, self.heads, queries, keys)}[self.rank]
        made = {
            "attention_mask": TensorSpec(f"{prefix}attention_mask", "int64", shape, kind="mask", default=1),
            "segment_ids": TensorSpec(f"{prefix}segment_ids", "int64", (batch, keys), kind="segments", default=1),
        }
        made["sequence_lengths"] = TensorSpec(f"{prefix}sequence_lengths", "int64", (batch,), "lengths", along=keys)
        made["prefix_lengths"] = TensorSpec(f"{prefix}prefix_lengths", "int64", (batch,), "prefix", along=keys)
        return [made[name] for name in self.inputs]

    def build(
        self,
        given: Mapping[str, Tensor],
        query_length: int,
        key_length: int,
        *,
        prefix: str = "",
        batch: int,
        device: torch.device | None = None,
    ) -> Tensor | None:
        """The mask (B or 1, 1 or heads, Lq or 1, Lk) of the inputs by name; None where nothing is masked.

        Raises ValueError for an input that is not given or of another shape than `specs` says, with both.
        """
        sizes = {"batch": batch, "queries": query_length, "keys": key_length}
        for name in self.inputs:
            if f"{prefix}{name}" not in given:
                raise ValueError(f"the mask is built from {prefix}{name}, which is not given ({', '.join(given)})")
        for spec in self.specs("queries", "keys", batch="batch"):
            tensor, wanted = given[f"{prefix}{spec.name}"], tuple(sizes.get(str(axis), axis) for axis in spec.axes)
            if tensor.ndim != len(wanted) or not masks.fits(tensor, wanted, repeated=()):  # pyright: ignore
                raise ValueError(f"{prefix}{spec.name} has shape {tuple(tensor.shape)}; it is {wanted} here")
        inputs = {name: given[f"{prefix}{name}"] for name in self.inputs}
        parts: list[Tensor | None] = []
        if (attention_mask := inputs.get("attention_mask")) is not None:
            kinds = {2: masks.padding, 3: lambda mask: mask[:, None], 4: lambda mask: mask}
            parts.append(kinds[self.rank](attention_mask))
        if (lengths := inputs.get("sequence_lengths")) is not None:
            parts.append(masks.lengths(lengths, key_length))
        if (numbers := inputs.get("segment_ids")) is not None:
            parts.append(masks.segments(numbers.narrow(1, key_length - query_length, query_length), numbers, padding=0))
        if (prefixes := inputs.get("prefix_lengths")) is not None:
            parts.append(masks.prefix(query_length, key_length, prefixes))
        elif self.causal:
            parts.append(masks.causal(query_length, key_length, device))
        if self.left_window is not None or self.right_window is not None:
            window = (self.left_window, self.right_window)
            counted = count_real(attention_mask) if attention_mask is not None and self.rank == 2 else None
            parts.append(masks.sliding_window(query_length, key_length, *window, device, positions=counted))
        return masks.combine(*parts)
