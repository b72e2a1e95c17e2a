"""The file beside the manifest: whose it is, what is refused, and which graph a session then runs."""

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.runtime import PackageError, Session, cli, load, tuning
from isoformer.runtime.by_shape import ByPadding, ByShape
from isoformer.runtime.cases import Arrays
from isoformer.runtime.cost import COSTS, PACKED, Cost
from isoformer.runtime.package import MANIFEST, Signature, TensorSpec
from isoformer.runtime.tune import candidates
from isoformer.runtime.tune.inputs import inputs_of, shapes_of
from isoformer.runtime.tuning import Choice, Record, Round, Shape

AXES = ("batch_size", "sequence_length")
MASK = TensorSpec("attention_mask", "int64", AXES, kind="mask")
TEXT = Signature((TensorSpec("ids", "int64", AXES, high=11), MASK), (), dict.fromkeys(AXES, (1, None)), ("right",))
CANONICAL, FREE = Choice(), Choice("cpu-float32", threads=1, spinning=False, fusions=True)
SHORT, PADDED = Shape(1, 7, 7), Shape(5, 13, 29)


@pytest.fixture(scope="module")
def measured(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose record names the canonical graph for short texts, and another for padded batches."""
    path = Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("tuned") / "package"))
    package = load(path)
    rounds = [Round(0, 0, SHORT, {CANONICAL: 1.5, FREE: 2.5}, 0.5)]
    table, cost = {SHORT: CANONICAL, PADDED: FREE}, Cost(7.0, 0.5, packed=True)
    record = Record([SHORT, PADDED], rounds, {Choice("cpu-int8"): "why"}, table, cost, finished=True)
    tuning.write(package, "cpu", "float32", record)
    assert tuning.read(package, "cpu", "float32") == record
    return path


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "copied"))


def padding_of(outputs: Arrays, inputs: Arrays) -> np.ndarray:
    """Hidden states at padding that no graph has to compute: 0 in the padding-free one."""
    return outputs["last_hidden_state"][:, 1:][inputs["attention_mask"][:, 1:] == 0]


def test_the_batch_decides_which_graph_runs(measured: Path) -> None:
    session = Session.fastest(measured)
    few, many = inputs_of(session.signature, SHORT), inputs_of(session.signature, Shape(4, 17, 31))
    few["attention_mask"][0, 5:] = 0
    for inputs, free in ((few, False), (many, True), (few, False)):
        assert bool((padding_of(session.run(inputs), inputs) == 0).all()) is free
    assert session.cost == Cost(7.0, 0.5, packed=True)


def test_a_graph_is_opened_when_a_batch_needs_it(measured: Path) -> None:
    session = Session.fastest(measured)
    assert session._by_shape is not None
    assert list(session._by_shape._sessions) == [CANONICAL]
    session.run(inputs_of(session.signature, PADDED))
    assert list(session._by_shape._sessions) == [CANONICAL, FREE]


def test_every_choice_computes_the_same(measured: Path) -> None:
    package = load(measured)
    choices = candidates.with_settings(candidates.graphs(package, "cpu", "float32"), "cpu")
    assert len(choices) == 2 * 4
    for shape in (SHORT, PADDED, Shape(3, 11, 33)):
        inputs = inputs_of(package.signature, shape)
        real = inputs["attention_mask"].astype(bool)
        answers = [Session(package, **choice.options()).run(inputs) for choice in choices]
        for answer in answers[1:]:
            np.testing.assert_allclose(
                answer["sentence_embedding"], answers[0]["sentence_embedding"], rtol=0, atol=2e-6
            )
            hidden, first = answer["last_hidden_state"], answers[0]["last_hidden_state"]
            np.testing.assert_allclose(hidden[real], first[real], rtol=0, atol=2e-5)


def test_threads_of_the_users_choice_leave_the_default_graph(measured: Path) -> None:
    session = Session.fastest(measured, threads=1)
    assert (session.variant, session._by_shape) == (load(measured).fastest("cpu"), None)
    assert session.cost != Cost(7.0, 0.5, packed=True)


def test_a_package_on_another_machine_runs_its_default(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "machine", lambda: "an abacus, 10 cores, onnxruntime 1.31.1")
    package = load(copied)
    assert tuning.read(package, "cpu", "float32") is None
    assert Session.fastest(copied).variant == package.fastest("cpu")
    said = str(tuning.summary(package))
    assert "on another machine" in said
    assert "the default graph runs here: isoformer tune" in said
    tuning.write(package, "cpu", "float32", Record(table={SHORT: CANONICAL}))
    assert "abacus" in str(tuning.summary(package))
    monkeypatch.undo()
    found = tuning.read(package, "cpu", "float32")
    assert found is not None  # that of this machine is still there
    assert found.table == {SHORT: CANONICAL, PADDED: FREE}


def test_the_record_of_an_earlier_export_is_not_used(copied: Path) -> None:
    manifest = json.loads((copied / "isoformer.json").read_text())
    (copied / "isoformer.json").write_text(json.dumps(manifest | {"notes": ["exported again"]}))
    package = load(copied)
    assert tuning.read(package, "cpu", "float32") is None
    assert "an earlier export" in str(tuning.summary(package))


def test_a_package_that_was_never_tuned_says_nothing(tiny_package: Path) -> None:
    assert tuning.summary(load(tiny_package)) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[: len(text) // 2], "cannot be used"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 1"),
        (lambda text: text.replace("cpu-float32 threads=1", "cpu-int2 threads=1"), "cpu-int2 is no variant"),
        (lambda text: text.replace("threads=1", "threads=-1"), "no setting"),
        (lambda text: text.replace('"5x13:29": ', '"5x13:99": '), "5x13:99"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(copied: Path, change, why: str) -> None:
    file = copied / tuning.FILE
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    with pytest.raises(PackageError, match=why) as error:
        Session.fastest(copied)
    assert "remove it, or run isoformer tune again" in str(error.value)
    assert "\n" not in str(error.value)


def record_is(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """This machine's record, or what `change` gives in its place."""

    def spoil(file: Path) -> None:
        whole = json.loads(file.read_text())
        records = whole["machines"][tuning.machine()]["records"]
        (name,) = records
        records[name] = change(records[name])
        file.write_text(json.dumps(whole))

    return spoil


def here_is(value: Any) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        file.write_text(json.dumps({"schema": 1, "machines": {tuning.machine(): value}}))

    return spoil


# name → how a good file is spoiled, and what the line says
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "no file of the package"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "no file of the package"),
    "more than 64 MiB": (lambda file: os.truncate(file, 2**26 + 1), "more than 67,108,864"),
    "nested 100,000 deep": (lambda file: file.write_text("[" * 100_000), "nested too deeply"),
    "list": (lambda file: file.write_text("[]"), "not a JSON object"),
    "machines that are a list": (lambda file: file.write_text('{"schema": 1, "machines": []}'), "machines"),
    "machine that is a list": (here_is([]), "its part for this machine"),
    "records that are a list": (here_is({"records": []}), "records"),
    "record that is a list": (record_is(lambda _record: []), "an object belongs"),
    "record without a table": (record_is(lambda record: record.pop("table") and record), "lacks table"),
    "step of 0": (record_is(lambda record: record | {"cost": record["cost"] | {"step": 0}}), "cost.step"),
    "call that is a text": (record_is(lambda record: record | {"cost": record["cost"] | {"call": "x"}}), "cost.call"),
    "call below 0": (record_is(lambda record: record | {"cost": record["cost"] | {"call": -1}}), "cost.call"),
    "cost of another kind": (record_is(lambda record: record | {"cost": {"eval": "x"}}), "unknown key 'eval'"),
}
# These have the form, so that `inspect` shows them, and are refused by who opens a session.
BEYOND: dict[str, tuple[Callable[[Path], Any], str]] = {
    "2,000 threads": (record_is(lambda record: record | {"table": {"1x16": "canonical threads=2000"}}), "processors"),
    "2,000 threads in a round": (
        record_is(lambda record: (record["rounds"][0]["ms"].update({"canonical threads=2000": 1.0}), record)[1]),
        "processors",
    ),
    "shape of 10^12": (record_is(lambda record: record | {"table": {"1x1000000000000": "canonical"}}), "no shape"),
}


