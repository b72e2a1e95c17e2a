"""A job: every row once, whatever the formats, and whenever and however often it is stopped."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from isoformer.runtime import InputError, PackageError, Session, load, tuning
from isoformer.runtime.batch import Job, folder, job, parts, run
from isoformer.runtime.batch.rows import Source
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import embed, generate

WORDS = ["once", "upon", "a", "time", "there", "was", "a", "fox", "ça", "va", "火"]


def sentences(count: int) -> list[str]:
    draw = random.Random(count)  # noqa: S311
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(count)]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes texts, and another column, as a file of a format."""

    def write(kind: str, texts: list[str], column: str = "text") -> Path:
        path, rows = tmp_path / f"in.{kind}", [{"id": n, column: text} for n, text in enumerate(texts)]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        elif kind == "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["id", column])
                writer.writeheader()
                writer.writerows(rows)
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write


def read(path: Path) -> list[dict[str, Any]]:
    """The rows; cells of CSV as JSON has them, where they are JSON."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return [row | {"embedding": json.loads(row["embedding"])} for row in csv.DictReader(file)]


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("target", ["jsonl", "csv", "parquet"])
def test_formats(embedder: Path, table: Callable[..., Path], tmp_path: Path, source: str, target: str) -> None:
    texts = sentences(17)
    output = tmp_path / f"out.{target}"
    outcome = run(Job(embedder, table(source, texts), output, part_rows=7))
    assert (outcome.rows, outcome.bad, outcome.rejected, outcome.computed) == (17, 0, None, 17)
    found = read(output)
    assert [row["text"] for row in found] == texts
    assert [int(row["id"]) for row in found] == list(range(17))
    expected = embed.embeddings(Session(embedder), texts)
    np.testing.assert_allclose(np.array([row["embedding"] for row in found], np.float32), expected, atol=1e-6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([f"in.{source}", output.name])


def test_columns_stay_as_they_are_written(embedder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    line = '{"n": 12345678901234567890123, "text":"a fox",  "x": 1.50, "n2": [1, {"a": null}]}'
    source.write_text(line + "\n")
    run(Job(embedder, source, tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text().startswith(line[:-1] + ', "embedding": [')


def test_parquet_types_stay(embedder: Path, tmp_path: Path) -> None:
    given = pyarrow.table(
        {
            "when": pyarrow.array([1_000_000_001, 2, 3], pyarrow.timestamp("ns", "UTC")),
            "bytes": pyarrow.array([b"\xff", None, b""]),
            "text": pyarrow.array(["a", "b", "c"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(given, tmp_path / "in.parquet")
    run(Job(embedder, tmp_path / "in.parquet", tmp_path / "out.parquet", part_rows=2))
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.drop_columns("embedding").cast(given.schema) == given
    assert found.schema.field("when").type == given.schema.field("when").type
    assert found.schema.field("embedding").type == pyarrow.list_(pyarrow.float32())
    run(Job(embedder, tmp_path / "in.parquet", tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl")[0] | {"embedding": 0} == {
        "when": "1970-01-01 00:00:01.000000001Z",
        "bytes": "/w==",
        "text": "a",
        "embedding": 0,
    }


def test_columns_that_differ_from_row_to_row(embedder: Path, tmp_path: Path) -> None:
    """Parquet has one type a column: what has nothing in common becomes JSON, within a part and between parts."""
    source = tmp_path / "in.jsonl"
    values = [1, "x", None, 2.5, 3, {"a": 1}, [0]]
    source.write_text("".join(json.dumps({"text": "a", f"v{n // 6}": v, "i": n}) + "\n" for n, v in enumerate(values)))
    run(Job(embedder, source, tmp_path / "out.parquet", part_rows=2))
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").drop_columns(["embedding", "text"]).to_pylist()
    assert [row["v0"] for row in found] == ["1", "x", None, "2.5", "3", '{"a": 1}', None]
    assert [row["v1"] for row in found] == [None] * 6 + [[0]]
    assert [row["i"] for row in found] == list(range(7))
    run(Job(embedder, source, tmp_path / "out.csv", part_rows=2))
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["v0"] for row in rows] == ["1", "x", "", "2.5", "3", '{"a": 1}', ""]


def test_bad_rows_go_aside(embedder: Path, tmp_path: Path) -> None:
    texts = sentences(23)
    lines = [json.dumps({"text": text}) for text in texts]
    long = "z" * 100
    lines[5], lines[11], lines[22] = "{", json.dumps({"text": long}), json.dumps({"text": None})
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    outcome = run(Job(embedder, source, tmp_path / "out.jsonl", part_rows=9))
    assert (outcome.rows, outcome.bad) == (20, 3)
    assert outcome.rejected == tmp_path / "out.rejected.jsonl"
    rejected = read(tmp_path / "out.rejected.jsonl")
    assert [row["row"] for row in rejected] == [6, 12, 23]
    assert "not JSON" in rejected[0]["reason"]
    assert "has 100 tokens; this model takes 64 at most" in rejected[1]["reason"]
    assert [row["input"] for row in rejected] == [lines[5], lines[11], lines[22]]
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == [
        t for n, t in enumerate(texts) if n not in (5, 11, 22)
    ]
    cut = run(Job(embedder, source, tmp_path / "cut.jsonl", options={"truncate": True}))
    assert (cut.rows, cut.bad) == (21, 2)


class Stop(BaseException):
    """What stops a job at once, as a kill does; no handler of errors catches it."""


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_stopped_at_every_write(
    embedder: Path, table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Stopped before each write and rename in turn, then begun again: the output is the same, to the byte."""
    source, calls, limit = table("jsonl", [*sentences(10), "z" * 100]), 0, 0
    run(Job(embedder, source, tmp_path / f"whole.{target}", part_rows=4))
    expected = (tmp_path / f"whole.{target}").read_bytes()
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink")}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Stop
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    for limit in range(1, 60):
        made = Job(embedder, source, tmp_path / f"out{limit}.{target}", part_rows=4)
        calls = 0
        try:
            run(made)
        except Stop:
            calls = limit  # none is stopped any more
            if made.output.exists() and not list(tmp_path.glob(".*.partial")):
                continue  # all was done but the tidying up
            run(made)
        else:
            break
        assert made.output.read_bytes() == expected
        assert job.rejected_file(made.output).read_bytes() == (tmp_path / "whole.rejected.jsonl").read_bytes()
        assert not list(tmp_path.glob(".*"))
    assert limit > 20


