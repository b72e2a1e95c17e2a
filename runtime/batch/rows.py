"""Rows of a file, chunk by chunk: where a chunk ends depends on the file alone, so that a job can go on at any of them.

A row that cannot be read is a Row with a reason, never an error.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
MAX_ROW = 16 * 2**20  # bytes of one line or CSV record; more is a bad row, or one missing quote would read the rest
MAX_CHUNK = 8 * 2**20  # bytes, so that memory does not grow with the length of texts
SHOWN = 1000  # characters of a row that is too long


class Place(NamedTuple):
    """Between two rows: `position` counts bytes (of Parquet: rows), `row` the rows (of JSON lines: lines) before it."""

    position: int
    row: int


@dataclass(frozen=True)
class Row:
    """One row. number: from 1. values: its columns; of Parquet they stay in `Chunk.table`.

    raw: how it is written in the file. reason: why it cannot be read, None for a good one.
    """

    number: int
    text: str = ""
    values: dict[str, Any] | None = None
    raw: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows from `start` to `end`; table: pyarrow's, of a Parquet file."""

    start: Place
    end: Place
    rows: list[Row]
    table: Any = None


def format_of(path: Path) -> str:
    """The format that a file's suffix says. Raises InputError for another."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} ends in none of {', '.join(FORMATS)}, which say the format")
    return FORMATS[path.suffix.lower()]


class Source:
    """A file of rows whose column `column` holds texts.

    Raises InputError when the file cannot be read or (CSV, Parquet) has no such column.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column, self.format = path, column, format_of(path)
        try:
            self.size = path.stat().st_size  # bytes; of Parquet rows, as positions are
            if self.format == "csv":
                self.columns = self._header()
            elif self.format == "parquet":
                self.size = self._check_parquet()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

    def chunks(self, start: Place, most: int) -> Iterator[Chunk]:
        """Chunks of at most `most` rows (of JSON lines and CSV also MAX_CHUNK bytes and the row that passes it)."""
        try:
            yield from self._parquet(start, most) if self.format == "parquet" else self._texts(start, most)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from None

    def _texts(self, start: Place, most: int) -> Iterator[Chunk]:
        with self.path.open("rb") as file:
            begin = start.position or self._body()
            file.seek(begin)
            rows: list[Row] = []
            number, chunk_start = start.row, Place(begin, start.row)
            quoted, position = self.format == "csv", begin
            read = _csv_row if quoted else _json_row
            for line in _records(file, quoted=quoted):
                number += 1
                if (row := read(number, line, self)) is not None:
                    rows.append(row)
                position = position + len(line) if line is not None else file.tell()  # which takes 20 µs
                end = Place(position, number)
                if len(rows) == most or end.position - chunk_start.position >= MAX_CHUNK:
                    yield Chunk(chunk_start, end, rows)
                    rows, chunk_start = [], end
            if rows:
                yield Chunk(chunk_start, Place(file.tell(), number), rows)

    def _body(self) -> int:
        """Where the rows begin: behind a byte order mark, and of CSV behind the header."""
        with self.path.open("rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            if self.format == "csv":
                next(_records(file, quoted=True), None)
            return file.tell()

    def _header(self) -> list[str]:
        csv.field_size_limit(MAX_ROW)  # the module's own limit is less than a long text has
        with self.path.open("rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            line = next(_records(file, quoted=True), b"")
        try:
            columns = next(csv.reader([(line or b"").decode("utf-8")], strict=True), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{self.path}: its header cannot be read: {error}") from None
        if self.column not in columns:
            raise InputError(f"{self.path} has no column {self.column!r}, but {', '.join(columns) or 'none'}: --column")
        if len(set(columns)) != len(columns):
            raise InputError(f"{self.path} has two columns of one name: {', '.join(columns)}")
        return columns

    def _check_parquet(self) -> int:
        pa = library("pyarrow")
        library("pyarrow.parquet")
        with _parquet_file(self.path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        if schema.names.count(self.column) != 1:
            raise InputError(
                f"{self.path} has {schema.names.count(self.column)} columns {self.column!r} among "
                f"{', '.join(schema.names) or 'none'}: --column"
            )
        kind = schema.field(self.column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise InputError(f"{self.path}: the column {self.column!r} holds {kind}, not texts")
        return rows

    def _parquet(self, start: Place, most: int) -> Iterator[Chunk]:
        pa = library("pyarrow")
        with _parquet_file(self.path) as file:
            # Whole row groups before the start are not read; within one its rows are skipped.
            group, before = 0, 0
            while group < file.num_row_groups and before + file.metadata.row_group(group).num_rows <= start.position:
                before += file.metadata.row_group(group).num_rows
                group += 1
            skip, held, place = start.position - before, [], start
            batches = file.iter_batches(batch_size=most, row_groups=list(range(group, file.num_row_groups)))
            for batch in _parquet_errors(batches, self.path):
                drop = min(skip, batch.num_rows)
                skip -= drop
                held += [batch.slice(drop)] if drop < batch.num_rows else []
                while (count := sum(map(len, held))) >= most:
                    table = pa.Table.from_batches(held).combine_chunks()
                    held = table.slice(most).to_batches() if count > most else []
                    yield (chunk := self._chunk(table.slice(0, most), place))
                    place = chunk.end
            if sum(map(len, held)):
                yield self._chunk(pa.Table.from_batches(held), place)

    def _chunk(self, table: Any, start: Place) -> Chunk:
        texts = table[self.column].to_pylist()
        rows = [
            Row(number, text) if isinstance(text, str) else Row(number, reason=f"{self.column} is null")
            for number, text in enumerate(texts, start.row + 1)
        ]
        end = start.row + len(rows)
        return Chunk(start, Place(end, end), rows, table)


def _records(file: BinaryIO, *, quoted: bool) -> Iterator[bytes | None]:
    """Lines, of CSV those together that a quote holds together; None for one of more than MAX_ROW bytes.

    A quote that is never closed holds nothing: its line is a record by itself. The file stands behind the record.
    """
    while line := file.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW)
            yield None
            continue
        if quoted and line.count(b'"') % 2:
            line = _joined(file, line)
        yield line


def _joined(file: BinaryIO, first: bytes) -> bytes:
    """The record that begins with the line `first` and its open quote, up to the line that closes it."""
    after, lines, length, is_open = file.tell(), [first], len(first), True
    while is_open:
        line = file.readline(MAX_ROW + 1)
        lines.append(line)
        length += len(line)
        if not line or length > MAX_ROW:
            file.seek(after)
            return first
        is_open ^= line.count(b'"') % 2 == 1
    return b"".join(lines)


def _json_row(number: int, line: bytes | None, source: Source) -> Row | None:
    """The row of a line; None for an empty line, which is none."""
    if line is None:
        return Row(number, reason=f"the line has more than {MAX_ROW} bytes")
    raw = line.decode("utf-8", "surrogateescape").strip(" \t\r\n")
    if not raw:
        return None
    try:
        line.decode("utf-8")
        values = json.loads(raw)
    except UnicodeDecodeError as error:
        return Row(number, raw=raw, reason=f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Row(number, raw=raw, reason=f"not JSON: {error}")
    if not isinstance(values, dict):
        return Row(number, raw=raw, reason=f"not a JSON object but {type(values).__name__}")
    if source.column not in values:
        return Row(number, raw=raw, values=values, reason=f"it has no column {source.column!r}")
    if "\\ud" in raw.lower() and not _is_unicode(values):
        return Row(number, raw=raw, reason="it holds half a character (a lone surrogate)")
    text = values[source.column]
    if not isinstance(text, str):
        return Row(number, raw=raw, values=values, reason=f"{source.column} is {_json_name(text)}, not a text")
    return Row(number, text, values, raw)


def _csv_row(number: int, record: bytes | None, source: Source) -> Row | None:
    if record is None:
        return Row(number, reason=f"the line has more than {MAX_ROW} bytes")
    raw = record.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not raw:
        return None
    try:
        record.decode("utf-8")
        fields = next(csv.reader([raw], strict=True))
    except UnicodeDecodeError as error:
        return Row(number, raw=raw, reason=f"not UTF-8: {error.reason} at byte {error.start}")
    except (csv.Error, StopIteration) as error:
        return Row(number, raw=raw, reason=f"not CSV: {error}")
    if len(fields) != len(source.columns):
        return Row(number, raw=raw, reason=f"it has {len(fields)} fields; the header has {len(source.columns)}")
    values = dict(zip(source.columns, fields, strict=True))
    return Row(number, values[source.column], values)


def _is_unicode(values: dict[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_name(value: Any) -> str:
    return (
        "null" if value is None else {bool: "a boolean", list: "a list", dict: "an object"}.get(type(value), "a number")
    )


def _parquet_file(path: Path) -> Any:
    pa, parquet = library("pyarrow"), library("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from None


def _parquet_errors(batches: Iterator[Any], path: Path) -> Iterator[Any]:
    """The batches; a damaged file is one line."""
    pa = library("pyarrow")
    try:
        yield from batches
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from None