@pytest.mark.parametrize("name", HOSTILE | BEYOND)
@pytest.mark.parametrize("command", ["inspect", "run"])
def test_a_hostile_file_is_refused_in_one_line(copied: Path, monkeypatch, capsys, command: str, name: str) -> None:
    spoil, words = (HOSTILE | BEYOND)[name]
    spoil(copied / tuning.FILE)
    monkeypatch.setattr(sys, "argv", ["isoformer", command, str(copied), *(["a"] if command == "run" else [])])
    if command == "inspect" and name in BEYOND:
        cli.app(standalone_mode=False)
        return
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith("isoformer: ")
    assert said.err.count("\n") == 1
    assert words in said.err


def test_a_link_out_that_is_made_later_is_not_followed(copied: Path, tmp_path: Path) -> None:
    package, outside = load(copied), tmp_path / "outside"
    (copied / tuning.FILE).rename(outside)
    (copied / tuning.FILE).symlink_to(outside)
    with pytest.raises(PackageError, match="no file of the package"):
        tuning.read(package, "cpu", "float32")


def test_a_variant_of_less_than_was_asked_for_is_refused(copied: Path) -> None:
    package = load(copied)
    package.variants["cpu-float32"]["precision"] = "int8"
    with pytest.raises(PackageError, match="less than float32"):
        tuning.read(package, "cpu", "float32")
    assert tuning.read(package, "cpu", "int8") is None


