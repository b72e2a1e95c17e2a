"""Golden vectors: which cases a package carries, and that those behind a cache are what they say."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from isoformer.export import golden
from isoformer.export.evidence import gather, torch_runner
from isoformer.export.variants import GATES, Gate
from isoformer.models.families import decoder, encoder, encoder_decoder
from isoformer.runtime import Session, cases
from isoformer.runtime.cases import Case
from isoformer.runtime.onnx_file import read_tensor
from isoformer.runtime.package import Package, Signature
from isoformer.runtime.parity import largest_error
from tests.conftest import export_small

PATTERNS = ("none", "right", "left", "ragged", "holes", "sample")
BATCH, LENGTH, PAST = "batch_size", "sequence_length", "past_sequence_length"
# The cache in place takes heads of a multiple of 8.
CACHED = dataclasses.replace(decoder.TINY, hidden_size=32)


def plain(signature) -> Signature:
    return Signature.read(signature.to_dict())


ENCODER = plain(encoder.signature(encoder.TINY))
DECODER = plain(decoder.signature(CACHED))


def chosen(signature: Signature, room: int | None = None, **grid) -> list[Case]:
    return golden.choose(signature, list(cases.grid(signature, **grid)), room)


def sizes(found: list[Case]) -> set[tuple[str, int, int, int]]:
    return {(case.mask, case.batch, case.length, case.sizes.get(PAST, 0)) for case in found}


def test_an_encoder_has_every_mask_one_token_and_a_long_sequence() -> None:
    wanted = {(mask, 2, 7, 0) for mask in PATTERNS}
    wanted |= {("none", 1, 1, 0), ("ragged", 5, 31, 0), ("holes", 5, 31, 0), ("none", 1, 64, 0)}
    assert sizes(chosen(ENCODER)) == wanted
    assert {case.name for case in chosen(ENCODER)} <= {case.name for case in cases.grid(ENCODER)}


def test_a_decoder_has_every_mask_behind_a_cache_and_without() -> None:
    wanted = {(mask, 2, 7, 7) for mask in PATTERNS}  # chunked prefill
    wanted |= {("none", 1, 1, 0), ("right", 2, 7, 0), ("left", 2, 7, 0), ("none", 1, 128, 0)}
    wanted |= {("none", 2, 1, 7), ("ragged", 2, 1, 7)}  # one step
    wanted |= {("ragged", 5, 31, 31), ("holes", 5, 31, 31)}
    assert sizes(chosen(DECODER)) == wanted
    names = [case.name for case in chosen(DECODER)]
    assert len(set(names)) == len(names)


def test_lengths_are_those_of_the_grid_whose_bounds_they_share() -> None:
    for signature in (ENCODER, DECODER, *map(plain, encoder_decoder.signature(encoder_decoder.TINY).values())):
        for lengths in ((1, 5), (3,), cases.LENGTHS):
            listed = {case.length for case in cases.grid(signature, lengths=lengths)}
            assert {case.length for case in chosen(signature, lengths=lengths)} <= listed


@pytest.mark.parametrize("most", [1, 2, 5, 7])
def test_short_models_have_every_pattern(most: int) -> None:
    signature = dataclasses.replace(ENCODER, axes={BATCH: (1, None), LENGTH: (1, most)})
    assert {case.mask for case in chosen(signature)} == set(PATTERNS)


@pytest.mark.parametrize("room", [0, 3000, 20_000, 100_000, 4_000_000])
def test_they_fit_into_their_room(room: int) -> None:
    found = chosen(DECODER, room)
    assert sum(golden.size(DECODER, case) for case in found) <= room
    assert bool(found) == (room > 0)


def test_little_room_makes_them_smaller_before_it_leaves_any_out() -> None:
    found = chosen(DECODER, 40_000)
    assert {case.mask for case in found if case.sizes[PAST]} == set(PATTERNS)
    assert {case.length for case in found if case.sizes[PAST]} == {1, 2}


def test_sizes_are_those_of_the_files() -> None:
    case = chosen(DECODER)[0]
    inputs = case.inputs(DECODER)
    model = decoder.Model(CACHED)
    outputs = torch_runner(model, decoder.signature(CACHED), torch.float32)(inputs)
    assert golden.size(DECODER, case) == sum(array.nbytes for array in (*inputs.values(), *outputs.values()))


def test_cases_beyond_the_grid_are_measured_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "extent", lambda _parameters: ((1,), (1, 5)))
    torch.manual_seed(11)
    model, signature = decoder.Model(CACHED), decoder.signature(CACHED)
    run = torch_runner(model, signature, torch.float32)
    found = gather(model, signature, {"float32": run}, lambda *_: None)
    beyond = set(found.golden) - set(found.grid)
    assert beyond
    assert {c.case for c in found.comparisons if c.check == "golden"} == beyond
    assert not [name for name in found.grid_arrays if name.rpartition("/")[0] in beyond]
    assert all(c.passed and c.bound == found.records[c.case][c.output]["bound"] for c in found.comparisons)
    fives = {record["logits"]["bound"] for name, record in found.records.items() if name.endswith("x5")}
    assert len(fives) == 1


# ---------------------------------------------------------------------------------- a cache written in place


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    torch.manual_seed(3)
    model = decoder.Model(CACHED).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GATES, "int8", Gate(9, 0))  # a random model passes by chance alone
        yield export_small(
            model,
            decoder.signature(CACHED),
            tmp_path_factory.mktemp("golden") / "package",
            task=decoder.task(CACHED),
            precision="int8",
        )


def test_variants_with_a_cache_in_place_have_vectors_of_their_own(package: Package) -> None:
    for name in ("cpu-float32", "cpu-int8"):
        session = Session(package, variant=name)
        recorded = package.variant(name)["golden"]
        assert len(recorded) == len(golden.CACHED)
        for case, inputs, outputs in package.golden(name):
            assert list(outputs) == ["logits"]
            (logits,) = session.inference.run(["logits"], inputs)
            assert largest_error(logits, outputs["logits"]) <= recorded[case]["logits"]["bound"]


def test_vectors_in_8_bits_begin_with_what_its_own_cache_holds(package: Package) -> None:
    """Smoothing has moved the scale of its values: float32's are another past, from which it answers worse."""
    session = Session(package, variant="cpu-int8")
    own, others = (
        max(
            largest_error(session.inference.run(["logits"], inputs)[0], outputs["logits"])
            for _, inputs, outputs in package.golden(name)
        )
        for name in ("cpu-int8", "cpu-float32")
    )
    assert own < others