def test_half_a_line_in_the_journal(embedder: Path, table: Callable[..., Path], tmp_path: Path) -> None:
    made = Job(embedder, table("jsonl", sentences(10)), tmp_path / "out.jsonl", part_rows=3)
    stop_before_the_end(made)
    journal = tmp_path / ".out.jsonl.partial" / folder.JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])
    outcome = run(made)
    assert (outcome.rows, outcome.computed) == (10, 1)  # the last part alone


def stop_before_the_end(made: Job) -> None:
    """All parts are there, and nothing says so yet."""

    def stop(*_arguments: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.Folder, "finish", stop)
        with pytest.raises(Stop):
            run(made)


def test_what_another_job_left(embedder: Path, table: Callable[..., Path], tmp_path: Path) -> None:
    source = table("jsonl", sentences(5))
    made = Job(embedder, source, tmp_path / "out.jsonl", part_rows=3)
    stop_before_the_end(made)
    other = Job(embedder, source, tmp_path / "out.jsonl", part_rows=2)
    with pytest.raises(InputError, match="differs in part_rows"):
        run(other)
    assert run(other, force=True).computed == 5
    with pytest.raises(InputError, match="exists; --force replaces it"):
        run(made)
    assert run(made, force=True).rows == 5


def test_two_at_one_place(embedder: Path, table: Callable[..., Path], tmp_path: Path) -> None:
    made = Job(embedder, table("jsonl", ["a"]), tmp_path / "out.jsonl")
    with folder.Folder(made.output).locked(), pytest.raises(Exception, match="another process works in"):
        run(made)


def test_names_of_new_columns(
    embedder: Path, generator_package: Path, tmp_path: Path, table: Callable[..., Path]
) -> None:
    source = tmp_path / "has.jsonl"
    source.write_text('{"text": "a", "embedding": 1}\n{"text": "b"}\n')
    outcome = run(Job(embedder, source, tmp_path / "out.jsonl"))
    assert (outcome.rows, outcome.bad) == (1, 1)
    assert run(Job(embedder, source, tmp_path / "named.jsonl", prefix="new_")).rows == 2
    assert set(read(tmp_path / "named.jsonl")[0]) == {"text", "embedding", "new_embedding"}
    texts = sentences(3)
    settings = {"max_tokens": 5}
    run(Job(generator_package, table("jsonl", texts), tmp_path / "told.jsonl", options={"settings": settings}))
    session = Session.fastest(generator_package)
    expected = generate.run(session, texts, settings=Settings(max_tokens=5))
    assert [row["generate_text"] for row in read(tmp_path / "told.jsonl")] == [row["text"] for row in expected]


