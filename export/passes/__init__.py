"""Graph passes: one file each, with one function, `apply(model: onnx_ir.Model) -> int`, the number of changes.

They run on every export, in this order; each leaves the graph computing the same.
"""

from collections.abc import Callable

import onnx_ir as ir

from isoformer.export.passes import (
    attention_layout,
    cached_attention,
    half_attention,
    merge_projections,
    rotary_embedding,
    strip_metadata,
    tidy,
    tie_weights,
)

PASSES: dict[str, Callable[[ir.Model], int]] = {
    "rotary_embedding": rotary_embedding.apply,
    "cached_attention": cached_attention.apply,
    "attention_layout": attention_layout.apply,
    "half_attention": half_attention.apply,
    "merge_projections": merge_projections.apply,
    "tie_weights": tie_weights.apply,
    "strip_metadata": strip_metadata.apply,
    "tidy": tidy.apply,
}


def apply_all(model: ir.Model) -> dict[str, int]:
    """Runs every pass; name → number of changes."""
    return {name: apply(model) for name, apply in PASSES.items()}
