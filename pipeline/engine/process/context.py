"""What a stage is given: its params and inputs, a directory to fill, and ways to report, record and stop."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engine.artifact import REQUIRED
from pipeline.engine.fingerprint import plain
from pipeline.engine.process.signals import Stop
from pipeline.engine.sources.locations import listing

PROGRESS = "@progress "
"""Begins a line of a worker's standard output that is meant for the driver and not for the log."""
Send = Callable[[dict[str, Any]], None]
PROGRESS_EVERY_S = 0.1


def channel(descriptor: int) -> Send:
    """Sends events to the driver as lines on a file descriptor. A driver that is gone is no error."""

    def send(event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"{PROGRESS}{json.dumps(event, default=str)}\n".encode())

    return send


class Context:
    """One use of a stage, as its `run` sees it.

    Attributes:
        directory: the uncommitted directory to write into; committed by the engine after `run` returned.
        params: the identity of this use; plain JSON data.
        inputs: role -> committed artifact directory; read only.
        launch: how it was launched (processes, micro batch, ...): may not change a result.
        access: how servers that it asks are reached; recorded, no part of the identity.
        is_main: whether this is rank 0; only rank 0 reports progress, and only its return value is recorded.
    """

    def __init__(self, directory: Path, config: dict[str, Any], send: Send, stop: Stop, is_main: bool) -> None:
        self.directory, self.is_main = directory, is_main
        self.params: dict[str, Any] = config["params"]
        self.inputs = {role: Path(entry["directory"]) for role, entry in config["inputs"].items()}
        self.launch: dict[str, Any] = config.get("launch") or {}
        self.access: dict[str, Any] = config.get("access") or {}
        self.recorded: dict[str, Any] = {}
        self._node, self._send, self._stop, self._last = config["fingerprint"], send, stop, 0.0
        self._packages: dict[str, str] = config.get("packages") or {}
        self._locations: dict[str, dict[str, Any]] = config.get("locations") or {}

    def locate(self, source: dict[str, Any]) -> Path:
        """Where a source lies on disk: the archive of a package, or the file or folder of a local source.

        A local source with globs gives its root; `listing` says which files below are meant.

        Raises:
            ValueError: for a kind that the engine does not place, such as hub, or a source it was not told of.
        """
        kind = source.get("kind")
        if kind == "package" and source.get("sha256") in self._packages:
            return Path(self._packages[source["sha256"]])
        if kind == "local":
            return Path(self._location(source)["path"])
        raise ValueError(f"no place on disk is known for the source {source}; only package and local ones have one")

    def listing(self, source: dict[str, Any]) -> list[str]:
        """Sorted names, relative to `locate(source)`, of the files that a local source means: those it is hashed by.

        For a source that is one file, the file's own name. Raises ValueError as `locate` does.
        """
        location = self._location(source)
        return listing(Path(location["path"]), location.get("include"), location.get("exclude"))

    def progress(self, **fields: Any) -> None:
        """Show step, total, loss, tokens_per_s, eta_s, note in the driver. Cheap; shown a few times a second."""
        now = time.monotonic()
        if self.is_main and ("note" in fields or now - self._last >= PROGRESS_EVERY_S):
            self._last = now
            self._send({**fields, "event": "progress", "node": self._node})

    def handle_stop(self) -> None:
        """Promise to look at `should_stop`: from here on a signal no longer raises `Interrupted` by itself."""
        self._stop.deferred = True

    def should_stop(self) -> bool:
        """Whether SIGTERM or SIGINT was received: save, then raise `Interrupted`.

        On several ranks the signal may arrive at different steps: agree on it before acting.
        """
        return self._stop.requested

    def record(self, **fields: Any) -> None:
        """Add fields to the manifest, e.g. `new_parameters=[...]`; plain JSON data.

        Raises:
            ValueError: for a name that the manifest uses itself, or a value without a stable form.
        """
        if taken := sorted(set(REQUIRED) & set(fields)):
            raise ValueError(f"the manifest's own fields {', '.join(taken)} cannot be recorded; choose other names")
        self.recorded.update(plain(fields, "record"))

    def _location(self, source: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._locations[source["content"]]
        except KeyError as error:
            raise ValueError(f"no place on disk is known for the local source {source}") from error
