"""Rows out: one file a part (JSON lines, or Parquet where OUT is), and all parts as one file."""

import base64
import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.batch.folder import Folder, Part, write_whole
from isoformer.runtime.batch.rows import SHOWN, Chunk, Row
from isoformer.runtime.extras import library

try:
    import orjson
except ModuleNotFoundError:
    orjson = None

ROW_GROUP = 32 * 2**20  # bytes that are gathered before they are written as one row group

Result = Mapping[str, Any]  # a row's new columns


def write(folder: Folder, number: int, output: str, chunk: Chunk, results: Sequence[Result | str]) -> Part:
    """Writes the part of one chunk; a result that is a text is why the row is bad. `output`: the format of OUT."""
    pairs = list(zip(chunk.rows, results, strict=True))
    good = [(row, result) for row, result in pairs if not isinstance(result, str)]
    bad = [(row, result) for row, result in pairs if isinstance(result, str)]
    if bad:
        values = _values(chunk, [row for row, _ in bad])
        lines = (_bad_line(row, given, reason) for (row, reason), given in zip(bad, values, strict=True))
        write_whole(folder.part(number, "bad.jsonl"), "".join(lines).encode())
    if output == "parquet":
        table = _table(chunk, good)
        columns = tuple(table.column_names)
        write_whole(folder.part(number, "parquet"), _parquet_bytes(table))
    else:
        values = _values(chunk, [row for row, _ in good])
        lines = (_line(row, given, result).encode() for (row, result), given in zip(good, values, strict=True))
        columns = tuple(dict.fromkeys(name for (_, r), g in zip(good, values, strict=True) for name in (*g, *r)))
        write_whole(folder.part(number, "jsonl"), lines)
    return Part(number, chunk.start, chunk.end, len(good), len(bad), columns)


def merge(folder: Folder, output: str, target: Path) -> None:
    """Every part, in order, in one file at `target`."""
    parts = [folder.parts[number] for number in sorted(folder.parts)]
    if output == "parquet":
        _merge_parquet(folder, parts, target)
    elif output == "csv":
        _merge_csv(folder, parts, target)
    else:
        _concatenate((folder.part(part.number, "jsonl") for part in parts), target)


def merge_bad(folder: Folder, target: Path) -> bool:
    """The bad rows of every part in one file at `target`; whether there are any."""
    files = [folder.part(number, "bad.jsonl") for number, part in sorted(folder.parts.items()) if part.bad]
    if files:
        _concatenate(files, target)
    return bool(files)


def _concatenate(files: Iterable[Path], target: Path) -> None:
    with target.open("wb") as out:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, out, 2**20)


def _line(row: Row, values: Mapping[str, Any], result: Result) -> str:
    """One JSON object: the row as it was written, where it was JSON, with its new columns behind."""
    before = row.raw if row.raw is not None else _json(dict(values))
    added = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {_json(value)}" for name, value in result.items())
    return f"{before[:-1].rstrip()}{', ' if values else ''}{added}}}\n"


def _bad_line(row: Row, values: Mapping[str, Any], reason: str) -> str:
    given = json.dumps(row.raw) if row.raw is not None else _json(values or None)
    return f'{{"row": {row.number}, "reason": {json.dumps(" ".join(reason.split())[:SHOWN])}, "input": {given}}}\n'


