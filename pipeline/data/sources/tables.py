"""Rows out of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pipeline.data.sources.rows import Rejected, Row

TABLES = (".parquet", ".arrow")
_BATCH_ROWS = 1024


def table_rows(name: str, suffix: str, stream: BinaryIO) -> Iterator[Row | Rejected]:
    """A row per row. Maps become objects; the keys of objects come in the table's order, which is one for all rows.

    What cannot be read any further is one rejected row and the end.
    Raises OSError if the system cannot read.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(suffix, stream):
            names = batch.schema.names
            if twice := sorted({column for column in names if names.count(column) > 1}):
                yield Rejected(name, "duplicate column name", ", ".join(twice))
                return
            for fields in _records(batch):
                identity = f"{name}#{number}"
                yield Row(identity, fields, True) if isinstance(fields, Mapping) else Rejected(identity, *fields)
                number += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not says_damaged(error):
            raise
        reason = f"not readable as {suffix[1:]} ({type(error).__name__})"
        yield Rejected(f"{name}#{number}", reason, f"after {number} rows: {error}")
    except UnicodeDecodeError as error:
        yield Rejected(name, "column names are not UTF-8", str(error))


def says_damaged(error: OSError) -> bool:
    """Whether a decoder says that the data are damaged, not the system or a network that they are unavailable."""
    return type(error) is OSError and error.errno is None


def _records(batch: Any) -> list[Mapping | tuple[str, str]]:
    """The rows of a batch; of one that has no Python value, the (reason, detail)."""
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError):
        return [_record(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _record(single: Any) -> Mapping | tuple[str, str]:
    try:
        return single.to_pylist(maps_as_pydicts="strict")[0]
    except UnicodeDecodeError:
        return "invalid UTF-8", ""
    except (ValueError, KeyError, OverflowError) as error:
        return f"unreadable value ({type(error).__name__})", str(error)


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
