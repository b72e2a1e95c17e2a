"""What a variant's quality gate found, in words."""

from typing import Any


def line(gate: dict[str, Any]) -> str:
    """The gate's record in a manifest, as one line for people."""
    if "cosine" in gate:
        return (
            f"mean cosine with float32's vectors {gate['cosine']:.4f}, Spearman's correlation of their similarities "
            f"{gate['spearman']:.4f} ({gate['texts']} texts)"
        )
    if "same_labels" in gate:
        return f"{gate['same_labels']:.1%} of the texts get float32's label ({gate['texts']} texts)"
    return (
        f"perplexity {gate['perplexity']:.2f}, {gate['ratio']:.3f} times float32's; "
        f"{gate['agreement']:.1%} of the likeliest tokens the same ({gate['tokens']} tokens)"
    )
