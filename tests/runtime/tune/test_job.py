"""Stages of turns with times that are made up: what is measured, what a kill leaves, what is refused."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from isoformer.runtime import IsoformerError, load, tuning
from isoformer.runtime.cost import PACKED
from isoformer.runtime.package import MANIFEST
from isoformer.runtime.tune import candidates, job
from isoformer.runtime.tune.inputs import lengths_of
from isoformer.runtime.tuning import Choice, Record, Shape

BASE, FREE = Choice(), Choice("cpu-float32")
SHORT, PADDED = Shape(1, 7, 7), Shape(5, 13, 29)
FASTEST = Choice("cpu-float32", threads=1)


class Fake:
    """Measures what it is told: FREE is slow for short texts, and one thread is the fastest for long ones.

    stop: raise KeyboardInterrupt after so many rounds. bad: choices that fail their parity.
    """

    def __init__(self, stop: int = 10**6, bad: Iterable[Choice] = ()) -> None:
        self.refused: dict[Choice, str] = {}
        self.seen: list[tuple[Shape, frozenset[Choice]]] = []
        self._stop, self._bad, self._open = stop, set(bad), set()

    def open(self, choice: Choice) -> bool:
        if choice in self._bad:
            self.refused[choice] = "golden test_data_set_0: error 1 is over the bound 0.1"
            return False
        self._open.add(choice)
        return True

    def keep(self, choices: Iterable[Choice]) -> None:
        self._open &= set(choices)

    def round(self, shape: Shape, choices: Iterable[Choice]) -> tuple[dict[Choice, float], float]:
        if len(self.seen) == self._stop:
            raise KeyboardInterrupt
        choices = list(choices)
        assert self._open.issuperset(choices)
        self.seen.append((shape, frozenset(choices)))
        return {choice: self.time(shape, choice) for choice in choices}, 0.3

    @staticmethod
    def time(shape: Shape, choice: Choice) -> float:
        free, one = choice.variant == FREE.variant, choice.threads == 1
        if shape == SHORT:
            return 3.0 if free else 1.0
        return 10.0 * (0.5 if free else 1) * (0.8 if one else 1) * (1 if choice.spinning else 1.5)


@pytest.fixture(scope="module")
def exported(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path_factory.mktemp("job") / "package"))


@pytest.fixture
def asked(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[job.Job]:
    monkeypatch.setattr(candidates, "cores", lambda: 2)
    monkeypatch.setattr(candidates, "physical_cores", lambda: 2)
    yield job.Job(load(exported), "cpu", "float32", (SHORT, PADDED), 1.0)
    (exported / tuning.FILE).unlink()


def kept(asked: job.Job) -> Record:
    found = tuning.read(asked.package, asked.provider, asked.precision)
    assert found is not None
    return found


def test_stages_vary_what_the_stage_before_left(asked: job.Job) -> None:
    fake = Fake()
    found = job.run(asked, job.begin(asked), fake)
    assert found.finished
    assert found.table == {SHORT: BASE, PADDED: FASTEST}
    assert found == kept(asked)
    at = {shape: [choices for seen, choices in fake.seen if seen == shape] for shape in (SHORT, PADDED)}
    assert {len(turns) for turns in at.values()} == {sum(job.TURNS)}
    assert at[PADDED][0] == {BASE, FREE}
    assert at[PADDED][job.TURNS[0]] == {BASE, FREE, FASTEST}
    assert at[PADDED][-1] == {BASE, FASTEST, Choice("cpu-float32", 1, fusions=True)}
    assert not any(choice.variant for choice in at[SHORT][-1])  # the slow graph was not looked at any more
    assert found.disturbed == 1


@pytest.mark.parametrize("stop", [0, 1, 5, 13, 29])
def test_what_is_stopped_goes_on_where_it_was(asked: job.Job, stop: int) -> None:
    first = Fake(stop)
    with pytest.raises(KeyboardInterrupt):
        job.run(asked, job.begin(asked), first)
    assert len(kept(asked).rounds) == stop
    second = Fake()
    found = job.run(asked, job.begin(asked), second)
    whole = Fake()
    assert found.table == job.run(asked, job.begin(asked, anew=True), whole).table
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize(
    ("content", "others"),
    [
        ("not JSON", False),
        ('{"schema": 1, "machines": {"an abacus": {"records": {}}, "HERE": []}}', True),
        ('{"schema": 1, "machines": {"an abacus": {"records": {}}, "HERE": {"records": []}}}', True),
        ('{"schema": 1, "machines": {"an abacus": 7, "HERE": {"manifest": "EXPORT", "records": {"KEY": []}}}}', True),
    ],
)
def test_a_broken_file_is_repaired(asked: job.Job, content: str, others: bool, anew: bool) -> None:
    """Other machines' parts stay, where there are any to be read."""
    words = {"HERE": tuning.machine(), "EXPORT": tuning._export(asked.package)}
    words["KEY"] = tuning.key(asked.package, asked.provider, asked.precision)
    for word, value in words.items():
        content = content.replace(word, value)
    file = asked.package.path / tuning.FILE
    file.write_text(content)
    begun = job.begin(asked, anew=anew)
    assert (begun, begun.table, begun.rounds) == (kept(asked), {}, [])
    machines = json.loads(file.read_text())["machines"]
    assert ("an abacus" in machines) is others