def test_draws_do_not_depend_on_where_a_job_was_stopped(
    generator_package: Path, tmp_path: Path, table: Callable[..., Path]
) -> None:
    options = {"settings": {"max_tokens": 5, "temperature": 1.0, "seed": 3}}
    source = table("jsonl", ["once"] * 6)
    made = Job(generator_package, source, tmp_path / "out.jsonl", part_rows=2, options=options)
    run(Job(generator_package, source, tmp_path / "whole.jsonl", part_rows=2, options=options))
    stop_before_the_end(made)
    run(made)
    assert read(tmp_path / "out.jsonl") == read(tmp_path / "whole.jsonl")
    assert len({row["generate_text"] for row in read(tmp_path / "out.jsonl")}) > 2


def test_parts_that_are_there_out_of_order(embedder: Path, table: Callable[..., Path], tmp_path: Path) -> None:
    """Workers finish in any order; what is left is done, in any order."""
    source = table("csv", sentences(11))

    def some(work: job.Work, place: folder.Folder, _progress: Any) -> None:
        for number, chunk in list(work.chunks({})):
            if number in (1, 3):
                job.write_part(place, number, work.output, chunk, work.answer(chunk))
        job.in_turn(work, place, _progress)

    run(Job(embedder, source, tmp_path / "whole.jsonl", part_rows=2))
    run(Job(embedder, source, tmp_path / "out.jsonl", part_rows=2), engine=some)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_refusals(embedder: Path, tmp_path: Path, table: Callable[..., Path]) -> None:
    source = table("jsonl", ["a"])
    with pytest.raises(InputError, match="--language: not for the task embed"):
        run(Job(embedder, source, tmp_path / "out.jsonl", options={"language": "de"}))
    with pytest.raises(InputError, match="--max-tokens: not for the task embed"):
        run(Job(embedder, source, tmp_path / "out.jsonl", options={"settings": {"max_tokens": 3}}))
    with pytest.raises(InputError, match="cannot be written"):
        run(Job(embedder, source, tmp_path / "absent" / "out.jsonl"))
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        run(Job(embedder, source, tmp_path / "dir.jsonl"))
    with pytest.raises(PackageError, match="not a package"):
        run(Job(tmp_path, source, tmp_path / "out.jsonl"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dir.jsonl", "in.jsonl"]


def test_a_full_disk_is_one_line_and_loses_nothing(
    embedder: Path,
    table: Callable[..., Path],
    tmp_path: Path,
    isoformer: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    source, output = table("jsonl", sentences(40)), tmp_path / "out.jsonl"
    script = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from isoformer.runtime.cli import main; main()"
    )
    arguments = ["batch", str(embedder), str(source), str(output), "--part-rows", "10"]
    full = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert full.returncode == 2
    assert full.stderr.startswith(f"isoformer: {output} cannot be written: File too large")
    assert len(full.stderr.splitlines()) == 1
    assert not output.exists()
    done = isoformer(*arguments)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stderr
    assert len(read(output)) == 40
    assert Source(output, "text").size == output.stat().st_size


def test_a_package_that_was_tuned_meanwhile_is_another_job(
    embedder: Path, table: Callable[..., Path], tmp_path: Path
) -> None:
    package = Path(shutil.copytree(embedder, tmp_path / "package"))
    made = Job(package, table("jsonl", sentences(5)), tmp_path / "out.jsonl", part_rows=3)
    stop_before_the_end(made)
    record = tuning.Record(table={tuning.Shape(1, 7, 7): tuning.Choice()})
    tuning.write(load(package), "cpu", "float32", record)
    with pytest.raises(InputError, match="differs in tuned"):
        run(made)
    assert run(made, force=True).computed == 5


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_parts_of_two_writers_of_numbers_are_not_mixed(
    embedder: Path, table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    again = Job(embedder, table("jsonl", sentences(5)), tmp_path / f"out.{kind}", part_rows=2)
    stop_before_the_end(again)
    monkeypatch.setattr(parts, "orjson", None)
    if kind == "parquet":  # where numbers have no digits
        assert run(again).rows == 5
    else:
        with pytest.raises(InputError, match="differs in orjson:") as caught:
            run(again)
        assert "\n" not in str(caught.value)
        monkeypatch.undo()
        assert run(again).rows == 5


def test_numbers_of_float32_are_exact_with_orjson_and_without(monkeypatch):
    exact = np.random.default_rng(0).standard_normal(500).astype(np.float32) * np.float32(10) ** np.arange(
        -38, 37, 0.15
    )
    exact = exact.astype(np.float32)
    for library in (orjson, None):
        monkeypatch.setattr(parts, "orjson", library)
        assert (np.array(json.loads(parts._json(exact)), np.float32) == exact).all()
        assert json.loads(parts._json(np.array([1, np.nan, np.inf], np.float32))) == [1, None, None]
