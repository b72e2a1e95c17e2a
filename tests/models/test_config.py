"""The limits of a configuration, which docs/security.md states."""

import dataclasses
from pathlib import Path

import pytest

from isoformer.models.config import MOST, MOST_LAYERS
from isoformer.models.families import encoder

PAGE = Path(__file__).resolve().parents[2] / "docs/security.md"


@pytest.mark.parametrize(("field", "most"), [("num_layers", MOST_LAYERS), ("vocab_size", MOST)])
def test_more_than_the_most_is_refused(field: str, most: int) -> None:
    assert getattr(dataclasses.replace(encoder.TINY, **{field: most}), field) == most
    with pytest.raises(ValueError, match=f"{field} is more than {most:,}, which is the most"):
        dataclasses.replace(encoder.TINY, **{field: most + 1})


def test_the_page_has_these_limits() -> None:
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| a checkpoint: ")]
    assert row.endswith(f"| {MOST_LAYERS:,}, and not more than tensors; 2^{MOST.bit_length() - 1} |")