def test_another_record_of_this_machine_stays_when_one_is_broken(asked: job.Job) -> None:
    other = Record(table={SHORT: BASE})
    tuning.write(asked.package, asked.provider, "int8", other)
    file = asked.package.path / tuning.FILE
    whole = json.loads(file.read_text())
    records = whole["machines"][tuning.machine()]["records"]
    records[tuning.key(asked.package, asked.provider, asked.precision)] = []
    file.write_text(json.dumps(whole))
    job.begin(asked)
    assert tuning.read(asked.package, asked.provider, "int8") == other


def test_a_file_that_cannot_be_removed_is_an_error_of_one_line(tiny_package: Path, tmp_path: Path) -> None:
    package = load(shutil.copytree(tiny_package, tmp_path / "package"))
    (package.path / tuning.FILE).mkdir()
    with pytest.raises(IsoformerError, match="cannot be written"):
        job.begin(job.Job(package, "cpu", "float32", (SHORT,), 1.0))


def test_a_finished_job_measures_nothing_again(asked: job.Job) -> None:
    job.run(asked, job.begin(asked), Fake())
    again = Fake(stop=0)
    assert job.run(asked, job.begin(asked), again).finished
    assert not again.seen


def test_time_that_is_up_ends_it(asked: job.Job) -> None:
    hurried = job.Job(asked.package, "cpu", "float32", asked.shapes, 0.0)
    found = job.run(hurried, job.begin(hurried), Fake(stop=0))
    assert (found.finished, found.table) == (False, {})
    assert "not yet decided" in str(tuning.summary(asked.package))


def test_what_fails_its_parity_is_refused_and_never_chosen(asked: job.Job) -> None:
    found = job.run(asked, job.begin(asked), Fake(bad=[FASTEST]))
    assert "over the bound" in found.refused[FASTEST]
    assert found.table == {SHORT: BASE, PADDED: FREE}
    assert FASTEST not in {choice for one in found.rounds for choice in one.times}
    assert kept(asked).refused == found.refused


def test_a_choice_that_fails_later_loses_its_place(asked: job.Job) -> None:
    job.run(asked, job.begin(asked), Fake())
    record = kept(asked)
    record.rounds.pop()
    tuning.write(asked.package, "cpu", "float32", record)
    assert job.run(asked, job.begin(asked), Fake(bad=[FASTEST])).table[PADDED] != FASTEST


def test_nothing_is_tuned_where_the_canonical_graph_fails(asked: job.Job) -> None:
    with pytest.raises(IsoformerError, match="canonical itself fails here"):
        job.run(asked, job.begin(asked), Fake(bad=[BASE]))


def test_other_shapes_begin_anew_and_the_table_stays_until_there_is_another(asked: job.Job) -> None:
    table = job.run(asked, job.begin(asked), Fake()).table
    other = job.Job(asked.package, "cpu", "float32", (Shape(3, 11, 33),), 1.0)
    begun = job.begin(other)
    assert (begun.rounds, begun.table, begun.finished) == ([], table, False)
    assert job.run(other, begun, Fake()).table.keys() == {Shape(3, 11, 33)}


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
    asked: job.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.begin(asked)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(IsoformerError, match="cannot be written: Read-only"):
        job.begin(asked)


def test_threads_are_powers_of_two_and_all() -> None:
    assert candidates.thread_counts(1, 1) == []
    assert candidates.thread_counts(2, 2) == [1]
    assert candidates.thread_counts(12, 6) == [1, 2, 4, 8, 12]
    assert candidates.thread_counts(8, None) == [1, 2, 4, 8]


def test_the_cost_of_a_graph_for_padding_has_its_two_halves(tiny_package: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    whole = manifest["variants"]["cpu-float32"] | {"provider": "openvino"}
    manifest["variants"] |= {"openvino-float32": whole, "openvino-float32-padded": whole | {"padded": True}}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    class Halves(Fake):
        @staticmethod
        def time(shape: Shape, choice: Choice) -> float:
            lengths = np.full(shape.batch, shape.length)
            if choice.variant.endswith("padded"):
                lengths = np.sort(lengths_of(shape))
            parts = (part for part in np.array_split(lengths[::-1], 2) if len(part))
            return 0.03 * (23 + lengths.sum() + sum(len(part) * part[0] ** 2 for part in parts) / 300)

    shapes = (SHORT, Shape(1, 31, 31), Shape(3, 11, 33), PADDED, Shape(7, 29, 103))
    asked = job.Job(load(path), "openvino", "float32", shapes, 1.0)
    record = job.run(asked, job.begin(asked), Halves())
    assert record.table[PADDED].variant == "openvino-float32-padded"
    assert record.cost is not None
    assert (record.cost.packed, record.cost.halves, record.cost.step) == (True, True, PACKED.step)
    assert kept(asked).cost == record.cost
