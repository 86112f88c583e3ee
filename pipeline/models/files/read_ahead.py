"""Reading what is computed with from the disk before it is asked for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Self

from pipeline.models.files.tensor_file import Stored

AHEAD_BYTES = 512 * 2**20
"""Read and not yet computed with. It is in the kernel's memory of files, which the kernel may drop."""
_STEP_BYTES = 8 * 2**20


class ReadAhead:
    """As a context: while its body runs, the kernel fetches groups of tensors in their order, a group's side by side.

    The body reads them as it would without. Nothing goes wrong where it does so in another order, or the kernel cannot.
    """

    def __init__(self, order: Sequence[Sequence[Stored]]) -> None:
        self._order = order
        self._room = AHEAD_BYTES
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def done(self, group: Sequence[Stored]) -> None:
        """Tensors were read to their end: as many bytes more may be fetched."""
        with self._changed:
            self._room = min(AHEAD_BYTES, self._room + sum(stored.num_bytes for stored in group))
            self._changed.notify()

    def __enter__(self) -> Self:
        """Begin."""
        if hasattr(os, "posix_fadvise"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        for group in self._order:
            for first in range(0, max(stored.num_bytes for stored in group), _STEP_BYTES):
                for stored in group:
                    if not self._has_room():
                        return
                    self._fetch(stored, first)

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._room > 0)
            return not self._is_over

    def _fetch(self, stored: Stored, first: int) -> None:
        size = min(_STEP_BYTES, stored.num_bytes - first)
        if size <= 0:
            return
        with contextlib.suppress(OSError), stored.file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), stored.start + first, size, os.POSIX_FADV_WILLNEED)
        with self._changed:
            self._room -= size
