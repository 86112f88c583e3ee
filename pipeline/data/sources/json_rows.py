"""Rows out of JSON: lines of objects, an array of objects, or one object; and JSON text that stands in a column."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, cast

from pipeline.data.sources.rows import Rejected, Row, not_utf8

_BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_SAMPLE_LINES = 20
DUPLICATE_KEY = "duplicate key in a JSON object"
WRONG_ENCODING = "UTF-16 or UTF-32, not UTF-8"
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class _Parser:
    """A JSON decoder that notes the keys which an object has twice; of these Python keeps the last without a word."""

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            self.repeated += [name for name in found if names.count(name) > 1]
        return found

    def all(self, text: str) -> Any:
        self.repeated = []
        return self._decoder.decode(text)

    def at(self, text: str, place: int) -> tuple[Any, int]:
        self.repeated = []
        return self._decoder.raw_decode(text, place)


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or if one of its objects has a key twice."""
    parser = _Parser()
    value = parser.all(text)
    if parser.repeated:
        raise ValueError(f"{DUPLICATE_KEY}: {parser.repeated[0]!r}")
    return value


def decode(data: bytes) -> str | None:
    """UTF-8 text without its byte order mark; None for other bytes."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def wrong_encoding(name: str, head: bytes, nul_is_wide: bool = True) -> Rejected | None:
    """A rejected file whose first bytes are those of UTF-16 or UTF-32, with what to do."""
    if head.startswith(_MARKS) or (nul_is_wide and b"\0" in head[:4]):
        return Rejected(name, WRONG_ENCODING, "save it as UTF-8, e.g. with iconv -f UTF-16 -t UTF-8")
    return None


def json_rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """A row per line, per element of an array, or one for a `.json` file that is one object over several lines."""
    lines = enumerate(stream)
    number, head = next(((i, line) for i, line in lines if line.removeprefix(codecs.BOM_UTF8).strip()), (0, b""))
    start = head.removeprefix(codecs.BOM_UTF8).strip()
    if found := wrong_encoding(name, head):
        yield found
    elif start.startswith(b"["):
        yield from _json_array(name, head, stream)
    elif suffix == ".json" and start.startswith(b"{") and not start.endswith(b"}"):
        yield from _one_object(name, number, head, stream)
    else:
        yield from _json_lines(name, chain([(number, head)], lines))


def _json_lines(name: str, lines: Iterator[tuple[int, bytes]]) -> Iterator[Row | Rejected]:
    for number, line in lines:
        if line.strip():
            text = decode(line)
            identity = f"{name}#{number}"
            yield not_utf8(identity) if text is None else _json_object(identity, text)


def _one_object(name: str, first: int, head: bytes, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """The row of an object over several lines; if it is none and the first line not just its brace, a row per line."""
    data = head + stream.read()
    text = decode(data)
    row = not_utf8(name) if text is None else _json_object(f"{name}#0", text)
    if isinstance(row, Row) or row.reason == DUPLICATE_KEY or head.removeprefix(codecs.BOM_UTF8).strip() == b"{":
        yield row
    else:
        yield from _json_lines(name, enumerate(data.splitlines(keepends=True), first))


def _json_object(identity: str, text: str) -> Row | Rejected:
    parser = _Parser()
    try:
        value = parser.all(text.strip())
    except (ValueError, RecursionError) as error:  # also a number of too many digits, or too deep a nesting
        return Rejected(identity, "invalid JSON", str(error))
    return _row(identity, value, parser.repeated)


def _row(identity: str, value: Any, repeated: list[str]) -> Row | Rejected:
    if not isinstance(value, dict):
        return Rejected(identity, "not a JSON object", type(value).__name__)
    return Rejected(identity, DUPLICATE_KEY, repr(repeated[0])) if repeated else Row(identity, value)


def _json_array(name: str, head: bytes, stream: BinaryIO) -> Iterator[Row | Rejected]:
    number = 0
    try:
        for number, (value, repeated) in enumerate(_elements(head, stream)):
            yield _row(f"{name}#{number}", value, repeated)
    except UnicodeDecodeError:
        yield not_utf8(name, f"after {number} rows; ")
    except (ValueError, RecursionError) as error:
        yield Rejected(name, "invalid JSON", f"after {number} rows: {error}")


def _elements(head: bytes, stream: BinaryIO) -> Iterator[tuple[Any, list[str]]]:
    """The elements of a JSON array, of which one at a time is in memory, each with the keys that an object in it has
    twice. Raises ValueError where it is malformed."""
    read, parser = codecs.getincrementaldecoder("utf-8-sig")().decode, _Parser()
    buffer, ended = read(head), False
    place = buffer.index("[") + 1
    while True:
        place = _after_space(buffer, place)
        if buffer.startswith("]", place):
            return
        try:
            value, stop = parser.at(buffer, place)
            stop = _after_space(buffer, stop)
            if buffer[stop : stop + 1] not in (",", "]"):
                raise ValueError(f"expected , or ] after an element, found {buffer[stop : stop + 20]!r}")
        except ValueError:
            if ended:
                raise
            # As much again as is there: an element of any size is then parsed a few times, not once a block.
            block = stream.read(max(_BLOCK_BYTES, len(buffer) - place))
            ended = not block
            buffer, place = buffer[place:] + read(block, final=ended), 0
            continue
        yield value, parser.repeated
        place = stop + buffer.startswith(",", stop)


def _after_space(text: str, place: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, place)).end()


def is_json_rows(text: str) -> bool:
    """Whether plain text is in fact rows: its first lines are JSON objects, or all of it an array of them."""
    lines = [line for line in text.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if line.strip()]
    if lines and all(line.lstrip().startswith("{") and isinstance(_loaded(line), dict) for line in lines):
        return True
    start = text.lstrip()
    value = _loaded(text) if start.startswith("[") and start[1:].lstrip().startswith("{") else None
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