def test_what_stands_in_the_place_of_the_new_file_is_not_written_to(copied: Path) -> None:
    os.mkfifo(copied / f".{tuning.FILE}.partial")
    record = Record(table={SHORT: CANONICAL})
    tuning.write(load(copied), "cpu", "float32", record)
    assert tuning.read(load(copied), "cpu", "float32") == record


def test_the_most_similar_batch_decides() -> None:
    table = {Shape(1, 16, 16): Choice("a"), Shape(1, 512, 512): Choice("b"), Shape(8, 128, 697): Choice("c")}
    table |= {Shape(8, 128, 1024): Choice("d")}
    chosen = {}
    for shape in (*table, Shape(1, 11, 11), Shape(1, 400, 400), Shape(7, 120, 600), Shape(6, 150, 900)):
        chosen[str(shape)] = ByShape(TEXT, table).choose(inputs_of(TEXT, shape)).variant
    assert list(chosen.values()) == ["a", "b", "c", "d", "a", "b", "c", "d"]


def test_who_comes_first_makes_no_difference() -> None:
    table = {Shape(1, 31, 31): Choice("a"), Shape(3, 67, 67 * 3): Choice("b"), Shape(3, 67, 101): Choice("c")}
    shapes = [Shape(rows, length, rows * length) for rows in (1, 2, 3, 5) for length in (11, 29, 61, 127)]
    found = []
    for order in (shapes, shapes[::-1]):
        by_shape = ByShape(TEXT, table)
        found.append({shape: by_shape.choose(inputs_of(TEXT, shape)) for shape in order})
    assert found[0] == found[1]


def test_padding_decides_where_nothing_was_measured(tiny_package: Path, tmp_path: Path) -> None:
    padded = Choice("cpu-float32-padded")
    choose = ByPadding(TEXT, CANONICAL, padded).choose
    shapes = {Shape(8, 128, 1024): CANONICAL, Shape(8, 128, 990): CANONICAL, Shape(8, 128, 697): padded}
    shapes |= {Shape(2, 16, 20): CANONICAL, Shape(1, 16, 16): CANONICAL, Shape(16, 256, 2656): padded}
    assert {shape: choose(inputs_of(TEXT, shape)) for shape in shapes} == shapes
    # A session of such a package opens the second graph with the first batch that wants it.
    path = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"]["cpu-float32-padded"] = manifest["variants"]["cpu-float32"] | {"padded": True}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    session = Session.fastest(path)
    assert session._by_shape is not None
    assert session.cost == PACKED
    mask = np.ones((13, 11), np.int64)
    first = session.run({"input_ids": mask, "attention_mask": mask, "token_type_ids": mask})
    assert [choice.variant for choice in session._by_shape._sessions] == ["cpu-float32"]
    mask[1:, 1:] = 0
    session.run({"input_ids": mask, "attention_mask": mask, "token_type_ids": mask})
    assert [choice.variant for choice in session._by_shape._sessions] == ["cpu-float32", "cpu-float32-padded"]
    assert first.keys() == {spec.name for spec in session.signature.outputs}
    # So does a tuned one; where its shapes were too few to say what a batch costs, it costs as before.
    package, table = load(path), {SHORT: Choice("cpu-float32"), PADDED: Choice("cpu-float32-padded")}
    tuning.write(package, "cpu", "float32", Record([SHORT, PADDED], [], {}, table, finished=True))
    assert Session.fastest(path).cost == PACKED
    tuning.write(package, "cpu", "float32", Record([SHORT, PADDED], [], {}, {SHORT: CANONICAL}, finished=True))
    assert Session.fastest(path).cost == COSTS["cpu"]


