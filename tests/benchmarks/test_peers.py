"""The parts of benchmarks.peers that compute and write; nothing is measured here."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import engines, environments, inputs, measures, records, report, tables, worker
from benchmarks.peers.engines import ANCHOR, PEERS, Engine
from benchmarks.turns import take_turns
from isoformer.runtime.package import Package, Signature

ROOF = {"products": {"float32": 4e11, "bfloat16": 3e12, "int8": 5e12}, "read": 5e10, "memory": 2e10}
HEAD = {"machine": {"processor": "a <machine>", "cores": 2}, "versions": {"isoformer": {"torch": "2"}}}
HEAD |= {"threads": 2, "date": "2026-01-02", "roofline": ROOF}
OURS = Engine("isoformer", "isoformer canonical", "isoformer", ours=True)
SMALL = Engine("isoformer-cpu-int8", "isoformer cpu-int8", "isoformer", linear="int8", ours=True)


def turns(*times: float, engine: str = "e") -> list[dict]:
    more = {"waited": 0.25, "peak_mb": 7.0, "answer": [[0.5, 0.25]]}
    return [{"engine": engine, "ms": time, "least_ms": time / 2} | more for time in times]


def filled(chosen=(OURS, SMALL, *PEERS)) -> records.Results:
    """Made-up times of every engine at every shape, and accuracies."""
    results = records.Results(dict(HEAD))
    rng = np.random.default_rng(3)
    exact = rng.standard_normal((11, 5))
    for number, engine in enumerate(chosen):
        results.put(records.accuracy_row(engine, exact, exact + 1e-3 * rng.standard_normal(exact.shape)))
        for shape in inputs.ALL:
            time = 0.01 * shape[0] * shape[1] * (1 + number / 7)
            results.put(records.measurement(engine, shape, turns(time, time * 1.1), turns(3.0, 3.5)))
    return results


def test_quartiles_and_ratios_are_those_of_the_turns():
    assert measures.quartiles([5, 1, 3, 2, 4]) == [2, 3, 4]
    # each turn by itself: 2/1, 9/3, 20/5, and not 9/3 of the medians alone
    assert measures.ratios([2, 9, 20], [1, 3, 5]) == [2.5, 3, 3.5]
    with pytest.raises(ValueError, match="2 and 1 turns"):
        measures.ratios([1, 2], [1])


def test_accuracy_of_a_known_rotation():
    exact = np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    turned = exact @ np.array([[0.96, 0.28], [-0.28, 0.96]])  # every vector by the same angle, whose cosine is 0.96
    found = measures.accuracy(exact, 3 * turned)
    assert found["mean_cosine"] == pytest.approx(0.96)
    assert found["least_cosine"] == pytest.approx(0.96)
    assert found["spearman"] == pytest.approx(1)  # pairs stand to each other as before
    assert found["largest_difference"] == pytest.approx(0.28)


def test_accuracy_sees_pairs_that_change_places():
    exact = np.array([[1.0, 0], [0, 1], [0.8, 0.6]])
    assert measures.accuracy(exact, exact[[1, 0, 2]])["spearman"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.full((3, 2), np.nan), np.ones((3, 5)), np.ones((2, 2))])
def test_accuracy_compares_nothing_else(bad):
    with pytest.raises(ValueError, match="embeddings"):
        measures.accuracy(np.eye(3, 2) + 1, bad)


def test_operations_count_real_tokens_only():
    linear, attention = measures.operations([2, 3])
    assert linear == 2 * 5 * 6 * 12 * 384 * 384
    assert attention == 4 * 6 * 384 * (4 + 9)


def test_the_floor_is_computing_or_reading_whichever_takes_longer():
    reading = measures.floor_ms([1], "float32", "float32", ROOF)
    assert reading == pytest.approx(measures.LINEAR_WEIGHTS * 4 / 5e10 * 1e3)
    linear, attention = measures.operations([512])
    assert measures.floor_ms([512], "int8", "float32", ROOF) == pytest.approx((linear / 5e12 + attention / 4e11) * 1e3)


def test_a_measurement_says_how_far_its_answer_is_off():
    found = turns(1.0, 3.0)
    found[1]["answer"] = [[0.5, 0.375]]
    row = records.measurement(OURS, (1, 16, 16), found, turns(4.0, 6.0))
    assert (row["median_ms"], row["times_faster_than_anchor"]) == (2.0, 3.0)
    assert row["largest_difference"] == 0.125
    assert row["turns_ms"] == [1, 3]


def test_a_turn_keeps_the_runs_that_waited_least_however_long_they_took():
    assert worker.calm([5.0, 1.0, 9.0], [0.3, 0.9, 0.1]) == [9.0, 5.0]
    assert worker.calm([5.0], [0.3]) == [5.0]


def test_a_turn_gives_the_first_answer_and_counts_at_least_three_runs():
    found = worker.turn(lambda inputs: inputs["x"] + 1, {"x": np.ones((2, 3))})
    assert found["answer"] == [[2.0] * 3] * 2
    assert found["runs"] >= worker.LEAST_RUNS
    assert 0 < found["least_ms"] <= found["ms"]


def test_pooling_is_the_normalised_mean_of_real_tokens():
    hidden = np.array([[[3.0, 0], [3, 8], [99, 99]], [[0, 7], [99, 0], [0, 99]]], np.float32)
    found = worker.pool(hidden, np.array([[1, 1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_ratios_are_taken_turn_by_turn_only_of_the_same_turns():
    own = records.measurement(OURS, (1, 16, 16), turns(1.0, 2.0), turns(4.0, 4.0))
    same = records.measurement(PEERS[1], (1, 16, 16), turns(3.0, 2.0), turns(4.0, 4.0))
    later = records.measurement(PEERS[1], (1, 16, 16), turns(3.0, 2.0), turns(8.0, 8.0))
    assert tables.beside(own, same) == [1.5, 2.0, 2.5]
    assert tables.beside(own, later)[1] == pytest.approx(
        own["times_faster_than_anchor"] / later["times_faster_than_anchor"]
    )


def test_the_best_peer_is_of_the_same_class_and_not_ours():
    results = filled()
    assert tables.best_peer(results, "1x16x16", tables.EXACT) == results.rows[ANCHOR, "1x16x16"]
    lower = tables.best_peer(results, "1x16x16", tables.LOWER)
    assert lower is not None
    assert lower["engine"] == "torch-bf16"
    assert tables.over_best(results, "isoformer") == pytest.approx(1 + 2 / 7)


def test_results_come_back_as_they_were_kept(tmp_path):
    results = filled()
    results.note_failures({"ctranslate2-int8": "pip failed"}, ["ctranslate2-int8"])
    file = tmp_path / "peers.jsonl"
    results.write(file)
    again = records.Results.read(file, HEAD)
    assert again.has("isoformer", (1, 16, 16), 2)
    assert not again.has("isoformer", (1, 16, 16), 3)
    assert again.failures == {"ctranslate2-int8": "pip failed"}
    row = json.loads(file.read_text().splitlines()[-1])
    assert row["share_of_roofline"] == pytest.approx(again.share(row), abs=1e-4)
    again.note_failures({}, ["ctranslate2-int8"])
    assert not again.failures


@pytest.mark.parametrize("other", [{"machine": {"cores": 3}}, {"versions": {"isoformer": {"torch": "3"}}}])
def test_results_of_another_machine_or_version_are_not_mixed(tmp_path, other):
    filled().write(tmp_path / "peers.jsonl")
    assert not records.Results.read(tmp_path / "peers.jsonl", HEAD | other).rows


class Page(HTMLParser):
    """Collects texts and what would be fetched; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts, self.fetched, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.fetched += [
            value for name, value in attrs if name in ("src", "srcset") or (name == "href" and tag != "use")
        ]
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag in self.open:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_names_every_engine_and_unit_and_needs_no_network():
    results = filled()
    results.note_failures({"lost-engine": "it stopped"}, ["lost-engine"])
    page = Page(report.page(results))
    assert not page.open
    assert not page.fetched
    text = "\n".join(page.texts)
    for engine in (OURS, SMALL, *PEERS):
        assert engine.label in text
    for axis in ("latency, ms (median)", "length of one sequence, tokens", "real tokens of the 1024", "lost-engine"):
        assert axis in text
    assert "a <machine>" in text
    assert "GB/s" in text
    # shown wide and narrow; an id stands once
    ids = re.findall(r'\bid="([^"]+)"', report.page(results))
    assert len(ids) == len(set(ids)) > 0


