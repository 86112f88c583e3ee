"""Rows out of one file: text, JSON, CSV, TSV, Parquet and Arrow, compressed or not, whole or damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from pipeline.data.sources.delimited import DELIMITERS, delimited_rows
from pipeline.data.sources.json_rows import decode, is_json_rows, json_rows, wrong_encoding
from pipeline.data.sources.rows import Rejected, Row, escaped, not_utf8
from pipeline.data.sources.tables import TABLES, says_damaged, table_rows

TEXT_FIELD_OF_PLAIN_FILES = "text"
_JSON = {".jsonl", ".ndjson", ".json"}
_PROSE = {"", ".txt", ".text"}
"""Plain files in which JSON objects are rows under a wrong name, and not the text that is meant."""
_TRUNCATED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


def rows_of_file(name: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """The rows of one file, the format chosen by its suffix (`.gz`, `.zst`, `.bz2`, `.xz` are undone first).

    JSON lines (read line by line) and JSON arrays (element by element) give a row per object, CSV and TSV one per
    record below a header, Parquet and Arrow (file or stream) a row per row, anything else is UTF-8 text and one row.
    Row ids are `name` or `name#i`, escaped if the name is not UTF-8. What is readable before a damaged place is read;
    the damage itself is one rejected row, and so is a file without rows.
    """
    found = False
    for row in _readable(escaped(name), stream):
        found = True
        yield row
    if not found:
        yield Rejected(escaped(name), "empty", "a file without rows")


def _readable(name: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _UNPACKERS else ""
    suffix = suffixes[-1] if suffixes else ""
    try:
        yield from _rows(name, suffix, _UNPACKERS[packing](stream) if packing else stream)
    except (*_TRUNCATED, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and not says_damaged(error):
            raise
        kind = "gzip" if packing == ".gz" else packing[1:] or "file"
        yield Rejected(name, f"broken {kind} ({type(error).__name__})", str(error))


def _rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    if suffix in TABLES:
        return table_rows(name, suffix, stream)
    if suffix in _JSON:
        return json_rows(name, suffix, stream)
    if suffix in DELIMITERS:
        return delimited_rows(name, suffix, stream)
    return iter([_text_row(name, suffix, stream.read())])


def _unzstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")))


_UNPACKERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda stream: cast(BinaryIO, gzip.GzipFile(fileobj=stream)),
    ".zst": _unzstd,
    ".bz2": lambda stream: cast(BinaryIO, bz2.BZ2File(stream)),
    ".xz": lambda stream: cast(BinaryIO, lzma.LZMAFile(stream)),  # noqa: SIM115 - the caller owns the stream
}


def _text_row(name: str, suffix: str, data: bytes) -> Row | Rejected:
    if found := wrong_encoding(name, data[:4], nul_is_wide=False):
        return found
    text = decode(data)
    if text is None:
        return not_utf8(name)
    if suffix in _PROSE and is_json_rows(text):
        return Rejected(name, "JSON rows in a text file", "its lines are JSON objects; rename it to .jsonl or .json")
    return Row(name, {TEXT_FIELD_OF_PLAIN_FILES: text.replace("\r\n", "\n")})
