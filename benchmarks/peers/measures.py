"""What is computed from measurements: quartiles, ratios, accuracy, and the least time that the machine allows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# MiniLM-L6: what its products cost
LAYERS, HIDDEN, INTERMEDIATE = 6, 384, 1536
LINEAR_WEIGHTS = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE)
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def quartiles(values: Sequence[float] | np.ndarray) -> list[float]:
    """First quartile, median and third quartile."""
    return [float(value) for value in np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))]


def ratios(other: Sequence[float], own: Sequence[float]) -> list[float]:
    """Of the same turns: how many times faster than the other, as quartiles. ValueError where turns are missing."""
    if len(other) != len(own) or not own:
        raise ValueError(f"{len(other)} and {len(own)} turns cannot be compared")
    return quartiles(np.asarray(other) / np.asarray(own))


def accuracy(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Of embeddings (N, E) beside the reference's: cosines, the largest difference, Spearman of all pairs' cosines.

    ValueError for other shapes or numbers that are not finite.
    """
    from scipy.stats import spearmanr

    if reference.shape != found.shape or len(reference) < 3:
        raise ValueError(f"embeddings of shape {found.shape} cannot be compared with {reference.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        raise ValueError("embeddings that are not finite cannot be compared")
    exact, other = (array.astype(np.float64) for array in (reference, found))
    exact, other = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in (exact, other))
    # 1 − cosine as half the squared distance of unit vectors, which does not cancel
    distances = ((exact - other) ** 2).sum(1) / 2
    pairs = np.triu_indices(len(exact), 1)
    correlation: Any = spearmanr((exact @ exact.T)[pairs], (other @ other.T)[pairs])
    return {
        "mean_distance": float(distances.mean()),
        "mean_cosine": float(1 - distances.mean()),
        "least_cosine": float(1 - distances.max()),
        "largest_difference": float(np.abs(exact - other).max()),
        "spearman": float(correlation.statistic),
    }


def operations(lengths: Sequence[int]) -> tuple[float, float]:
    """Floating-point operations on real tokens only, rows of these lengths: of linear layers, of attention."""
    linear = 2.0 * LINEAR_WEIGHTS * sum(lengths)
    return linear, 4.0 * LAYERS * HIDDEN * sum(length * length for length in lengths)


def floor_ms(lengths: Sequence[int], linear: str, attention: str, roof: Mapping[str, Any]) -> float:
    """The least milliseconds that the measured machine allows: its products at their peak, or one read of the weights.

    linear, attention: precisions. roof: `products`, operations a second by precision, and `read`, bytes a second.
    """
    first, second = operations(lengths)
    computing = first / roof["products"][linear] + second / roof["products"][attention]
    reading = LINEAR_WEIGHTS * BYTES[linear] / roof["read"]
    return max(computing, reading) * 1e3


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.log(np.asarray(values, float)).mean()))