def test_lengths_say_what_is_padding_too() -> None:
    lengths = TensorSpec("lengths", "int64", AXES[:1], kind="lengths", along=AXES[1])
    signature = Signature((TensorSpec("ids", "int64", AXES, high=11), lengths), (), TEXT.axes, ("right",))
    choose = ByPadding(signature, CANONICAL, FREE).choose
    ids = np.zeros((8, 128), np.int64)
    assert choose({"ids": ids, "lengths": np.full(8, 128)}) == CANONICAL
    assert choose({"ids": ids, "lengths": np.arange(121, 129) // 2}) == FREE


def test_a_graph_for_padding_that_is_of_another_precision_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    for changes in ({"precision": "bfloat16", "padded": True}, {"provider": "openvino", "padded": True}, {}):
        manifest["variants"]["cpu-float32-padded"] = manifest["variants"]["cpu-float32"] | changes
        (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(PackageError, match="no graph for the padded batches of cpu-float32"):
            Session.fastest(path)
    with pytest.raises(PackageError, match="no float32-padded for cpu"):
        Session.fastest(path, precision="float32-padded")


def test_a_reproducible_graph_is_tuned_alone(tiny_package: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"]["cpu-int8"] = manifest["variants"]["cpu-float32"] | {"precision": "int8", "reproducible": True}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    package = load(path)
    assert candidates.graphs(package, "cpu", "int8") == [Choice("cpu-int8")]
    assert len(candidates.graphs(package, "cpu", "float32")) > 1
    tuning.write(package, "cpu", "int8", Record(table={SHORT: Choice("cpu-float32")}))
    with pytest.raises(PackageError, match="other tokens than cpu-int8"):
        tuning.read(package, "cpu", "int8")


def test_choosing_takes_a_few_microseconds() -> None:
    by_shape = ByShape(TEXT, {Shape(1, 16, 16): Choice("a"), Shape(8, 128, 697): Choice("b")})
    feeds = inputs_of(TEXT, Shape(8, 128, 697))
    by_shape.choose(feeds)
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        by_shape.choose(feeds)
        times.append(time.perf_counter() - start)
    assert min(times) < 3e-6  # the least: others may be at work


@pytest.mark.parametrize(
    "choice",
    [
        Choice(name, threads, spinning, fusions)
        for name, threads, spinning, fusions in itertools.product(
            ("", "cpu-int8"), (0, 3), (True, False), (True, False)
        )
    ],
    ids=str,
)
def test_choices_are_written_as_they_are_read(choice: Choice) -> None:
    assert Choice.parse(str(choice)) == choice


def test_shapes_are_written_as_they_are_read() -> None:
    for text in ("1x16", "8x128:697", "prefill 1x512", "step 4x64"):
        assert str(Shape.parse(text)) == text
    for text in ("", "8", "8x", "0x3", "2x3:7", "2x3:3", "8x128:", "warm 1x2"):
        with pytest.raises(ValueError, match="x"):
            Shape.parse(text)


def test_default_shapes_fit_the_model(tiny_package: Path) -> None:
    package = load(tiny_package)
    limit = package.signature.axes["sequence_length"][1]
    assert limit is not None
    shapes = shapes_of(package, None)
    assert max(shape.length for shape in shapes) <= limit
    assert any(shape.real < shape.batch * shape.length for shape in shapes)
    for shape in shapes:
        mask = inputs_of(package.signature, shape)["attention_mask"]
        assert (mask.shape, mask.sum()) == ((shape.batch, shape.length), shape.real)
