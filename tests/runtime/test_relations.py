"""The relations, held against small numpy models: one that obeys them all, and one that breaks each."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch

from isoformer.export.evidence import torch_runner
from isoformer.export.graph import to_onnx
from isoformer.models.families import attention
from isoformer.runtime import Session
from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Package, Signature, TensorSpec
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


# ------------------------------------------------------------------------------- lengths and segments


LENGTHS = TensorSpec("sequence_lengths", "int64", (BATCH,), kind="lengths", along=LENGTH)
SEGMENTS = TensorSpec("segment_ids", "int64", (BATCH, LENGTH), kind="segments")
PREFIX = TensorSpec("prefix_lengths", "int64", (BATCH,), kind="prefix", along=LENGTH)


def by_lengths(model: Run) -> Run:
    """The model with its mask made of lengths."""

    def run(inputs: Arrays) -> Arrays:
        places = np.arange(inputs["input_ids"].shape[1])
        return model(inputs | {"attention_mask": (places < inputs["sequence_lengths"][:, None]).astype(np.int64)})

    return run


def by_segments(model: Run) -> Run:
    """The model with its mask made of segments, which it takes for one."""

    def run(inputs: Arrays) -> Arrays:
        return model(inputs | {"attention_mask": (inputs["segment_ids"] != 0).astype(np.int64)})

    return run


@pytest.mark.parametrize(
    ("spec", "wrap", "padding"), [(LENGTHS, by_lengths, ("right",)), (SEGMENTS, by_segments, ("right", "left"))]
)
def test_lengths_and_segments_are_masks_to_every_relation(
    spec: TensorSpec, wrap: Callable[[Run], Run], padding: tuple[str, ...]
) -> None:
    signature = other(IDS, spec, padding=padding)
    assert key_axis(signature) == LENGTH
    comparisons = check(wrap(masked_mean), signature)
    assert failing(comparisons) == set()
    cases = {c.case.rsplit("-", 1)[0] for c in comparisons}
    assert cases == {*(f"alone-{row}" for row in range(ROWS)), *(f"padded-{side}" for side in padding), "content"}
    for broken, name in ((mean_of_the_batch, "alone"), (mean_over_the_padding, "padded"), (mask_ignored, "content")):
        assert name in failing(check(wrap(broken), signature))


def test_lengths_count_from_the_left() -> None:
    """So a signature that promises padding on the left as well does not keep it."""
    cases = {c.case.rsplit("-", 1)[0] for c in check(by_lengths(masked_mean), other(IDS, LENGTHS)) if not c.passed}
    assert cases == {"padded-left"}


def test_a_prefix_masks_nothing() -> None:
    def run(inputs: Arrays) -> Arrays:
        assert (inputs["prefix_lengths"] <= inputs["input_ids"].shape[1]).all()
        x = TABLE[inputs["input_ids"]]
        return answer(x, x.mean(1) * inputs["prefix_lengths"][:, None])

    assert key_axis(other(IDS, PREFIX)) is None
    assert named(check(run, other(IDS, PREFIX))) == {"alone"}
    assert failing(check(run, other(IDS, PREFIX))) == set()
    assert key_axis(other(IDS, MASK, PREFIX)) == LENGTH


# ------------------------------------------------------------------------------------------- chunks


PAST, TOTAL = "past_sequence_length", "total_sequence_length"
CACHED = Signature(
    (
        IDS,
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL), kind="mask"),
        TensorSpec("past_key_values.0.key", "float64", (BATCH, PAST, 5)),
    ),
    (TensorSpec("tokens", "float64", (BATCH, LENGTH, 5)), TensorSpec("present.0.key", "float64", (BATCH, TOTAL, 5))),
    {BATCH: (1, None), LENGTH: (1, 31), PAST: (0, None), TOTAL: (1, None)},
    ("right", "left"),
    {TOTAL: (PAST, LENGTH)},
    chunked=True,
)


def causal_mean(inputs: Arrays, *, restart: bool = False, forget: bool = False, keep_all: bool = False) -> Arrays:
    """The mean of the real tokens up to each, with positions that count them: obeys, unless told to err."""
    new, past, mask = TABLE[inputs["input_ids"]], inputs["past_key_values.0.key"], inputs["attention_mask"]
    queries, start = new.shape[1], past.shape[1]
    counted = mask.cumsum(1)[:, start:] - (mask[:, :start].sum(1, keepdims=True) if restart else 0)
    new = new + np.sin(counted)[..., None]
    keys = np.concatenate([past * (not forget), new], 1)
    seen = np.tril(np.ones((queries, start + queries)), start)[None] * mask[:, None]
    if keep_all:
        seen[..., :start] = 1
    mean = seen @ keys / np.maximum(seen.sum(-1, keepdims=True), 1)
    return {"tokens": mean + new, "present.0.key": keys}


@pytest.mark.parametrize("seed", range(5))
def test_a_cache_that_keeps_everything_passes(seed: int) -> None:
    comparisons = check(causal_mean, CACHED, seed)
    assert failing(comparisons) == set()
    cases = {c.case.rsplit("-", 1)[0] for c in comparisons}
    assert cases >= {"chunks", "content", "padded-left", "padded-right"}
    assert {c.output for c in comparisons if c.case.startswith("chunks")} >= {"tokens"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mistake", ["restart", "forget", "keep_all"])
def test_a_cache_that_errs_fails_in_chunks_alone(mistake: str, seed: int) -> None:
    """The whole sequence has no past, so no other relation can see it."""

    def run(inputs: Arrays) -> Arrays:
        return causal_mean(inputs, **{mistake: True})

    assert failing(check(run, CACHED, seed)) == {"chunks"}


def test_chunks_are_cut_and_go_through_the_cache() -> None:
    pasts: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        pasts.append(inputs["past_key_values.0.key"].shape[1])
        assert inputs["attention_mask"].shape[1] == pasts[-1] + inputs["input_ids"].shape[1]
        return causal_mean(inputs)

    for high in (2, 3, 31):
        axes = CACHED.axes | {LENGTH: (2, high), PAST: (0, 0)}
        pasts.clear()
        comparisons = check(run, Signature(CACHED.inputs, CACHED.outputs, axes, (), CACHED.sums, chunked=True))
        assert failing(comparisons) == set()
        assert sum(past > 0 for past in pasts) >= 3, "each of the three sequences is cut"


def test_without_the_promise_there_are_no_chunks() -> None:
    plain = Signature(CACHED.inputs, CACHED.outputs, CACHED.axes, CACHED.padding, CACHED.sums)
    assert "chunks" not in named(check(causal_mean, plain))


def test_the_keys_of_a_cache_are_a_sum_and_padding_is_of_the_sequence() -> None:
    assert key_axis(CACHED) == LENGTH
    sums = {TOTAL: (PAST, "other")}
    two = Signature(CACHED.inputs, CACHED.outputs, CACHED.axes | {"other": (0, None)}, (), sums)
    assert key_axis(two) is None  # neither part is the sequence
    bounds = CACHED.axes | {PAST: (1, None), "other": (1, None)}
    assert key_axis(Signature(CACHED.inputs, CACHED.outputs, bounds, (), sums)) is None  # either may be


# --------------------------------------------------------------------------- one attention layer, exported


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[attention.Model, Signature, Run]:
    """The small attention layer: the module, its signature and its graph in ONNX Runtime."""
    torch.manual_seed(0)
    model, edge = attention.Model(attention.TINY).eval(), attention.signature(attention.TINY)
    folder = tmp_path_factory.mktemp("layer")
    ir.save(to_onnx(model, edge, 23), folder / "model.onnx")
    plain = Signature.read(edge.to_dict())
    return model, plain, Session(Package(folder, {}, plain)).run


def check_layer(signature: Signature, run: Run) -> set[str]:
    tolerances = {spec.name: 1e-5 for spec in signature.outputs}
    comparisons = list(relations(signature, tolerances, run, "onnxruntime", np.random.default_rng(3)))
    assert named(comparisons) == {"alone", "padded", "content", "chunks"}
    return failing(comparisons)


def test_the_exported_layer_obeys(layer: tuple[attention.Model, Signature, Run]) -> None:
    _, signature, run = layer
    assert check_layer(signature, run) == set()


@pytest.mark.parametrize("name", ["past_key_values.0.key", "past_key_values.0.value"])
def test_a_layer_that_loses_a_cached_vector_does_not(name: str, layer: tuple[attention.Model, Signature, Run]) -> None:
    _, signature, run = layer

    def lossy(inputs: Arrays) -> Arrays:
        past = inputs[name].copy()
        past[:, :, -1:] = 0
        return run(inputs | {name: past})

    assert "chunks" in check_layer(signature, lossy)


@pytest.mark.parametrize("mistake", ["positions", "mask"])
def test_a_layer_whose_positions_or_mask_restart_does_not(
    mistake: str, layer: tuple[attention.Model, Signature, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, signature, _ = layer
    edge = attention.signature(attention.TINY)
    if mistake == "positions":
        monkeypatch.setattr(model, "_positions", lambda _inputs, length: torch.arange(length)[None])
    else:  # causality from the top left

        def top_left(given: dict, queries: int, keys: int, **options: object) -> torch.Tensor:
            del given, options
            return torch.ones(queries, keys).tril().bool()[None, None]

        monkeypatch.setattr(type(attention.TINY.masks), "build", lambda _self, *a, **kw: top_left(*a, **kw))
    assert "chunks" in check_layer(signature, torch_runner(model, edge, torch.float32))