def test_what_stands_where_no_token_does_is_not_read(package: Package) -> None:
    session = Session(package, variant="cpu-float32")
    for _, inputs, outputs in package.golden("cpu-float32"):
        changed = {name: np.where(a == golden.NOT_READ, -5, a).astype(a.dtype) for name, a in inputs.items()}
        assert any((changed[name] != inputs[name]).any() for name in inputs)
        (logits,) = session.inference.run(["logits"], changed)
        np.testing.assert_allclose(logits, outputs["logits"], atol=1e-4)


def test_a_wrong_cache_misses_the_bound(package: Package) -> None:
    session = Session(package, variant="cpu-float32")
    bounds = package.variant("cpu-float32")["golden"]
    for case, inputs, outputs in package.golden("cpu-float32"):
        key = inputs["past_key_values.0.key"]
        if (key == golden.NOT_READ).all():
            continue
        wrong = inputs | {"past_key_values.0.key": np.where(key == golden.NOT_READ, key, key + 0.01).astype(key.dtype)}
        (logits,) = session.inference.run(["logits"], wrong)
        assert largest_error(logits, outputs["logits"]) > bounds[case]["logits"]["bound"]


def test_files_are_named_by_what_they_hold(package: Package) -> None:
    found = sorted((package.path / "variants/test_data_set_0").iterdir())
    assert [file.name for file in found] == sorted([*(f"input_{n}.pb" for n in range(8)), "output_0.pb"])
    assert read_tensor(package.path / "variants/test_data_set_0/output_0.pb").shape == (1, 1, CACHED.vocab_size)


def test_there_is_no_vector_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, signature = decoder.Model(CACHED), decoder.signature(CACHED)
    edge, run = plain(signature), torch_runner(model, signature, torch.float64)
    every = [(case, sum(array.nbytes for array in inputs.values())) for case, inputs, _ in golden.cached(edge, run)]
    assert [case for case, _ in every] == list(golden.CACHED)
    logits = 4 * CACHED.vocab_size
    monkeypatch.setattr(golden, "CACHED_BYTES", every[0][1] + every[1][1] + 2 * logits)
    assert [case for case, _, _ in golden.cached(edge, run)] == list(golden.CACHED[:2])
