"""Reading what is computed with from the disk before it is asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Self

from pipeline.models.files.atomic_io import advise
from pipeline.models.files.tensor_file import Stored

AHEAD_BYTES = 512 * 2**20
"""At most so much is fetched and not yet computed with. It is in the page cache, where the kernel may drop it."""
_STEP_BYTES = 8 * 2**20
_REQUEST_BYTES = 128 * 2**10  # the kernel cuts what is larger than its window, which may be no more


class ReadAhead:
    """As a context: while its body runs, the kernel fetches groups of tensors in their order, a group's side by side.

    The body reads them as it would without. Nothing goes wrong where it does so in another order, or the kernel cannot.
    """

    def __init__(self, order: Sequence[Sequence[Stored]]) -> None:
        self._order = order
        self._room = AHEAD_BYTES
        self._fetched: dict[int, int] = {}  # bytes of a group, by its identity
        self._done: set[int] = set()
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def done(self, group: Sequence[Stored]) -> None:
        """A group of `order` was read to its end: as many bytes as were fetched of it may be fetched of others."""
        with self._changed:
            self._done.add(id(group))
            self._room += self._fetched.pop(id(group), 0)
            self._changed.notify()

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        asked: set[Stored] = set()  # several tensors may be cut from one
        for group in self._order:
            new = [stored for stored in dict.fromkeys(group) if stored not in asked]
            asked.update(new)
            for first in range(0, max((stored.num_bytes for stored in new), default=0), _STEP_BYTES):
                for stored in new:
                    size = min(_STEP_BYTES, stored.num_bytes - first)
                    if size > 0 and self._may_fetch(group, size):
                        _fetch(stored, first, size)

    def _may_fetch(self, group: Sequence[Stored], size: int) -> bool:
        """Wait until there is room, and take it; False where it is too late."""
        key = id(group)
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._room > 0 or key in self._done)
            if self._is_over or key in self._done:
                return False
            self._room -= size
            self._fetched[key] = self._fetched.get(key, 0) + size
            return True


def _fetch(stored: Stored, first: int, size: int) -> None:
    with contextlib.suppress(OSError), stored.file.open("rb", buffering=0) as stream:  # the reader will tell
        for start in range(first, first + size, _REQUEST_BYTES):
            count = min(_REQUEST_BYTES, first + size - start)
            advise(stream.fileno(), stored.start + start, count, "WILLNEED")
