"""Keys and values in 8 bits: held to the same graph with a cache of float32, which numpy rounds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from isoformer.export import ExportError, int8_cache, variants
from isoformer.export.layouts import decoders
from isoformer.models.families import decoder, encoder
from isoformer.runtime import Session, decoding
from isoformer.runtime.binding import Decoder, SharedCache
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.lanes import replayable
from isoformer.runtime.package import Package
from isoformer.runtime.verify import replay_golden
from tests.conftest import export_small
from tests.export.test_variants import CONFIG, PLAIN, model_of, recorded

NAME = "cpu-int8"
TEXT = variants.TEXT.read_text()[:900]
# A window of 9 in one layer of two, norms of heads that the operator turns; heads of 24, which it does not; no rotary.
KINDS = {
    "windows": CONFIG,
    "heads of 24": dataclasses.replace(CONFIG, head_dim=24),
    "rotary": dataclasses.replace(CONFIG, qk_norm=False, sliding_window=None, window_layers=()),
    "learned": PLAIN,
}


def made(config: decoder.Config, path: Path, **options: Any) -> Package:
    options = {"precision": "int8", "cache": "int8", "text": TEXT} | options
    return export_small(model_of(config), decoder.signature(config), path, **options)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return made(CONFIG, tmp_path_factory.mktemp("int8_cache") / "tiny")


@pytest.fixture(scope="module")
def held(package: Package) -> Decoder:
    return Decoder(Session(package, variant=NAME))


def bound(package: Package) -> float:
    return next(iter(package.variant(NAME)["decoding"].values()))["bound"]


def whole(package: Package, rows: list[list[int]]) -> np.ndarray:
    """The logits (B, vocabulary) behind each row, of float32 and in one pass."""
    exact = Decoder(Session(package, variant="cpu-float32"))
    return np.stack([exact.score([row])[0][-1] for row in rows])


# ----------------------------------------------------------------------------------------------- the package


def test_the_manifest_says_what_the_cache_is_and_how_it_was_measured(package: Package) -> None:
    entry = package.variant(NAME)
    assert (entry["cache"], entry["cache_dtype"]) == ("shared", "int8")
    assert "cache_dtype" not in package.variant("cpu-float32")
    assert entry["gate"]["limits"] == dataclasses.asdict(variants.GATES["int8"])
    for case in entry["decoding"].values():
        assert case["bound"] == 2 * max(case["rounded_cache_error"], case["whole_pass_error"])
        assert 0 < case["error"] <= case["bound"]
    assert entry["operators"]["com.microsoft::GroupQueryAttention"] == 2 * CONFIG.num_layers
    layers = [
        node
        for node in ir.load(package.path / entry["path"]).graph.all_nodes()
        if node.op_type == "GroupQueryAttention"
    ]
    assert not any(any(node.inputs[11:12]) for node in layers)  # no sinks: prompts come whole
    assert "| cpu-int8 | shared, int8 |" in (package.path / "README.md").read_text()
    assert package.fastest("cpu") == NAME


def test_every_step_and_golden_vector_passes_again(package: Package) -> None:
    session = Session(package, variant=NAME)
    caches = [spec for spec in session.signature.inputs if spec.name.startswith("past_key_values.")]
    assert {spec.dtype for spec in caches} == {"int8"}
    steps = list(decoding.verify(package, session, NAME))
    vectors = list(replay_golden(package, decoding.plainly(session), NAME, NAME, lambda *_: None))
    assert (len(steps), len(vectors)) == (len(decoding.CASES), 6)
    assert [one.line() for one in (*steps, *vectors) if not one.passed] == []
    held = {a.dtype for _, inputs, _ in package.golden(NAME) for n, a in inputs.items() if n.startswith("past_")}
    assert held == {np.dtype("int8")}


def test_floats_are_no_numbers_of_8_bits(package: Package) -> None:
    """Golden vectors of a cache in float32 are refused, not cut to whole numbers."""
    _, inputs, _ = next(iter(package.golden("cpu-float32")))
    with pytest.raises(IsoformerError, match=r"past_key_values\.0\.key holds floats; cpu-int8 keeps them in int8"):
        decoding.plainly(Session(package, variant=NAME))(inputs)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *(pytest.param(kind, "int4", marks=pytest.mark.slow) for kind in KINDS),
        *(pytest.param(kind, "int8", marks=pytest.mark.slow) for kind in ("heads of 24", "learned", "rotary")),
    ],
)
def test_other_decoders(kind: str, precision: str, tmp_path: Path) -> None:
    """Each is held to its bounds by the export, prompts of different lengths in one batch among them."""
    entry = made(KINDS[kind], tmp_path / "made", precision=precision).variant(f"cpu-{precision}")
    assert entry["cache_dtype"] == "int8"
    assert len(entry["decoding"]) == len(decoding.CASES)


# ----------------------------------------------------------------------------------------------- the cache


def test_the_cache_is_of_8_bits_and_written_in_place(held: Decoder) -> None:
    assert isinstance(held._cache, SharedCache)
    held.start([[3, 1, 4]])
    before = {
        name: (array.dtype, array.__array_interface__["data"], array.copy()) for name, array in held.held().items()
    }
    held.append([[1]])
    held.append([[5, 9]])  # a chunk behind what is held
    for name, array in held.held().items():
        dtype, place, old = before[name]
        assert (dtype, array.__array_interface__["data"]) == (np.int8, place)
        np.testing.assert_array_equal(array[:, :, :3], old[:, :, :3])
        assert (array[:, :, 3:6] != old[:, :, 3:6]).any((0, 1, 3)).all()
        np.testing.assert_array_equal(array[:, :, 6:], old[:, :, 6:])
        assert np.abs(array[:, :, :6].astype(int)).max() > 30  # most of the 8 bits are used


def test_both_branches_keep_the_same_numbers(held: Decoder) -> None:
    """A prompt by QuantizeLinear and TensorScatter, steps by the operator itself: but for what rounding turns over."""
    tokens = np.random.default_rng(2).integers(0, 101, 41).tolist()
    held.start([[0]])
    held.start([tokens])
    prompt = {name: array[:, :, :41].astype(int) for name, array in held.held().items()}
    held.start([[100 - tokens[0]]])
    held.start([tokens[:1]])
    for token in tokens[1:]:
        held.append([[token]])
    first = [name for name in prompt if ".0." in name]  # layers above read what was rounded
    assert len(first) == 2
    for name in first:
        off = np.abs(held.held()[name][:, :, :41] - prompt[name])
        assert off.max() <= 1
        assert (off > 0).mean() < 0.02


def test_rows_of_different_lengths_growth_and_beams(package: Package, held: Decoder) -> None:
    """Right padding is never read, in no branch and after no exchange of rows, also over the first capacity."""
    rng = np.random.default_rng(7)
    rows = [rng.integers(0, 101, length).tolist() for length in (5, 1, 17)]
    logits, _ = held.start(rows)
    np.testing.assert_allclose(logits, whole(package, rows), atol=bound(package))
    for order in ([2, 0, 1], [1, 1, 0], [0, 2]):
        held.take(order)
        rows = [rows[row] for row in order]
        new = rng.integers(0, 101, (len(rows), 2)).tolist()
        rows = [[*row, *more] for row, more in zip(rows, new, strict=True)]
        np.testing.assert_allclose(held.append(new), whole(package, rows), atol=bound(package))
    long = rng.integers(0, 101, (2, 260)).tolist()
    rows = [[*row, *more] for row, more in zip(rows, long, strict=True)]
    np.testing.assert_allclose(held.append(long), whole(package, rows), atol=bound(package))
    assert held.held()["past_key_values.0.key"].shape[2] == CONFIG.max_positions


def test_a_long_prompt_is_one_run(held: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its later tokens would else read its first ones in 8 bits."""
    runs: list[list[int]] = []
    recorded(monkeypatch, runs)
    held.start([[3] * 301])
    assert runs == [[301]]


