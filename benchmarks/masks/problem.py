"""The small attention that every tool computes, and names for what comes out."""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.masks.bert import HEAD_SIZE, HEADS

B, H, L, D = 3, HEADS, 5, HEAD_SIZE
EXTREME = 60000.0  # the largest float16 is 65504
Array = np.ndarray


@dataclass(frozen=True)
class Problem:
    """query, key, value (B, H, L, D) and a mask (B, 1, L, L); scores are query @ key^T, without a scale."""

    query: Array
    key: Array
    value: Array
    mask: Array

    def weights(self) -> Array:
        """(B, H, L, L) in float64: softmax over the keys that take part, zero in a row without keys."""
        scores = np.where(self.mask, self.query @ self.key.swapaxes(2, 3), -np.inf)
        has_key = self.mask.any(-1, keepdims=True)
        exponentials = np.exp(scores - np.where(has_key, scores.max(-1, keepdims=True), 0))
        return exponentials / np.where(has_key, exponentials.sum(-1, keepdims=True), 1)

    def rounded(self, dtype: str) -> "Problem":
        """The same with the numbers that a tool of that dtype is given."""
        kind = getattr(ml_dtypes, dtype, dtype)
        query, key, value = (array.astype(kind).astype(np.float64) for array in (self.query, self.key, self.value))
        return Problem(query, key, value, self.mask)


def problems() -> dict[str, Problem]:
    """rows: row 2 of sample 0 and all of sample 1 see no key; keys: key padding, none in sample 1; extreme."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, B, H, L, D))
    query /= math.sqrt(D)
    rows = rng.random((B, 1, L, L)) < 0.5
    rows[..., 0] = True
    rows[0, :, 2] = False
    rows[1] = False
    keys = np.broadcast_to(np.arange(L) < np.array([3, 0, L])[:, None, None, None], (B, 1, L, L))
    sharp_query, sharp_key = np.zeros_like(query), np.zeros_like(key)
    sharp_query[..., 0] = 1
    sharp_key[..., 0] = np.where(np.arange(L) == 1, EXTREME, -EXTREME)
    visible = np.broadcast_to(np.arange(L) != 1, (B, 1, L, L))
    return {
        "rows": Problem(query, key, value, rows),
        "keys": Problem(query, key, value, keys),
        "extreme": Problem(sharp_query, sharp_key, value, visible),
    }


def name_of(output: Array, problem: Problem, where: Array) -> str:
    """What the rows `where` (B, H, L) hold: zero to the last bit, NaN, or what they are within 1% of."""
    found = output[where]
    if np.isnan(found).any():
        return "NaN"
    if (found == 0).all():
        return "zero"
    unmasked = Problem(problem.query, problem.key, problem.value, np.ones_like(problem.mask))
    wanted = problem.weights() @ problem.value
    answers = {
        "right" if wanted[where].any() else "nearly zero": wanted,
        "mean of all values": np.broadcast_to(problem.value.mean(2, keepdims=True), output.shape),
        "as if unmasked": unmasked.weights() @ problem.value,
    }
    near = [n for n, a in answers.items() if np.abs(found - a[where]).max() <= 0.01 * np.abs(problem.value).max()]
    return near[0] if near else "other"


def judge(outputs: dict[str, Array | str], dtype: str) -> dict[str, Any]:
    """The columns of the table from the outputs of the problems; a string stands for an error."""
    result: dict[str, Any] = {"row": None, "sample": None, "largest_error": None, "extreme": None}
    for name, output in outputs.items():
        problem = problems()[name].rounded(dtype)
        columns = ["extreme"] if name == "extreme" else ["row", "sample"] if name == "rows" else ["sample"]
        if isinstance(output, str):
            result |= dict.fromkeys(columns, "error") | {"error": output}
            continue
        if output.ndim == 3:  # (B, L, H * D)
            output = output.reshape(B, L, H, D).swapaxes(1, 2)
        output = output.astype(np.float64)
        empty = np.broadcast_to(~problem.mask.any(-1), output.shape[:3])
        if name == "extreme":
            result["extreme"] = name_of(output, problem, ~empty).replace("as if unmasked", "the masked key wins")
            continue
        error = np.abs(output - problem.weights() @ problem.value)[~empty]
        result["largest_error"] = float(error.max())  # NaN stays NaN
        sample = np.arange(B)[:, None, None] == 1
        result["sample"] = name_of(output, problem, empty & sample)
        if name == "rows":
            result["row"] = name_of(output, problem, empty & ~sample)
    return result
