"""The outputs folder before a stage starts: tried for room and permission, and a `.partial` laid out for a worker."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError, PipelineError
from pipeline.engine.locks import ORPHAN_S, WRITING, writing
from pipeline.engine.sources.hashes import write_atomic

MARGIN_S = 15.0
"""A worker without a driver is gone within its time for saving and this."""

MIN_FREE_BYTES = 256 << 20
"""Less free space than this is refused before anything starts: it would not hold the results of most stages."""


def probe(outputs: Path) -> None:
    """Find out before any work whether artifacts can be written.

    Raises:
        ConfigError: if the folder cannot be written, or its disk has less than 256 MiB left.
    """
    folder = outputs.absolute() / "artifacts"
    with readable_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".probe-{os.getpid()}"
        try:
            trial.write_bytes(b"\0" * 4096)
        finally:
            trial.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            f"the disk of {folder} has {free >> 20} MiB free, at least {MIN_FREE_BYTES >> 20} MiB are required; "
            "free some space or set paths.outputs elsewhere"
        )


def check_writable(outputs: Path) -> None:
    """As `probe` without making the folder, for a plan: an empty folder is made beside where it will be, and removed.

    Raises:
        ConfigError: if the folder cannot be made, or written.
    """
    folder = outputs.absolute() / "artifacts"
    there = next(one for one in (folder, *folder.parents) if one.exists())
    with readable_disk_errors(folder):
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=there))


def lay_out(directory: Path, config: Mapping[str, Any], resumable: bool, patience_s: float = ORPHAN_S) -> None:
    """Make a `.partial` directory with its config.yaml. What an earlier attempt left stays only if it is resumable.

    A worker that outlived its driver is waited for. If it committed the artifact in the end, nothing is made.

    Raises:
        ArtifactError: if a worker without a driver still writes there.
        ConfigError, PipelineError: if the folder cannot be written, or its disk is full.
    """
    with readable_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with writing(directory, patience_s):
            committed = artifact.is_committed(artifact.final(directory))
            if committed or not resumable:
                _clear(directory)
            if not committed:
                text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
                write_atomic(directory / artifact.CONFIG, text)
        if committed:
            shutil.rmtree(directory)


@contextlib.contextmanager
def readable_disk_errors(path: Path) -> Iterator[None]:
    """Let an OSError in here say what to do about `path`."""
    try:
        yield
    except OSError as error:
        remedy = "free some space or set paths.outputs elsewhere"
        if error.errno == errno.ENOSPC:
            raise PipelineError(f"the disk of {path} is full; {remedy}") from error
        raise ConfigError(f"{path} cannot be written: {error}; set paths.outputs to a folder that can") from error


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name in WRITING:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
