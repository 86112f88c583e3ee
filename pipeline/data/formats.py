"""Rows out of one file: plain text, JSON lines, JSON arrays, Parquet and Arrow, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

TEXT_FIELD_OF_PLAIN_FILES = "text"
_TABLES = {".parquet", ".arrow"}
_JSON = {".jsonl", ".ndjson", ".json"}


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why. Counted, never dropped in silence."""

    id: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One record: its columns by name. A plain text file is one record with the column `text`."""

    id: str
    fields: Mapping


def rows_of_file(name: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """The rows of one file, the format chosen by its suffix (`.gz` is undone first).

    JSON lines (read line by line) and JSON arrays give a row per object, Parquet and Arrow (file or stream) a row per
    row, anything else is UTF-8 text and one row. Row ids are `name` or `name#i`.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    try:
        if suffixes[-1:] == [".gz"]:
            suffixes.pop()
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        suffix = suffixes[-1] if suffixes else ""
        if suffix in _TABLES:
            yield from _table_rows(name, suffix, stream)
        elif suffix in _JSON:
            yield from _json_rows(name, stream)
        else:
            yield from _text_row(name, stream.read())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield Rejected(name, f"broken gzip ({type(error).__name__})")


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _text_row(name: str, data: bytes) -> Iterator[Row | Rejected]:
    text = _decode(data)
    if text is None:
        yield Rejected(name, "invalid UTF-8")
    else:
        yield Row(name, {TEXT_FIELD_OF_PLAIN_FILES: text.replace("\r\n", "\n")})


def _json_rows(name: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    for number, line in enumerate(stream):
        if not number and line.lstrip()[:1] == b"[":
            yield from _json_array(name, line + stream.read())
            return
        if not line.strip():
            continue
        text = _decode(line)
        identity = f"{name}#{number}"
        yield Rejected(identity, "invalid UTF-8") if text is None else _json_object(identity, text)


def _json_object(identity: str, text: str) -> Row | Rejected:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return Rejected(identity, "invalid JSON")
    return Row(identity, value) if isinstance(value, dict) else Rejected(identity, "not a JSON object")


def _json_array(name: str, data: bytes) -> Iterator[Row | Rejected]:
    text = _decode(data)
    if text is None:
        yield Rejected(name, "invalid UTF-8")
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        yield Rejected(name, "invalid JSON")
        return
    for number, value in enumerate(values):
        identity = f"{name}#{number}"
        yield Row(identity, value) if isinstance(value, dict) else Rejected(identity, "not a JSON object")


def _table_rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(suffix, stream):
            for fields in batch.to_pylist():
                yield Row(f"{name}#{number}", fields)
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        yield Rejected(f"{name}#{number}", f"not readable as {suffix[1:]} ({type(error).__name__})")


def _batches(suffix: str, stream: BinaryIO):  # type: ignore[no-untyped-def]  # pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.BufferReader(stream.read()) if not stream.seekable() else stream
    if suffix == ".parquet":
        return pq.ParquetFile(data).iter_batches()
    magic = data.read(6)
    data.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(data)
        return (file.get_batch(i) for i in range(file.num_record_batches))
    return iter(pa.ipc.open_stream(data))


def field_value(fields: Mapping, path: str) -> object:
    """A column by name, or inside nested objects by a dotted path. Raises KeyError naming what is there instead."""
    if path in fields:
        return fields[path]
    value: object = fields
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(f"no field {path!r}; the row has {sorted(map(str, fields))}")
        value = value[part]
    return value
