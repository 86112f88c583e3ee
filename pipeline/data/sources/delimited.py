"""Rows out of CSV and TSV: a header, then text in every column; quotes may hold line ends."""

from __future__ import annotations

import codecs
import csv
import sys
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from pipeline.data.sources.json_rows import wrong_encoding
from pipeline.data.sources.rows import Rejected, Row, not_utf8

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ESCAPED = {chr(code) for code in range(0xDC80, 0xDD00)}
"""What Python makes of bytes that are not UTF-8."""


def delimited_rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """A row per record after the header; values stay text, an empty one is ''. Row ids count records from 0."""
    first = stream.readline()
    if found := wrong_encoding(name, first):
        yield found
        return
    lines = chain([first.removeprefix(codecs.BOM_UTF8)], stream)
    records = _records((line.decode("utf-8", "surrogateescape") for line in lines), DELIMITERS[suffix])
    header = next(records, None)
    if header is None:
        return
    if isinstance(header, csv.Error) or len(set(header)) != len(header) or _is_damaged(header):
        yield Rejected(name, "unreadable header or duplicate column name", str(header)[:500])
        return
    for number, record in enumerate(records):
        yield _row(f"{name}#{number}", header, record)


def _records(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | csv.Error]:
    """The records that are not blank, and the error in place of one that is malformed."""
    csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB a value
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            if record := next(reader):
                yield record
        except StopIteration:
            return
        except csv.Error as error:
            yield csv.Error(f"before line {reader.line_num + 1}: {error}")


def _is_damaged(record: list[str]) -> bool:
    return any(not value.isascii() and not _ESCAPED.isdisjoint(value) for value in record)


def _row(identity: str, header: list[str], record: list[str] | csv.Error) -> Row | Rejected:
    if isinstance(record, csv.Error):
        return Rejected(identity, "invalid CSV", str(record))
    if len(record) != len(header):
        detail = f"{len(record)} values, and the header names {len(header)} columns"
        return Rejected(identity, "number of values differs from the header", detail)
    if _is_damaged(record):
        return not_utf8(identity)
    return Row(identity, dict(zip(header, record, strict=True)))