def test_the_readme_table_has_the_ratio_of_ours_to_the_best_peer():
    lines = tables.markdown(filled()).splitlines()
    ours = next(line for line in lines if line.startswith("| isoformer canonical"))
    assert ours.count("(1.29)") == len(tables.MAIN)
    assert any(line.startswith("| CTranslate2 int8 |") for line in lines)


def test_a_time_is_marked_where_threads_waited_for_a_processor():
    found = turns(1.0, 2.0, 3.0)
    calm = records.measurement(OURS, (1, 16, 16), found, turns(4.0, 4.0, 4.0))
    assert tables.milliseconds(calm) == "2.00"
    busy = records.measurement(OURS, (1, 16, 16), [turn | {"waited": 0.75} for turn in found], turns(4.0, 4.0, 4.0))
    assert tables.milliseconds(busy) == "2.00†"


@pytest.mark.parametrize("engine", PEERS, ids=lambda engine: engine.name)
def test_every_peer_names_an_environment_with_pinned_versions(engine):
    if engine.environment is not None:
        file = Path(records.__file__).parent / f"{engine.environment}.txt"
        pinned = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert pinned
        assert all("==" in line for line in pinned)


def test_shapes_have_the_real_tokens_that_they_name():
    for shape in inputs.ALL:
        lengths = inputs.row_lengths(shape)
        assert (len(lengths), max(lengths), sum(lengths)) == shape
        assert inputs.read(inputs.name(shape)) == shape
    with pytest.raises(ValueError, match="3x5x7 is none of"):
        inputs.read("3x5x7")


