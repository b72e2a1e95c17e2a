"""The relations, held against small numpy models: one that obeys them all, and one that breaks each."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.parity import Comparison
from isoformer.runtime.relations import ROWS, key_axis, relations

BATCH, LENGTH = "batch_size", "sequence_length"
TABLE = np.random.default_rng(3).standard_normal((13, 5))
IDS = TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=13)
MASK = TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask")
SIGNATURE = Signature(
    (IDS, MASK),
    (TensorSpec("tokens", "float64", (BATCH, LENGTH, 5)), TensorSpec("pooled", "float64", (BATCH, 5))),
    {BATCH: (1, None), LENGTH: (1, 31)},
    ("right", "left"),
)
TOLERANCES = {"tokens": 1e-9, "pooled": 1e-9}

Run = Callable[[Arrays], Arrays]


def check(run: Run, signature: Signature = SIGNATURE, seed: int = 0) -> list[Comparison]:
    tolerances = {spec.name: 1e-9 for spec in signature.outputs}
    return list(relations(signature, tolerances, run, "numpy", np.random.default_rng(seed)))


def failing(comparisons: Sequence[Comparison]) -> set[str]:
    """The relations that do not hold, without row and sizes."""
    return {c.case.rsplit("-", 1)[0].removesuffix("-left").split("-")[0] for c in comparisons if not c.passed}


def read(inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the tokens (B, L, 5) and the mask (B, L, 1)."""
    return TABLE[inputs["input_ids"]], (inputs["attention_mask"] != 0)[..., None]


def answer(x: np.ndarray, pooled: np.ndarray) -> Arrays:
    return {"tokens": x + pooled[:, None], "pooled": pooled}


def masked_mean(inputs: Arrays) -> Arrays:
    """The mean over the tokens that take part, added to every token: obeys."""
    x, kept = read(inputs)
    return answer(x, (x * kept).sum(1) / np.maximum(kept.sum(1), 1))


def counted_positions(inputs: Arrays) -> Arrays:
    """Positions that count the tokens that take part: obeys on both sides."""
    x, kept = read(inputs)
    x = x + np.sin(kept.cumsum(1))
    return answer(x, (x * kept).sum(1) / np.maximum(kept.sum(1), 1))


def mean_of_the_batch(inputs: Arrays) -> Arrays:
    """Every row sees the whole batch."""
    outputs = masked_mean(inputs)
    return answer(read(inputs)[0], outputs["pooled"] - outputs["pooled"].mean(0))


def nan_beside_an_empty_row(inputs: Arrays) -> Arrays:
    """A sequence without any key spoils its neighbours."""
    x, kept = read(inputs)
    with np.errstate(invalid="ignore"):
        empty = np.where(kept.any(1).all(), 0.0, np.nan)
    return answer(x, masked_mean(inputs)["pooled"] + empty)


def mean_over_the_padding(inputs: Arrays) -> Arrays:
    """Padding counts in the denominator: the answer depends on how wide the rectangle is."""
    x, kept = read(inputs)
    return answer(x, (x * kept).sum(1) / x.shape[1])


def positions_from_the_left(inputs: Arrays) -> Arrays:
    """Positions count from the left end of the rectangle: padding on the left moves the words."""
    x, kept = read(inputs)
    x = x + np.sin(np.arange(x.shape[1]))[None, :, None]
    return answer(x, (x * kept).sum(1) / np.maximum(kept.sum(1), 1))


def mean_over_the_holes(inputs: Arrays) -> Arrays:
    """What stands under the mask is read wherever it lies between two tokens that take part."""
    x, kept = read(inputs)
    span = np.maximum.accumulate(kept, 1) & np.maximum.accumulate(kept[:, ::-1], 1)[:, ::-1]
    return answer(x, (x * span).sum(1) / np.maximum(span.sum(1), 1))


def mask_ignored(inputs: Arrays) -> Arrays:
    x, _ = read(inputs)
    return answer(x, x.mean(1))


