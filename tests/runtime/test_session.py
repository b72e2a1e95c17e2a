"""Sessions: what they take, what they refuse in one line, and that they compute what the module computes."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.export.graph import to_onnx
from isoformer.models.families import encoder
from isoformer.runtime import InputError, IsoformerError, PackageError, ProviderError, Session, checks, load
from isoformer.runtime.package import Package, Signature, TensorSpec
from isoformer.runtime.session import check_inputs, first_line

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def session(tiny_package: Path) -> Session:
    return Session(tiny_package)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, encoder.Model]:
    """A session and the module that its graph was made from."""
    torch.manual_seed(3)
    model = encoder.Model(encoder.TINY).eval()
    signature = encoder.signature(encoder.TINY)
    folder = tmp_path_factory.mktemp("twin")
    ir.save(to_onnx(model, signature, 23), folder / "model.onnx")
    return Session(Package(folder, {}, Signature.read(signature.to_dict()))), model


def good(batch: int = 2, length: int = 7) -> Arrays:
    rng = np.random.default_rng(5)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    return {
        "input_ids": rng.integers(0, 101, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }


def refused(session: Session, inputs: Arrays, *words: str) -> None:
    """run() raises an InputError of one line that holds the words."""
    with pytest.raises(InputError) as caught:
        session.run(inputs)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def unlike(name: str, value: object) -> Arrays:
    return good() | {name: value}  # pyright: ignore[reportReturnType]  # some of the values are wrong on purpose


# ---------------------------------------------------------------------------------------------- outputs


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 5), length=st.integers(1, 64), seed=st.integers(0, 2**32))
def test_outputs_are_the_modules(twin: tuple[Session, encoder.Model], batch: int, length: int, seed: int) -> None:
    session, model = twin
    rng = np.random.default_rng(seed)
    inputs = {
        "input_ids": rng.integers(0, 101, (batch, length)),
        "attention_mask": rng.integers(0, 2, (batch, length)),
        "token_type_ids": rng.integers(0, 2, (batch, length)),
    }
    with torch.inference_mode():
        wanted = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    found = session.run(inputs)
    assert list(found) == ["last_hidden_state", "sentence_embedding"]
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted[name].numpy(), rtol=0, atol=5e-6)


def test_outputs_are_the_golden_ones(tiny_package: Path) -> None:
    package = load(tiny_package)
    session = Session(package)
    for name, inputs, outputs in package.golden():
        found = session.run(inputs)
        for output, value in outputs.items():
            limit = package.manifest["golden"][name][output]["bound"]
            np.testing.assert_allclose(found[output], value, rtol=0, atol=limit)


def test_outputs_can_be_chosen(session: Session) -> None:
    every = session.run(good())
    for names in (["sentence_embedding"], ["sentence_embedding", "last_hidden_state"]):
        chosen = session.run(good(), names)
        assert list(chosen) == names
        for name in names:
            np.testing.assert_array_equal(chosen[name], every[name])


def test_no_output_is_no_output(session: Session) -> None:
    assert session.run(good(), []) == {}


def test_unknown_output(session: Session) -> None:
    with pytest.raises(InputError, match="no output logits; there are last_hidden_state, sentence_embedding"):
        session.run(good(), ["sentence_embedding", "logits"])


def test_threads_do_not_change_the_answer_beyond_rounding(tiny_package: Path, session: Session) -> None:
    one = Session(tiny_package, threads=1).run(good())
    for name, value in session.run(good()).items():
        np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-5)


def test_session_is_a_context(tiny_package: Path) -> None:
    with Session(load(tiny_package)) as session:
        assert session.provider == "cpu"
        assert session.run(good())["sentence_embedding"].shape == (2, 33)


# ----------------------------------------------------------------------------------------- good inputs


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_mask_of_any_dtype(session: Session, dtype: type) -> None:
    wanted, inputs = session.run(good()), good()
    inputs["attention_mask"] = inputs["attention_mask"].astype(dtype)
    for name, value in session.run(inputs).items():
        np.testing.assert_array_equal(value, wanted[name])


def test_defaults_are_filled_in(session: Session) -> None:
    ids = good()["input_ids"]
    written = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    wanted = session.run({"input_ids": ids} | written)
    for name, value in session.run({"input_ids": ids}).items():
        np.testing.assert_array_equal(value, wanted[name])


def test_order_and_layout_of_the_inputs_do_not_matter(session: Session) -> None:
    inputs = good(3, 5)
    wanted = session.run(inputs)
    turned = {name: np.asfortranarray(value) for name, value in reversed(inputs.items())}
    sliced = {name: np.repeat(value, 2, axis=1)[:, ::2] for name, value in inputs.items()}
    for other in (turned, sliced):
        for name, value in session.run(other).items():
            np.testing.assert_array_equal(value, wanted[name])


def test_inputs_are_left_as_they_were(session: Session) -> None:
    inputs = good()
    session.run(inputs)
    for name, value in good().items():
        np.testing.assert_array_equal(inputs[name], value)


@pytest.mark.parametrize("length", [1, 64])
def test_shortest_and_longest(session: Session, length: int) -> None:
    assert session.run(good(1, length))["last_hidden_state"].shape == (1, length, 33)


def test_largest_and_smallest_id(session: Session) -> None:
    session.run(unlike("input_ids", np.array([[0, 100] * 3 + [0]] * 2)))


# ------------------------------------------------------------------------------------------ bad inputs


def test_missing_input(session: Session) -> None:
    inputs = good()
    del inputs["input_ids"]
    refused(session, inputs, "input_ids is missing", "int64 (batch_size, sequence_length)")


def test_nothing_at_all(session: Session) -> None:
    refused(session, {}, "input_ids is missing")


def test_unknown_inputs(session: Session) -> None:
    refused(session, unlike("position_ids", np.zeros((2, 7))), "no input position_ids", "input_ids, attention_mask")
    refused(session, good() | {"z": np.zeros(1), "a": np.zeros(1)}, "no input a, z")


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.float32, np.float64, bool, object, "U3", ">i8"])
def test_wrong_dtype(session: Session, dtype: str | type) -> None:
    refused(session, unlike("input_ids", np.ones((2, 7), dtype)), f"input_ids has dtype {np.dtype(dtype)}", "int64")


@pytest.mark.parametrize("shape", [(), (7,), (2, 7, 1)], ids=str)
@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids"])
def test_wrong_rank(session: Session, name: str, shape: tuple[int, ...]) -> None:
    refused(session, unlike(name, np.ones(shape, np.int64)), f"{name} has {len(shape)} axes", str(shape))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("attention_mask", (2, 8), "attention_mask has sequence_length 8, but an earlier input has 7"),
        ("attention_mask", (3, 7), "attention_mask has batch_size 3, but an earlier input has 2"),
        ("attention_mask", (1, 7), "attention_mask has batch_size 1, but an earlier input has 2"),
        ("token_type_ids", (2, 1), "token_type_ids has sequence_length 1, but an earlier input has 7"),
    ],
)
def test_sizes_that_differ(session: Session, name: str, shape: tuple[int, int], words: str) -> None:
    refused(session, unlike(name, np.ones(shape, np.int64)), words)


def test_over_the_maximum(session: Session) -> None:
    refused(session, good(1, 65), "sequence_length 65", "64 at most")


@pytest.mark.parametrize(("shape", "axis"), [((0, 7), "batch_size"), ((2, 0), "sequence_length"), ((0, 0), "is 0")])
def test_empty(session: Session, shape: tuple[int, int], axis: str) -> None:
    refused(session, {"input_ids": np.ones(shape, np.int64)}, axis, "least is 1")


@pytest.mark.parametrize(("name", "value"), [("input_ids", 101), ("input_ids", -1), ("token_type_ids", 2)])
def test_id_out_of_range(session: Session, name: str, value: int) -> None:
    inputs = good()
    inputs[name][1, 3] = value
    refused(session, inputs, f"{name} holds values from", str(value), f"from 0 to {100 if name == 'input_ids' else 1}")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((value, dtype) for value in (2, -1, 127) for dtype in ("int8", "int32", "int64", "float16", "float32")),
        *((value, dtype) for value in (2, 255) for dtype in ("uint8", "uint64")),
        *((value, dtype) for value in (0.5, np.nan, np.inf, -np.inf) for dtype in ("float16", "float32", "float64")),
        (1.0001, "float32"),
        (-1e-300, "float64"),
    ],
)
def test_mask_of_other_numbers(session: Session, value: float, dtype: str) -> None:
    mask = np.ones((2, 7), dtype)
    mask[1, 3] = value
    refused(session, unlike("attention_mask", mask), "attention_mask", "other than 0 and 1")


@pytest.mark.parametrize("dtype", ["U3", object, complex, "datetime64[s]"])
def test_mask_that_is_no_number(session: Session, dtype: str | type) -> None:
    refused(session, unlike("attention_mask", np.ones((2, 7), np.int64).astype(dtype)), "attention_mask has dtype")


@pytest.mark.parametrize("value", [[[1] * 7] * 2, 7, None, "text", torch.ones(2, 7, dtype=torch.int64)], ids=range(5))
@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_what_is_not_an_array(session: Session, name: str, value: object) -> None:
    refused(session, unlike(name, value), f"{name} is a {type(value).__name__}", "numpy array")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("input_ids", 101, "input_ids holds values from"),
        ("input_ids", -1, "input_ids holds values from -1"),
        ("token_type_ids", 2, "token_type_ids holds values from"),
        ("attention_mask", 2, "attention_mask holds values other than 0 and 1"),
        ("attention_mask", -1, "attention_mask holds values other than 0 and 1"),
    ],
)
def test_a_wrong_value_in_a_shape_that_came_before(session: Session, name: str, value: int, words: str) -> None:
    inputs = good(3, 5)
    for order in ("C", "F"):
        first = session.run(inputs)
        array = np.array(inputs[name], order=order)
        array[2, 1] = value
        refused(session, inputs | {name: array}, words)
        refused(session, inputs | {name: array.tolist()}, f"{name} is a list")
        for output, found in session.run(inputs).items():
            np.testing.assert_array_equal(found, first[output])


def test_defaults_and_converted_masks_of_a_shape_that_came_before(session: Session) -> None:
    """Left out, of other dtypes, and as they are: the same answer each time, whatever came before."""
    ids = {"input_ids": good(2, 11)["input_ids"]}
    ones = np.ones((2, 11), np.int64)
    wanted = session.run(ids | {"attention_mask": ones, "token_type_ids": ones * 0})
    for _ in range(2):
        for more in ({}, {"attention_mask": ones == 1}, {"attention_mask": ones * 1.0}, {"token_type_ids": ones * 0}):
            for output, found in session.run(ids | more).items():
                np.testing.assert_array_equal(found, wanted[output])


def test_more_shapes_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MOST", 3)
    seen = checks.SeenShapes()
    for length in (1, 2, 3, 4, 5, 1):
        inputs = {"x": np.zeros((1, length), np.int64)}
        assert seen.feeds(inputs) is None
        seen.add(inputs, inputs, {"x": 4})
        found = seen.feeds(inputs)
        assert found is not None
        assert found["x"] is inputs["x"]
    assert len(seen._seen) <= 3


@pytest.mark.parametrize("length", [7, checks.FEW + 1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_a_shape_that_came_before_few_and_many(length: int, order: Literal["C", "F"]) -> None:
    seen = checks.SeenShapes()
    x = np.full((2, length), 4, np.int32, order)
    seen.add({"x": x}, {"x": x}, {"x": 4})
    assert seen.feeds({"x": x}) is not None
    for value in (5, -1, np.iinfo(np.int32).min):
        for place in ((0, 0), (1, length - 1)):
            wrong = x.copy(order)
            wrong[place] = value
            assert seen.feeds({"x": wrong}) is None


def test_a_shape_without_values_that_came_before() -> None:
    seen = checks.SeenShapes()
    x = np.empty((2, 0), np.int64)
    seen.add({"x": x}, {"x": x}, {"x": 4})
    assert seen.feeds({"x": x}) is not None


def test_a_default_needs_its_sizes() -> None:
    specs = {
        "mask": TensorSpec("mask", "int64", ("batch_size", "key_length"), kind="mask", default=1),
        "x": TensorSpec("x", "float32", ("batch_size", 3)),
    }
    axes: dict[str, tuple[int, int | None]] = {"batch_size": (1, None), "key_length": (1, None)}
    with pytest.raises(InputError, match="mask is missing, and nothing tells its key_length"):
        check_inputs(specs, axes, {"x": np.ones((2, 3), np.float32)})


def test_a_default_stands_before_the_input_that_gives_its_sizes() -> None:
    specs = {
        "mask": TensorSpec("mask", "bool", ("batch_size", 1, "length"), kind="mask", default=1),
        "x": TensorSpec("x", "float32", ("batch_size", "length")),
    }
    axes: dict[str, tuple[int, int | None]] = {"batch_size": (1, None), "length": (1, None)}
    feeds = check_inputs(specs, axes, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(feeds["mask"], np.ones((2, 1, 3), bool))


def test_fixed_axis() -> None:
    specs = {"x": TensorSpec("x", "float32", ("batch_size", 3))}
    with pytest.raises(InputError, match=r"x has shape \(2, 5\); it is float32 \(batch_size, 3\)"):
        check_inputs(specs, {"batch_size": (1, None)}, {"x": np.ones((2, 5), np.float32)})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_input_gives_an_answer_or_one_line(session: Session, data: st.DataObject) -> None:
    dtypes = [np.dtype(code) for code in ("i8", "i4", "f4", "?", "u1")]
    inputs: Arrays = {}
    for name in data.draw(st.sets(st.sampled_from(["input_ids", "attention_mask", "token_type_ids", "other"]))):
        shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 64, 65]), max_size=3))
        values = np.random.default_rng(0).integers(data.draw(st.integers(-2, 0)), data.draw(st.integers(1, 3)), shape)
        inputs[name] = np.asarray(values).astype(data.draw(st.sampled_from(dtypes)))
    try:
        outputs = session.run(inputs)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either way is right; one line is asked of the error
        return
    assert all(np.isfinite(value).all() for value in outputs.values())


# ---------------------------------------------------------------- lengths, segments and axes that are sums


PAST, LENGTH, TOTAL = "past_sequence_length", "sequence_length", "total_sequence_length"
SUMS = {TOTAL: (PAST, LENGTH)}
BOUNDS: dict[str, tuple[int, int | None]] = {"batch_size": (1, None), LENGTH: (1, 7), PAST: (0, 5), TOTAL: (1, None)}
KINDS = {
    spec.name: spec
    for spec in (
        TensorSpec("lengths", "int64", ("batch_size",), kind="lengths", along=LENGTH),  # before what gives the length
        TensorSpec("total", "int64", ("batch_size",), kind="lengths", along=TOTAL),
        TensorSpec("prefix", "int64", ("batch_size",), kind="prefix", along=TOTAL),
        TensorSpec("segments", "int64", ("batch_size", LENGTH), kind="segments", default=1),
        TensorSpec("x", "float32", ("batch_size", LENGTH, 3)),
        TensorSpec("mask", "int64", ("batch_size", TOTAL), kind="mask", default=1),
        TensorSpec("past", "float32", ("batch_size", PAST)),
    )
}


def kinds(batch: int = 2, length: int = 3, past: int = 2) -> Arrays:
    return {
        "lengths": np.array([0, length]),
        "total": np.array([past + length, 0]),
        "prefix": np.array([0, past + length]),
        "segments": np.array([[1] * length, [0] * (length - 1) + [9]]),
        "x": np.zeros((batch, length, 3), np.float32),
        "mask": np.ones((batch, past + length), np.int64),
        "past": np.zeros((batch, past), np.float32),
    }


@pytest.mark.parametrize("past", [0, 1, 5])
def test_every_kind_of_input_in_its_range(past: int) -> None:
    inputs = kinds(past=past)
    feeds = check_inputs(KINDS, BOUNDS, inputs, SUMS)
    assert feeds.keys() == inputs.keys()
    for name, value in inputs.items():
        assert feeds[name] is value


def test_floats_may_lie_outside_of_what_verification_draws() -> None:
    places = TensorSpec("places", "float32", ("batch_size",), high=5)
    feeds = {"places": np.array([-1.5, 7.25], np.float32)}
    np.testing.assert_array_equal(
        check_inputs({"places": places}, {"batch_size": (1, None)}, feeds, {})["places"], [-1.5, 7.25]
    )


def test_a_default_along_a_sum_has_its_size() -> None:
    inputs = kinds(past=2)
    del inputs["mask"], inputs["segments"]
    feeds = check_inputs(KINDS, BOUNDS, inputs, SUMS)
    np.testing.assert_array_equal(feeds["mask"], np.ones((2, 5)))
    np.testing.assert_array_equal(feeds["segments"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": np.array([0, 4])}, "lengths holds values from 0 to 4; they go from 0 to 3"),
        ({"lengths": np.array([-1, 3])}, "lengths holds values from -1 to 3; they go from 0 to 3"),
        ({"total": np.array([6, 0])}, "total holds values from 0 to 6; they go from 0 to 5"),
        ({"prefix": np.array([6, 1])}, "prefix holds values from 1 to 6; they go from 0 to 5"),
        ({"segments": np.array([[1, 2, -1]] * 2)}, "segments holds values from -1 to 2; they go from 0 up"),
        ({"lengths": np.array([1.0, 2.0])}, "lengths has dtype float64; it is int64 (batch_size)"),
        ({"lengths": np.array([True, False])}, "lengths has dtype bool; it is int64 (batch_size)"),
        ({"lengths": np.array([[1, 2]])}, "lengths has 2 axes, (1, 2); it is int64 (batch_size)"),
        ({"lengths": np.array([1])}, "total has batch_size 2, but an earlier input has 1"),
        ({"segments": np.array([[1, 2]] * 2)}, "x has sequence_length 3, but an earlier input has 2"),
        ({"mask": np.ones((2, 6), np.int64)}, "past_sequence_length 2 + sequence_length 3 is 5"),
        ({"mask": np.ones((2, 4), np.int64)}, "total_sequence_length is 4; past_sequence_length 2"),
        ({"past": np.zeros((2, 6), np.float32)}, "past has past_sequence_length 6; this model takes 5 at most"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_one_line(changes: Arrays, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs(KINDS, BOUNDS, kinds() | changes, SUMS)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


# ----------------------------------------------------------------------------- threads and providers


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(tiny_package: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}; it must be at least 1"):
        Session(tiny_package, threads=threads)


def test_unknown_provider(tiny_package: Path) -> None:
    with pytest.raises(ProviderError, match="provider 'tpu' is not one of cpu, cuda"):
        Session(tiny_package, "tpu")  # pyright: ignore[reportArgumentType]


def has_gpu() -> bool:
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    return "GPU" in subprocess.run([command, "-L"], capture_output=True, text=True, check=False).stdout


def test_cuda_without_a_gpu_is_refused(tiny_package: Path) -> None:
    if has_gpu():
        pytest.skip("there is a CUDA GPU here")
    with pytest.raises(ProviderError, match="CUDAExecutionProvider") as caught:
        Session(tiny_package, "cuda")
    assert "cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- broken packages


def other_signature(package: Path, change: Callable[[dict], None]) -> Package:
    loaded = load(package)
    data = encoder.signature(encoder.TINY).to_dict()
    change(data)
    return Package(loaded.path, loaded.manifest, Signature.read(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["inputs"].reverse(),
        lambda data: data["inputs"].pop(),
        lambda data: data["inputs"][0].update(name="ids"),
        lambda data: data["inputs"][0].update(dtype="int32"),
        lambda data: data["inputs"][1].update(axes=["batch_size", 1, "sequence_length"]),
        lambda data: data["outputs"].reverse(),
        lambda data: data["outputs"][0].update(dtype="float16"),
    ],
    ids=range(7),
)
def test_graph_of_another_signature(tiny_package: Path, change: Callable[[dict], None]) -> None:
    with pytest.raises(PackageError, match="the manifest says") as caught:
        Session(other_signature(tiny_package, change))
    assert "\n" not in str(caught.value)


def test_model_that_onnx_runtime_cannot_open(tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(PackageError, match=r"cannot open .*model\.onnx") as caught:
        Session(Package(tmp_path, {}, load(tiny_package).signature))
    assert "\n" not in str(caught.value)


def test_what_fails_inside_onnx_runtime_is_one_line(tiny_package: Path) -> None:
    """An id that the manifest lets pass and the graph cannot look up."""
    session = Session(other_signature(tiny_package, lambda data: data["inputs"][0].update(high=None)))
    with pytest.raises(IsoformerError, match="ONNX Runtime failed") as caught:
        session.run(unlike("input_ids", np.full((2, 7), 101)))
    assert "\n" not in str(caught.value)


def test_missing_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no such folder"):
        Session(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("[ONNXRuntimeError] : 2 : no\nmore", "2 : no"),
        ("  plain ", "plain"),
        ("", "RuntimeError"),
        ("\n", "RuntimeError"),
    ],
)
def test_first_line(message: str, line: str) -> None:
    assert first_line(RuntimeError(message)) == line


@pytest.mark.parametrize("samples", [0, 320, 1920])
def test_an_axis_that_is_a_multiple_of_one_that_no_input_has(samples: int):
    specs = {"waveform": TensorSpec("waveform", "float32", ("batch_size", "num_samples"))}
    axes = {"batch_size": (1, None), "num_samples": (0, None), "num_frames": (2, 12)}
    sums = {"num_samples": ("num_frames",) * 160}
    if samples:
        check_inputs(specs, axes, {"waveform": np.zeros((1, samples), np.float32)}, sums)
    for wrong in (samples + 1, 160, 1920 + 160):
        with pytest.raises(InputError, match=rf"num_samples is {wrong}; it is a multiple of 160, from 320 to 1920$"):
            check_inputs(specs, axes, {"waveform": np.zeros((1, wrong), np.float32)}, sums)
    unbounded = axes | {"num_frames": (2, None)}
    with pytest.raises(InputError, match=r"num_samples is 319; it is a multiple of 160, from 320 up$"):
        check_inputs(specs, unbounded, {"waveform": np.zeros((1, 319), np.float32)}, sums)
