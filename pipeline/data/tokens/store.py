"""Tokens on disk: one flat .npy per source and the offsets of its documents.

Shapes: K tokens of the whole source, N documents; offsets have N + 1 entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.tokens.vocabulary import check_rows


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one source. tokens: uint16|uint32[K]; offsets: int64[N + 1]; targets: uint8[K], or None for text.

    Document d is tokens[offsets[d]:offsets[d + 1]].
    """

    name: str
    tokens: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        """int64[N]: tokens of every document."""
        return np.diff(self.offsets)


def token_dtype(num_rows: int) -> np.dtype:
    """The type of the ids of an embedding with `num_rows` rows: uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if num_rows < 65536 else np.uint32)


class ArrayWriter:
    """Writes a one-dimensional .npy piece by piece, without knowing its length first. A context manager."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        path.unlink(missing_ok=True)  # whoever has the old file mapped keeps it as it was
        self._stream = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        """numpy pads it, so that it can be overwritten once the length is known."""
        entry = {"descr": self.dtype.newbyteorder("<").str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, entry)

    def write(self, values: np.ndarray) -> None:
        """Append values; they must fit the dtype."""
        self._stream.write(np.ascontiguousarray(values, dtype=self.dtype.newbyteorder("<")).tobytes())
        self.length += len(values)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.seek(0)
        self._write_header()
        self._stream.close()


def store_paths(directory: Path, name: str) -> tuple[Path, Path, Path]:
    """The files of a source's tokens, offsets and targets."""
    return tuple(directory / f"{name}.{part}.npy" for part in ("tokens", "offsets", "targets"))  # type: ignore[return-value]


def open_store(directory: Path, name: str) -> TokenStore:
    """Map a source's tokens into memory. Raises ValueError if the files do not belong together."""
    paths = store_paths(directory, name)
    tokens, offsets = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths[:2])
    targets = np.load(paths[2], mmap_mode="r", allow_pickle=False) if paths[2].exists() else None
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (targets is not None and len(targets) != len(tokens)):
        raise ValueError(
            f"source {name!r} in {directory}: {len(tokens)} tokens, offsets end at {offsets[-1]}, "
            f"{'no' if targets is None else len(targets)} targets; tokenise it again"
        )
    return TokenStore(name, tokens, offsets, targets)


def write_store(
    directory: Path, name: str, documents: Iterable[tuple[np.ndarray, np.ndarray | None]], num_rows: int
) -> tuple[int, int]:
    """Write documents as (token ids, targets or None) and return (documents, tokens).

    num_rows: of the model's embedding. Raises NoRowError for an id beyond them.
    """
    paths = store_paths(directory, name)
    dtype = token_dtype(num_rows)
    offsets = [0]
    with ArrayWriter(paths[0], dtype) as tokens, ArrayWriter(paths[2], np.dtype(np.uint8)) as marks:
        for ids, targets in documents:
            check_rows(ids, num_rows, f"source {name!r}")
            tokens.write(ids)
            if targets is not None:
                marks.write(targets)
            offsets.append(tokens.length)
    if marks.length == 0:
        paths[2].unlink()
    with ArrayWriter(paths[1], np.dtype(np.int64)) as writer:
        writer.write(np.array(offsets, dtype=np.int64))
    return len(offsets) - 1, offsets[-1]


def backend_of(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` of a transformers tokenizer. Raises ValueError if it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast backend; load it with a tokenizer.json")
    return backend


def in_batches(texts: Iterable[str], num_chars: int) -> Iterator[list[str]]:
    """Batches of bounded size, so that the encodings of a large source never exist at once."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= num_chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
