"""Rows in: every row once, from any place that a chunk ended at, whatever stands in the file."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoformer.runtime import InputError
from isoformer.runtime.batch import rows
from isoformer.runtime.batch.rows import Place, Source

START = Place(0, 0)


def read(path: Path, most: int = 3, column: str = "text") -> list[rows.Row]:
    """All rows; every chunk is also read by itself, from its start."""
    source, found = Source(path, column), []
    for chunk in source.chunks(START, most):
        again = next(source.chunks(chunk.start, most))
        assert (again.rows, again.end) == (chunk.rows, chunk.end)
        assert len(chunk.rows) <= most
        found += chunk.rows
    return found


def texts(path: Path, **options: Any) -> list[str]:
    return [row.text if row.reason is None else f"bad: {row.reason}" for row in read(path, **options)]


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "one", "n": 12345678901234567890123}',
        b"",
        b'  {"text": "two"}\r',
        b"[1]",
        b'{"text": 7}',
        b'{"other": "x"}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "last, without a line feed"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read(path)
    assert [row.number for row in found] == [1, 3, 4, 5, 6, 7, 8, 9, 10]  # lines, as an editor counts them
    assert [row.text for row in found if row.reason is None] == ["one", "two", "last, without a line feed"]
    reasons = [row.reason or "" for row in found if row.reason is not None]
    for reason, words in zip(
        reasons, ("not a JSON object", "a number", "no column", "UTF-8", "surrogate", "not JSON"), strict=True
    ):
        assert words in reason


def test_a_line_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 40)
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "b" * 200 + '"}\n{"text": "c"}\n')
    assert texts(path) == ["a", "bad: the line has more than 40 bytes", "c"]


def test_a_chunk_ends_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_CHUNK", 30)
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "abcde"}\n' * 5)
    assert [len(chunk.rows) for chunk in Source(path, "text").chunks(START, 100)] == [2, 2, 1]
    assert texts(path) == ["abcde"] * 5


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text\r\n"
        b'1,"two\nlines, and ""quotes"""\r\n'
        b"2,plain\n"
        b"3,one,too many\n"
        b"4,\xff\n"
        b"\n"
        b'5,"never closed\n'
        b"6,goes on\n"
    )
    found = texts(path)
    assert found[:2] == ['two\nlines, and "quotes"', "plain"]
    assert "3 fields" in found[2]
    assert "UTF-8" in found[3]
    assert "not CSV" in found[4]
    assert found[5] == "goes on"


def test_a_quote_that_is_never_closed_takes_no_time(tmp_path: Path) -> None:
    """Every line opens a quote that the next one closes, but for the last; and the whole is read once."""
    path = tmp_path / "in.csv"
    path.write_text("text\n" + '"a\n' * 20_001)
    assert len(read(path, most=5000)) == 10_001


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20), st.integers(1, 7))
def test_csv_as_the_standard_library_writes_it(tmp_path_factory: pytest.TempPathFactory, table: Any, most: int) -> None:
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "more"), *table])
    try:
        path.write_bytes(buffer.getvalue().encode())
    except UnicodeEncodeError:
        return
    assert [row.values for row in read(path, most)] == [{"text": a, "more": b} for a, b in table]


@pytest.mark.parametrize("group", [1, 2, 5, 11])
def test_parquet(tmp_path: Path, group: int) -> None:
    path = tmp_path / "in.parquet"
    given = [f"text {n}" if n % 4 else None for n in range(11)]
    pyarrow.parquet.write_table(pyarrow.table({"text": given, "n": range(11)}), path, row_group_size=group)
    assert texts(path) == [text or "bad: text is null" for text in given]
    for start in range(11):
        (chunk, *_) = Source(path, "text").chunks(Place(start, start), 3)
        assert [row.number for row in chunk.rows] == [n + 1 for n in range(start, min(start + 3, 11))]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.txt", b"", "ends in none of"),
        ("absent.jsonl", None, "cannot be read"),
        ("absent.parquet", None, "cannot be read"),
        ("in.csv", b'id,"a\nb"\n', "no column 'text', but id, a b"),
        ("in.csv", b"", "no column 'text'"),
        ("in.csv", b"a,b\n", "no column 'text', but a, b"),
        ("in.csv", b"text,text\n", "two columns"),
        ("in.csv", b"\xff,text\n", "header"),
        ("in.parquet", b"PAR1 no", "as Parquet"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        Source(path, "text")
    assert "\n" not in str(error.value)


def test_a_parquet_column_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(InputError, match="holds int64, not texts"):
        Source(path, "text")


def test_a_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    given = pyarrow.array([b"a", b"\x80b", None], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"text": given}), path)
    (chunk,) = Source(path, "text").chunks(Place(0, 0), 7)
    assert [row.reason for row in chunk.rows] == [None, "not UTF-8: invalid start byte at byte 0", "text is null"]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    assert read(path) == []
    assert json.dumps(Source(path, "text").size) == "0"