# ------------------------------------------------------------------------------------- whole signatures


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("run", [masked_mean, counted_positions])
def test_models_that_obey_pass(run: Run, seed: int) -> None:
    comparisons = check(run, seed=seed)
    assert failing(comparisons) == set()
    relations_seen = {c.case.rsplit("-", 1)[0] for c in comparisons}
    assert relations_seen == {*(f"alone-{row}" for row in range(ROWS)), "padded-left", "padded-right", "content"}
    assert {c.output for c in comparisons} == {"tokens", "pooled"}
    assert all(c.values > 0 and c.check == "relation" and c.runtime == "numpy" for c in comparisons)
    assert all(c.bound == 2e-9 for c in comparisons)


@pytest.mark.parametrize(
    ("run", "broken"),
    [
        (mean_of_the_batch, {"alone"}),
        (nan_beside_an_empty_row, {"alone"}),
        (mean_over_the_padding, {"padded"}),
        (mean_over_the_holes, {"content"}),
        (mask_ignored, {"padded", "content"}),
        (positions_from_the_left, {"padded"}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_broken_is_named(run: Run, broken: set[str], seed: int) -> None:
    assert failing(check(run, seed=seed)) == broken


def test_only_the_side_that_changes_the_answer_fails() -> None:
    cases = {c.case.rsplit("-", 1)[0] for c in check(positions_from_the_left) if not c.passed}
    assert cases == {"padded-left"}


def test_only_the_output_that_is_wrong_fails() -> None:
    def run(inputs: Arrays) -> Arrays:
        return {"tokens": masked_mean(inputs)["tokens"], "pooled": mean_over_the_padding(inputs)["pooled"]}

    assert {c.output for c in check(run) if not c.passed} == {"pooled"}


def test_error_of_the_tolerance_on_either_side_passes() -> None:
    """The two runs may be off to different sides, by the tolerance each; not by more."""

    def shaky(size: float) -> Run:
        signs = iter(np.resize([1.0, -1.0], 1000))

        def run(inputs: Arrays) -> Arrays:
            off = size * next(signs)
            return {name: value + off for name, value in masked_mean(inputs).items()}

        return run

    assert failing(check(shaky(0.99e-9))) == set()
    assert failing(check(shaky(1.2e-9)))


def test_nan_everywhere_fails_everywhere() -> None:
    comparisons = check(lambda inputs: {name: value * np.nan for name, value in masked_mean(inputs).items()})
    assert comparisons
    assert not any(c.passed for c in comparisons)


def test_model_that_refuses_its_inputs_fails() -> None:
    def run(_: Arrays) -> Arrays:
        raise InputError("this model takes nothing")

    comparisons = check(run)
    assert comparisons
    assert not any(c.passed for c in comparisons)
    assert {c.note for c in comparisons} == {"this model takes nothing"}


def test_the_same_seed_makes_the_same_cases() -> None:
    one, same, other = ([c.case for c in check(masked_mean, seed=seed)] for seed in (3, 3, 5))
    assert one == same
    assert one != other


def test_inputs_are_as_the_signature_says() -> None:
    seen: list[Arrays] = []

    def run(inputs: Arrays) -> Arrays:
        seen.append(inputs)
        return masked_mean(inputs)

    check(run)
    for inputs in seen:
        assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == np.int64
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        assert 1 <= inputs["input_ids"].shape[1] <= 31
        assert set(np.unique(inputs["attention_mask"])) <= {0, 1}
    assert any((~inputs["attention_mask"].any(1)).any() for inputs in seen)


# ------------------------------------------------------------------------------------- other signatures


def other(
    *inputs: TensorSpec,
    axes: dict[str, tuple[int, int | None]] | None = None,
    padding: tuple[str, ...] = ("right", "left"),
) -> Signature:
    return Signature(inputs, SIGNATURE.outputs, SIGNATURE.axes | (axes or {}), padding)


def named(comparisons: Sequence[Comparison]) -> set[str]:
    return {c.case.split("-")[0] for c in comparisons}


def test_padding_is_only_put_where_the_signature_lists_it() -> None:
    comparisons = check(positions_from_the_left, other(IDS, MASK, padding=("right",)))
    assert failing(comparisons) == set()
    assert not any("padded-left" in c.case for c in comparisons)


def test_content_has_a_meaning_where_there_is_a_pad() -> None:
    ids = TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=13, pad=1)

    def run(inputs: Arrays) -> Arrays:
        """Reads the padding from the ids: the mask and they must agree."""
        np.testing.assert_array_equal(inputs["input_ids"] == 1, inputs["attention_mask"] == 0)
        return masked_mean(inputs)

    comparisons = check(run, other(ids, MASK))
    assert failing(comparisons) == set()
    assert named(comparisons) == {"alone", "padded"}


def test_a_mask_of_rows_leaves_only_the_batch() -> None:
    rows = TensorSpec("attention_mask", "int64", (BATCH, LENGTH, LENGTH), kind="mask")

    def run(inputs: Arrays) -> Arrays:
        return masked_mean(inputs | {"attention_mask": inputs["attention_mask"][:, 0]})

    assert key_axis(other(IDS, rows)) is None
    assert named(check(run, other(IDS, rows))) == {"alone"}


def test_key_axis() -> None:
    second = TensorSpec("other_mask", "int64", (BATCH, "other_length"), kind="mask")
    assert key_axis(SIGNATURE) == LENGTH
    assert key_axis(other(IDS)) is None
    assert key_axis(other(IDS, MASK, second, axes={"other_length": (1, 7)})) is None
    assert key_axis(other(TensorSpec("m", "bool", (BATCH, 7), kind="mask"))) is None


def test_without_a_batch_axis_nothing_can_be_said() -> None:
    table = TensorSpec("table", "float64", (13, 5))
    assert check(masked_mean, other(IDS, MASK, table)) == []


def test_inputs_without_the_key_axis_stay_as_they_are() -> None:
    """A model with a second input, of one vector a sequence: padding must not draw another for it."""
    offset = TensorSpec("offset", "float64", (BATCH, 5))

    def run(inputs: Arrays) -> Arrays:
        return answer(read(inputs)[0], masked_mean(inputs)["pooled"] + inputs["offset"])

    assert failing(check(run, other(IDS, MASK, offset))) == set()


def test_inputs_of_another_length_stay_as_they_are() -> None:
    """Cross-attention: the queries have a length of their own, which the padding of the keys leaves alone."""
    queries = TensorSpec("queries", "float64", (BATCH, "query_length", 5))
    signature = Signature(
        (queries, IDS, MASK),
        (TensorSpec("out", "float64", (BATCH, "query_length", 5)),),
        SIGNATURE.axes | {"query_length": (1, 17)},
        ("right", "left"),
    )

    def run(inputs: Arrays) -> Arrays:
        return {"out": inputs["queries"] + masked_mean(inputs)["pooled"][:, None]}

    assert failing(check(run, signature)) == set()


@pytest.mark.parametrize(
    ("axis", "low", "high"),
    [
        (LENGTH, 1, 1),
        (LENGTH, 1, 2),
        (LENGTH, 2, 2),
        (LENGTH, 17, 17),
        (LENGTH, 150, 300),
        (BATCH, 1, 1),
        (BATCH, 1, 2),
    ],
)
def test_every_bound_of_an_axis_is_kept(axis: str, low: int, high: int) -> None:
    sizes: set[int] = set()

    def run(inputs: Arrays) -> Arrays:
        sizes.add(inputs["input_ids"].shape[(BATCH, LENGTH).index(axis)])
        return masked_mean(inputs)

    assert failing(check(run, other(IDS, MASK, axes={axis: (low, high)}))) == set()
    assert all(low <= size <= high for size in sizes)