def _json(value: Any) -> str:
    """JSON. Numbers of float32 arrays have digits enough to say each exactly."""
    if isinstance(value, np.ndarray):
        if orjson is not None:  # a sixth of the time, which counts: a row of MiniLM takes 400 µs in all
            return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        if np.isfinite(value).all():
            return f"[{', '.join(['%.9g'] * len(value))}]" % tuple(value.tolist())
        value = value.tolist()
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # JSON has no NaN and no infinity
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def orjson_version() -> str | None:
    """What writes vectors as JSON, None being Python: one writes 0.1 where the other writes 0.100000001."""
    return None if orjson is None else orjson.__version__


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """What Parquet has and JSON has not, as texts."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


def _values(chunk: Chunk, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    if chunk.table is None:
        return [row.values or {} for row in rows]
    pa = library("pyarrow")
    compute = library("pyarrow.compute")
    table = chunk.table.take(pa.array([row.number - chunk.start.row - 1 for row in rows], pa.int64()))
    for place, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type):  # Python's own times have no nanoseconds
            table = table.set_column(place, field.name, compute.cast(table[field.name], pa.string()))
    return table.to_pylist()


def _table(chunk: Chunk, good: Sequence[tuple[Row, Result]]) -> Any:
    """The good rows and their new columns as a pyarrow Table."""
    pa = library("pyarrow")
    if chunk.table is not None:
        table = chunk.table.take(pa.array([row.number - chunk.start.row - 1 for row, _ in good], pa.int64()))
    else:
        names = dict.fromkeys(name for row, _ in good for name in row.values or {})
        table = pa.table({name: _array([(row.values or {}).get(name) for row, _ in good]) for name in names})
    for name in dict.fromkeys(name for _, result in good for name in result):
        table = table.append_column(name, _array([result.get(name) for _, result in good]))
    return table


def _array(values: list[Any]) -> Any:
    """A pyarrow Array; values without a common type become texts (`_as_texts`)."""
    pa = library("pyarrow")
    if values and all(isinstance(value, np.ndarray) for value in values):
        offsets = np.cumsum([0, *map(len, values)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(values)))
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array(_as_texts(values), pa.string())


def _as_texts(values: Sequence[Any]) -> list[str | None]:
    """Texts as they are, everything else as JSON."""
    return [value if value is None or isinstance(value, str) else _json(value) for value in values]


def _parquet_bytes(table: Any) -> bytes:
    pa, parquet = library("pyarrow"), library("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _merge_parquet(folder: Folder, parts: Sequence[Part], target: Path) -> None:
    pa, parquet = library("pyarrow"), library("pyarrow.parquet")
    files = [folder.part(part.number, "parquet") for part in parts]
    schema = _common([parquet.read_schema(file) for file, part in zip(files, parts, strict=True) if part.good])
    with parquet.ParquetWriter(target, schema) as writer:
        held: list[Any] = []
        for file, part in zip(files, parts, strict=True):
            if part.good:
                held.append(_conform(parquet.read_table(file), schema))
            if sum(table.nbytes for table in held) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _common(schemas: Sequence[Any]) -> Any:
    """One schema for all; a column whose types have nothing in common is one of texts (`_as_texts`)."""
    pa = library("pyarrow")
    fields: dict[str, Any] = {}
    for schema in schemas:
        for field in schema.remove_metadata():
            known = fields.get(field.name)
            try:
                fields[field.name] = field if known is None else _unified(known, field)
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                fields[field.name] = pa.field(field.name, pa.string())
    found = pa.schema(fields.values())
    return found.with_metadata(schemas[0].metadata) if schemas else found


def _unified(one: Any, other: Any) -> Any:
    pa = library("pyarrow")
    merged = pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive")
    return merged.field(0)


def _conform(table: Any, schema: Any) -> Any:
    pa = library("pyarrow")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table[field.name]
        texts = pa.types.is_string(field.type) and not (
            pa.types.is_string(column.type) or pa.types.is_null(column.type)
        )
        if texts and not pa.types.is_large_string(column.type):
            columns.append(pa.array(_as_texts(column.to_pylist()), pa.string()))
        else:
            columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _merge_csv(folder: Folder, parts: Sequence[Part], target: Path) -> None:
    """Columns in the order in which they first come; what is no text or number is JSON in its cell."""
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        if columns:
            writer.writerow(columns)
        for part in parts:
            with folder.part(part.number, "jsonl").open(encoding="utf-8", newline="\n") as lines:
                for row in _objects(lines):
                    writer.writerow([_cell(row.get(name)) for name in columns])


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        # Floats stay as they are written.
        yield json.loads(line, parse_float=_Written)


class _Written(str):
    """A number as it was written."""

    __slots__ = ()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)
    return _list_cell(value)


def _list_cell(value: Any) -> str:
    """JSON whose `_Written` numbers are no strings."""
    if isinstance(value, _Written):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {_list_cell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_list_cell, value))}]"
    return json.dumps(value, ensure_ascii=False)
