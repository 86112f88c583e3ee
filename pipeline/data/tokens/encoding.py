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
from functools import partial
from itertools import chain, islice
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
_own: Callable | None = None


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
    """Token ids (uint32) of every text as a document, in order: see `text_encoder`.

    Raises ValueError without an end-of-text token or without a fast tokenizer.
    """
    stated, special = backend_of(tokenizer).to_str(), SpecialTokens.of(tokenizer)
    prefix, end = (np.array(ids, dtype=np.uint32) for ids in (special.prefix, special.end))
    make = partial(_word_encoder, stated, encoding.word_cache)
    for ids, lengths in spread(make, in_batches(texts, _BATCH_CHARS), encoding.num_workers, _FEW_BATCHES):
        for own in np.split(ids, np.cumsum(lengths)[:-1]):
            yield np.concatenate([prefix, own, end])


def _word_encoder(stated: str, words: bool) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    """A function that gives the ids of a batch as one array, which is quickly handed on, and how many each text has."""
    encoder = WordEncoder(stated, words)

    def encode(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = encoder.encode(batch)
        return np.concatenate(encoded), np.array([len(ids) for ids in encoded])

    return encode


def spread(make: Callable[[], Callable], batches: Iterator[Any], num_workers: int, few: int) -> Iterator[Any]:
    """What the function that `make` gives makes of every batch, in order.

    Fewer than `few` batches are done here, more by `num_workers` processes, each with a function of its own and a few
    batches ahead at most. The processes are fresh ones, to which `make` and the batches are pickled.
    """
    head = list(islice(batches, few))
    batches = chain(head, batches)
    if num_workers < 2 or len(head) < few:
        yield from map(make(), batches)
        return
    context = multiprocessing.get_context("spawn")  # this process may hold threads, which a fork would not survive
    waiting: deque[Future] = deque()
    with ProcessPoolExecutor(num_workers, context, _start, (make,)) as pool:
        for batch in batches:
            waiting.append(pool.submit(_work, batch))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start(make: Callable[[], Callable]) -> None:
    global _own
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own = make()


def _end_with_parent() -> None:
    """A killed parent closes no queue: without this its workers would wait for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(batch: Any) -> Any:
    assert _own is not None
    return _own(batch)


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