def test_sentences_come_from_the_longest_cell_without_repeats(tmp_path):
    rows = ["text\tkind", "string\tdiscrete", "meta\tclass"]
    rows += ["One two three four five. Too short. One  two three four five.\tx", "This one is another of them!\ty"]
    (tmp_path / "t.tab").write_text("\n".join(rows))
    assert inputs.sentences(tmp_path / "t.tab") == ["One two three four five.", "This one is another of them!"]


def test_engines_that_stop_are_told_and_left_out():
    answers = [sys.executable, "-c", "import sys\nfor line in sys.stdin: print('{\"shape\": 1}', flush=True)"]
    stops = [sys.executable, "-c", "input()"]
    lost: list[str] = []
    found = list(take_turns({"good": answers, "bad": stops}, ["q"], 2, lost.append))
    assert [reply["turn"] for reply in found] == [0, 1]
    assert lost == ["bad"]
    with pytest.raises(SystemExit, match="bad stopped"):
        list(take_turns({"bad": stops}, ["q"], 1))


@pytest.mark.slow  # makes a virtual environment
def test_an_environment_that_pip_cannot_make_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "nothing.txt").write_text("--no-index\nno-such-engine==1.0\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    with pytest.raises(RuntimeError, match=r"the environment nothing could not be made: ERROR.*no-such-engine") as told:
        environments.python(tmp_path / "peers", "nothing")
    assert "\n" not in str(told.value)
    assert not environments.made(tmp_path / "peers", "nothing")


def test_ours_are_the_graphs_that_a_session_runs():
    variants = {
        "cpu-float32": {"provider": "cpu", "precision": "float32", "cache": "plain"},
        "cpu-int8": {"provider": "cpu", "precision": "int8", "cache": "plain"},
        "openvino-bf16": {"provider": "openvino", "precision": "bf16", "cache": "plain"},
        "openvino-bf16-padded": {"provider": "openvino", "precision": "bf16", "cache": "plain", "padded": True},
        "cpu-int4": {"provider": "cpu", "precision": "int4", "cache": "shared"},
    }
    package = Package(Path("p"), {"variants": variants}, Signature((), (), {}, ()))
    found = {engine.name: engine for engine in engines.ours(package)}
    assert list(found) == [
        "isoformer",
        "onnxruntime-plain",
        "isoformer-cpu-float32",
        "isoformer-cpu-int8",
        "isoformer-openvino-bf16",
    ]
    assert found["isoformer-cpu-float32"].exact
    assert (found["isoformer-cpu-int8"].linear, found["isoformer-cpu-int8"].attention) == ("int8", "float32")
    assert found["isoformer-openvino-bf16"].options == ("openvino", "bf16")
    assert found["isoformer-openvino-bf16"].kind == "isoformer-fastest"
    assert found["isoformer-openvino-bf16"].linear == "bfloat16"
