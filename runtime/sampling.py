"""From logits to the next token: logits processors as plain functions, and the draw.

A processor takes the ids so far and the logits (vocabulary,) of the next, and returns logits; what it
leaves out is -inf. Those here compute what the processors of the same name in transformers do.
"""

from collections.abc import Callable, Sequence

import numpy as np

from isoformer.runtime.errors import InputError

Processor = Callable[[Sequence[int], np.ndarray], np.ndarray]
SORTED = 1024  # tokens that top_p sorts, as long as they hold its share: sorting a vocabulary takes milliseconds


def repetition_penalty(penalty: float) -> Processor:
    """Makes tokens that occurred less likely: logit / penalty where positive, logit * penalty where negative.

    Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1.
    """

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        seen = np.unique(np.asarray(ids, np.int64))
        result = logits.copy()
        result[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        return result

    return process


def suppress(tokens: Sequence[int]) -> Processor:
    """Leaves these tokens out."""
    places = list(tokens)

    def process(_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        result = logits.copy()
        result[places] = -np.inf
        return result

    return process


def force(token: int, place: int) -> Processor:
    """Leaves nothing but `token` where it would become ids[place]."""

    def process(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        if len(ids) != place:
            return logits
        result = np.full_like(logits, -np.inf)
        result[token] = 0.0
        return result

    return process


def temperature(value: float) -> Processor:
    """logits / value, less their largest, so that no small temperature overflows: above 1 flatter, below 1 sharper."""

    def process(_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return (logits - logits.max()) / value

    return process


def top_k(k: int) -> Processor:
    """Leaves the k likeliest tokens, and those as likely as the last of them."""

    def process(_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        kth = max(0, len(logits) - k)
        return np.where(logits < np.partition(logits, kth)[kth], -np.inf, logits)

    return process


def top_p(p: float) -> Processor:
    """Leaves the fewest tokens whose probabilities add up to p or more, the likeliest first.

    Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1.
    """

    def process(_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        probabilities = softmax(logits)
        edge = max(0, len(logits) - SORTED)
        likely = np.flatnonzero((logits >= np.partition(logits, edge)[edge]) & (logits > -np.inf))
        rest = max(0.0, 1 - probabilities[likely].sum())
        if rest > 1 - p:  # the others are needed too
            likely, rest = np.arange(len(logits)), 0.0
        upwards = likely[np.argsort(logits[likely], kind="stable")]
        left = rest + probabilities[upwards].cumsum() > 1 - p
        left[-1] = True
        result = np.full_like(logits, -np.inf)
        result[upwards[left]] = logits[upwards[left]]
        return result

    return process


def min_p(p: float) -> Processor:
    """Leaves the tokens that are at least p times as likely as the likeliest.

    Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3.
    """

    def process(_ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        probabilities = softmax(logits)
        return np.where(probabilities < p * probabilities.max(), -np.inf, logits)

    return process


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)); needs one finite value."""
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """x - log(sum(exp(x))) along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def apply(processors: Sequence[Processor], ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """The logits after every processor in turn. Raises InputError when none is finite, or one is NaN."""
    for process in processors:
        logits = process(ids, logits)
    if not np.isfinite(logits.max()):
        raise InputError(f"no next token can be chosen behind {len(ids)} tokens: the largest logit is {logits.max()}")
    return logits


def draw(logits: np.ndarray, rng: np.random.Generator) -> int:
    """A token with the probability that softmax gives it; one number of `rng` each time."""
    bounds = softmax(logits).cumsum()
    # The last bound is 1 but for rounding; a product with it never passes it.
    return int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
