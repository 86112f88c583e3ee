"""Tokenise many documents on all cores, in order and in bounded memory; and keep the result for the next time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.tokens.special_tokens import SpecialTokens
from pipeline.data.tokens.store import backend_of, in_batches, store_paths
from pipeline.data.tokens.words import WordEncoder

_BATCH_CHARS = 1 << 20
_FEW_BATCHES = 8
"""A source of fewer batches is done before processes have started."""
_FORMAT = "2"
_HASHES = "sha256.json"
_BLOCK_BYTES = 1 << 20
_own: WordEncoder | None = None


@dataclass(frozen=True)
class Encoding:
    """How texts are tokenised, which changes no id.

    num_workers: processes. word_cache: encode every distinct word once, where that gives the same ids. directory: where
    tokens are kept by content and tokenizer, or None.
    """

    num_workers: int = 1
    word_cache: bool = True
    directory: Path | None = None


def encode_all(tokenizer: Any, texts: Iterable[str], encoding: Encoding) -> Iterator[np.ndarray]:
    """Token ids (uint32) of every text as a document, in order: those of `tokens.encode_documents`.

    Raises ValueError as it does.
    """
    stated, special = backend_of(tokenizer).to_str(), SpecialTokens.of(tokenizer)
    prefix, end = (np.array(ids, dtype=np.uint32) for ids in (special.prefix, special.end))
    done: Iterator[list[np.ndarray]]
    batches = in_batches(texts, _BATCH_CHARS)
    head = list(islice(batches, _FEW_BATCHES))
    if encoding.num_workers > 1 and len(head) == _FEW_BATCHES:
        start = (_start_words, stated, encoding.word_cache)
        done = starmap(_apart, in_processes(_encode, chain(head, batches), encoding.num_workers, *start))
    else:
        encoder = WordEncoder(stated, encoding.word_cache)
        done = (encoder.encode(batch) for batch in chain(head, batches))
    for ids in chain.from_iterable(done):
        yield np.concatenate([prefix, ids, end])


def in_processes(
    work: Callable[[Any], Any], batches: Iterable[Any], num_workers: int, start: Callable[..., None], *arguments: Any
) -> Iterator[Any]:
    """`work` of every batch in order, by processes that first call `start(*arguments)`, a few batches ahead at most.

    All of it must be importable by name: the processes are fresh ones.
    """
    context = multiprocessing.get_context("spawn")  # this process may hold threads, which a fork would not survive
    waiting: deque[Future] = deque()
    with ProcessPoolExecutor(num_workers, context, _start, (start, arguments)) as pool:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """A killed parent closes no queue: without this its workers would wait for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _start_words(stated: str, words: bool) -> None:
    global _own
    _own = WordEncoder(stated, words)


def _apart(ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(ids, np.cumsum(lengths)[:-1])


def _encode(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
    assert _own is not None
    encoded = _own.encode(batch)
    return np.concatenate(encoded), np.array([len(ids) for ids in encoded])


class TokenCache:
    """Token stores kept in a directory under a hash of their documents and the tokenizer.

    Whatever has the same content has the same key, wherever it came from. An entry shares no file with an artifact and
    holds the hashes of its files: one that is not what was kept, or not all there, counts as none and is replaced.
    Entries are never removed otherwise; the directory may be, at any time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def key(self, tokenizer: Any, texts: Iterable[bytes], num_rows: int) -> str:
        """The key of these documents (UTF-8) and this tokenizer with what it puts around them.

        num_rows: of the embedding, which a store's ids were checked against and its type was chosen for.
        """
        special = SpecialTokens.of(tokenizer)
        around = f"{special.prefix} {special.end} {num_rows}"
        digest = hashlib.sha256(f"{_FORMAT}\n{around}\n{backend_of(tokenizer).to_str()}".encode())
        for text in texts:
            digest.update(len(text).to_bytes(8, "little"))
            digest.update(text)
        return digest.hexdigest()

    def fetch(self, key: str, directory: Path, name: str) -> bool:
        """Put a copy of the kept tokens of `key` in place as those of source `name`; whether there are any."""
        entry, wanted = self._directory / key, store_paths(directory, name)[:2]
        if not entry.is_dir():
            return False
        stated = _hashes(entry)
        for kept, path in zip(store_paths(entry, "kept"), wanted, strict=False):
            # Hashed as it is copied: what is in place is what was looked at. The key has cost a hash of more already.
            if kept.name not in stated or _copy(kept, path) != stated[kept.name]:
                for found in wanted:
                    found.unlink(missing_ok=True)
                shutil.rmtree(entry, ignore_errors=True)
                return False
        return True

    def keep(self, key: str, directory: Path, name: str) -> None:
        """Remember the tokens of source `name` under `key`. A cache that cannot be written is done without."""
        partial = self._directory / f"{key}.{os.getpid()}.partial"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            pairs = zip(store_paths(partial, "kept")[:2], store_paths(directory, name), strict=False)
            hashes = {kept.name: _copy(written, kept) for kept, written in pairs}
            (partial / _HASHES).write_text(json.dumps(hashes), encoding="utf-8")
            partial.rename(self._directory / key)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)


def _hashes(entry: Path) -> dict[str, str]:
    try:
        found = json.loads((entry / _HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _copy(source: Path, target: Path) -> str | None:
    """Copy a file; the sha256 of what was copied, or None if there is no such file."""
    digest = hashlib.sha256()
    try:
        reading = source.open("rb")
    except FileNotFoundError:
        return None
    target.unlink(missing_ok=True)
    with reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK_BYTES):
            digest.update(block)
            writing.write(block)
    return digest.hexdigest()
