"""Rows out of one file: plain text, JSON lines, JSON arrays, Parquet and Arrow, compressed or not, whole or damaged."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

TEXT_FIELD_OF_PLAIN_FILES = "text"
_TABLES = {".parquet", ".arrow"}
_JSON = {".jsonl", ".ndjson", ".json"}
_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_TRUNCATED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why. Counted and listed, never dropped in silence.

    reason: short and the same for all rows of its kind, for counting. detail: what was found in this one. by_rule: left
    out by what the config asks for (a filter, a limit of length) and not because it is damaged or of another form.
    """

    id: str
    reason: str
    detail: str = ""
    by_rule: bool = False


@dataclass(frozen=True)
class Row:
    """One record: its columns by name. A plain text file is one record with the column `text`."""

    id: str
    fields: Mapping


def rows_of_file(name: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """The rows of one file, the format chosen by its suffix (`.gz`, `.zst`, `.bz2`, `.xz` are undone first).

    JSON lines (read line by line) and JSON arrays (element by element) give a row per object, Parquet and Arrow (file
    or stream) a row per row, anything else is UTF-8 text and one row. Row ids are `name` or `name#i`. What is readable
    before a damaged place is read; the damage itself is one rejected row.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _UNPACKERS else ""
    suffix = suffixes[-1] if suffixes else ""
    try:
        if packing:
            stream = _UNPACKERS[packing](stream)
        if suffix in _TABLES:
            yield from _table_rows(name, suffix, stream)
        elif suffix in _JSON:
            yield from _json_rows(name, stream)
        else:
            yield from _text_row(name, stream.read())
    except (*_TRUNCATED, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and not _says_damaged(error):
            raise
        kind = "gzip" if packing == ".gz" else packing[1:] or "file"
        yield Rejected(name, f"broken {kind} ({type(error).__name__})", str(error))


def _says_damaged(error: OSError) -> bool:
    """Whether a decoder says that the data are damaged, not the system or a network that they cannot be had."""
    return type(error) is OSError and error.errno is None


def _unzstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")))


_UNPACKERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda stream: cast(BinaryIO, gzip.GzipFile(fileobj=stream)),
    ".zst": _unzstd,
    ".bz2": lambda stream: cast(BinaryIO, bz2.BZ2File(stream)),
    ".xz": lambda stream: cast(BinaryIO, lzma.LZMAFile(stream)),  # noqa: SIM115 - the caller owns the stream
}


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
        if not number and line.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            yield from _json_array(name, line, stream)
            return
        if not line.strip():
            continue
        text = _decode(line)
        identity = f"{name}#{number}"
        yield Rejected(identity, "invalid UTF-8") if text is None else _json_object(identity, text)


def _json_object(identity: str, text: str) -> Row | Rejected:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, or too deep a nesting
        return Rejected(identity, "invalid JSON", str(error))
    return _row(identity, value)


def _row(identity: str, value: Any) -> Row | Rejected:
    if isinstance(value, dict):
        return Row(identity, value)
    return Rejected(identity, "not a JSON object", type(value).__name__)


def _json_array(name: str, head: bytes, stream: BinaryIO) -> Iterator[Row | Rejected]:
    number = 0
    try:
        for number, value in enumerate(_elements(head, stream)):
            yield _row(f"{name}#{number}", value)
    except UnicodeDecodeError:
        yield Rejected(name, "invalid UTF-8", f"after {number} rows")
    except (ValueError, RecursionError) as error:
        yield Rejected(name, "invalid JSON", f"after {number} rows: {error}")


def _elements(head: bytes, stream: BinaryIO) -> Iterator[Any]:
    """The elements of a JSON array, of which one at a time is in memory. Raises ValueError where it is malformed."""
    decode, parse = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    buffer, ended = decode(head), False
    place = buffer.index("[") + 1
    while True:
        place = _after_space(buffer, place)
        if buffer.startswith("]", place):
            return
        try:
            value, stop = parse(buffer, place)
            stop = _after_space(buffer, stop)
            if buffer[stop : stop + 1] not in (",", "]"):
                raise ValueError(f"expected , or ] after an element, found {buffer[stop : stop + 20]!r}")
        except ValueError:
            if ended:
                raise
            # As much again as is there: an element of any size is then parsed a few times, not once a block.
            block = stream.read(max(_BLOCK_BYTES, len(buffer) - place))
            ended = not block
            buffer, place = buffer[place:] + decode(block, final=ended), 0
            continue
        yield value
        place = stop + buffer.startswith(",", stop)


def _after_space(text: str, place: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, place)).end()


def _table_rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(suffix, stream):
            for fields in _records(batch):
                identity = f"{name}#{number}"
                yield Rejected(identity, "invalid UTF-8") if fields is None else Row(identity, fields)
                number += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not _says_damaged(error):
            raise
        reason = f"not readable as {suffix[1:]} ({type(error).__name__})"
        yield Rejected(f"{name}#{number}", reason, f"after {number} rows: {error}")


def _records(batch: Any) -> list[Mapping | None]:
    """The rows of a batch; None for one whose strings are not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_record(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _record(single: Any) -> Mapping | None:
    try:
        return single.to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _batches(suffix: str, stream: BinaryIO):  # type: ignore[no-untyped-def]  # pyarrow has no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.BufferReader(stream.read()) if not stream.seekable() else stream
    if suffix == ".parquet":
        return pq.ParquetFile(data).iter_batches(batch_size=_BATCH_ROWS)
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