def test_a_dialogue_goes_on_behind_what_it_shares(package: Package, held: Decoder) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 101, (2, 30)).tolist()
    held.start([first])
    logits, spared = held.start([[*first[:20], *second]])
    assert spared == 20
    np.testing.assert_allclose(logits, whole(package, [[*first[:20], *second]]), atol=bound(package))


def test_a_cache_that_grows_is_not_held(package: Package) -> None:
    with pytest.raises(InputError, match="no cache that is written in place"):
        Decoder(Session(package)).held()


# ----------------------------------------------------------------------------------------------- what it is held to


def test_steps_are_of_what_the_cache_holds(package: Package) -> None:
    """The largest number of each head and channel in a text, times a margin, in 127 steps."""
    exact = Decoder(Session(package, variant="cpu-float32"))
    tokens = np.random.default_rng(0).integers(0, 101, 53).tolist()
    steps = int8_cache.steps(exact, tokens, margin=1.5)
    largest = {name: np.zeros(step.shape) for name, step in steps.items()}
    for row in (tokens, *(tokens[at : at + 8] for at in range(0, 48, 8))):  # the text, and what begins within it
        exact.score([row])
        for name, array in exact.held().items():
            largest[name] = np.maximum(largest[name], np.abs(array[0, :, : len(row)]).max(1))
    for name, step in steps.items():
        np.testing.assert_allclose(step * 127, 1.5 * largest[name], rtol=1e-5)


def test_a_channel_that_is_zero_has_a_step_all_the_same() -> None:
    class Zeros:
        def score(self, _rows: object) -> None: ...

        def held(self) -> dict[str, np.ndarray]:
            values = np.zeros((1, 2, 9, 3), np.float32)
            values[0, 0, :, 0] = 127
            return {"past": values}

    steps = int8_cache.steps(Zeros(), [1] * 9, margin=1.0)["past"]  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(steps[0], 1)
    assert (steps[1] > 0).all()


@pytest.mark.parametrize("wrong", [pytest.param("too small", marks=pytest.mark.slow), "one branch"])
def test_a_cache_with_wrong_steps_in_one_layer_is_not_written(wrong: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Values that are cut off, and values that are read by other steps than they were written by."""
    real, rewrite = int8_cache.apply, int8_cache._rewrite

    def scrambled(model: Any, steps: dict[str, np.ndarray]) -> int:
        return real(model, {name: s / 8 if name.endswith("1.value") else s for name, s in steps.items()})

    def other_branch(graph: Any, node: Any, prompt: Any, steps: Any, constant: Any) -> None:
        rewrite(graph, node, prompt, steps, constant)
        both = next(one for one in graph if one.op_type == "If" and one.name.startswith(node.name))
        operator = both.attributes["else_branch"].as_graph()[0]
        operator.replace_input_with(13, constant(2 * steps[1].const_value.numpy()))

    if wrong == "too small":
        monkeypatch.setattr(int8_cache, "apply", scrambled)
    else:
        monkeypatch.setattr(int8_cache, "_rewrite", other_branch)
    monkeypatch.setitem(variants.GATES, "int8", variants.Gate(9.0, 0.0))  # what is tried are the bounds of steps
    with pytest.raises(ExportError, match="the variant does not compute the same: cpu-int8"):
        made(CONFIG, tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_gate_reads_from_the_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Whole passes are right though the cache be worthless; the gate is missed."""
    real = int8_cache.apply
    monkeypatch.setattr(int8_cache, "apply", lambda model, steps: real(model, {n: s * 1e4 for n, s in steps.items()}))
    monkeypatch.setitem(variants.GATES, "int8", variants.Gate(1.03, 0.97))
    with pytest.raises(ExportError, match="the quality gate is missed"):
        made(CONFIG, tmp_path / "wrong")


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "float32", "text": None}, "--cache int8 is for decoders with --precision int8 or int4"),
        ({"reproducible": True}, "--reproducible keeps its cache in float32; leave out --cache int8"),
        ({"cache": "int4"}, "--cache int4 is not one of float32, int8"),
    ],
)
def test_what_has_no_such_cache(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        made(CONFIG, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_models_without_such_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--cache int8 is for heads of a multiple of 8") as caught:
        made(dataclasses.replace(decoder.TINY, max_positions=400), tmp_path / "heads_of_6")
    assert "\n" not in str(caught.value)
    model, signature = encoder.Model(encoder.TINY), encoder.signature(encoder.TINY)
    options: dict[str, Any] = {"task": encoder.task(encoder.TINY), "precision": "int8", "cache": "int8"}
    with pytest.raises(ExportError, match="--cache int8 is for decoders"):
        export_small(model, signature, tmp_path / "encoder", **options)
    assert not list(tmp_path.iterdir())


def test_a_manifest_that_says_nothing_of_it_is_refused(package: Package) -> None:
    entry = package.variant(NAME)
    silent = {key: value for key, value in entry.items() if key != "cache_dtype"}
    with pytest.raises(IsoformerError, match=r"past_key_values\.0\.key int8 .* the manifest says"):
        Session(Package(package.path, package.manifest | {"variants": {NAME: silent}}, package.signature), variant=NAME)


def test_other_programs_do_not_get_it(package: Package) -> None:
    """Other variants they do."""
    with pytest.raises(ExportError, match=r"cpu-int8 keeps keys and values in 8 bits, .* take --precision fp32"):
        decoders.path_of(package, NAME)
    assert decoders.path_of(package, "cpu-float32") == "variants/cpu-float32/model.onnx"
    assert set(replayable(package, (), "node")) == {None, "cpu-float32"}
    assert set(replayable(package)) == {None, "cpu-float32", NAME}


def test_the_command_line(isoformer: Any, package: Package, tmp_path: Path) -> None:
    verified = isoformer("verify", str(package.path), "--runtime", "ort", "--variant", NAME, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout.splitlines()[-1])["failures"] == []
    assert "cpu-int8, shared cache of int8, perplexity" in isoformer("inspect", str(package.path)).stdout
    refused = isoformer("export", "-m", "decoder", str(tmp_path / "x"), "--cache", "int8")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert "--cache int8 is for decoders with --precision int8 or int4" in refused.stderr
