"""Datasets of the Hugging Face hub: data files read row by row, or what the `datasets` library makes of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.sources.formats import rows_of_file
from pipeline.data.sources.rows import Rejected, Row
from pipeline.globs import matches

_FORMATS = (".parquet", ".arrow", ".json", ".csv", ".tsv", ".txt", ".md")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUFFER_BYTES = 8 << 20
_PATIENCE_S = 15.0  # for one question to the hub


class HubError(ValueError):
    """A dataset could not be downloaded from the Hub; the message says why, and what to do without a network."""

    def __init__(self, message: str, repo: str, revision: str) -> None:
        super().__init__(message)
        self.repo, self.revision = repo, revision


def check_format(files: str) -> None:
    """Raise ValueError if a glob over data files does not show their format."""
    if not any(marker in files for marker in _FORMATS):
        raise ValueError(
            f"files={files!r} does not show its format; it must hold .parquet, .arrow, .json(l), .csv, .tsv, .txt"
        )


def is_commit(revision: str) -> bool:
    """Whether a revision names one commit for ever; a branch or a tag may move."""
    return _COMMIT.fullmatch(revision) is not None


@dataclass(frozen=True)
class Repository:
    """A dataset repository at a revision. `repo` may be a folder of the same form, already downloaded."""

    repo: str
    revision: str

    def read(self, files: str, streaming: bool) -> Iterator[Row | Rejected]:
        """The rows of all data files that the glob `files` means, by file name; row ids are `file#i`.

        streaming: read from the hub as the rows are asked for; otherwise the files are in the hub's cache first.
        Raises HubError if they could not be downloaded, ValueError if there are none.
        """
        if (folder := Path(self.repo)).is_dir():
            yield from _local_rows(folder, files, self.repo)
            return
        with self._asking(is_of_network, files):
            if streaming and (system := self._reachable()):
                yield from self._remote_rows(system, files)
            else:
                yield from _local_rows(self._download(files), files, self.repo)

    def load(self, name: str | None, split: str, streaming: bool) -> Iterator[Row | Rejected]:
        """The rows of a configuration and split, by the `datasets` library; row ids are `repo#i`.

        What it cannot read, such as files of different columns, is one rejected row and the end.
        Raises HubError if the dataset could not be downloaded.
        """
        import datasets

        with self._asking(is_of_network):
            found = datasets.load_dataset(self.repo, name, split=split, revision=self.revision, streaming=streaming)
            yield from self._until_broken(iter(found))

    def commit(self) -> str:
        """The commit that the revision stands for now, asked of the hub if it is not a commit itself.

        Raises HubError if the hub cannot be reached.
        """
        if is_commit(self.revision) or Path(self.repo).is_dir():
            return self.revision
        from huggingface_hub import HfApi

        with self._asking():
            return str(HfApi().dataset_info(self.repo, revision=self.revision).sha)

    def reach(self) -> None:
        """Check that the dataset is available, without downloading it: in this machine's cache, or from the Hub.

        Of a cache it is not known whether all of it is there. Raises HubError if neither has it.
        """
        if Path(self.repo).is_dir() or self._is_cached():
            return
        from huggingface_hub import HfApi

        with self._asking():
            HfApi().dataset_info(self.repo, revision=self.revision, timeout=_PATIENCE_S)

    def _is_cached(self) -> bool:
        """Whether the hub's cache has files of the revision, or `datasets` has made something of the dataset."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{self.repo.replace('/', '--')}"
        reference = folder / "refs" / self.revision
        commit = reference.read_text().strip() if reference.is_file() else self.revision
        snapshot = folder / "snapshots" / commit
        if snapshot.is_dir() and any(snapshot.iterdir()):
            return True
        made = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
        # `datasets` writes owner___name, the name in snake case
        return made.is_dir() and any(_letters(one.name) == _letters(self.repo) for one in made.iterdir())

    @contextmanager
    def _asking(
        self, counts: Callable[[Exception], bool] = lambda error: True, files: str | None = None
    ) -> Iterator[None]:
        """Raise HubError instead of an error that `counts`, with what to download without a network."""
        try:
            yield
        except Exception as error:
            if not counts(error):
                raise
            include = f" --include {files!r}" if files else ""
            message = (
                f"dataset {self.repo} at revision {self.revision} could not be downloaded from the Hub: "
                f"{type(error).__name__}: {str(error).strip()[:300]}\n"
                f"Without network here: on a machine with one run\n"
                f"  hf download {self.repo} --repo-type dataset --revision {self.revision}{include}\n"
                f"and copy the folder datasets--{self.repo.replace('/', '--')} of ~/.cache/huggingface/hub here.\n"
                "A gated dataset needs an accepted licence and `hf auth login`."
            )
            raise HubError(message, self.repo, self.revision) from error

    def _reachable(self) -> Any:
        """The hub as a file system, or None where it cannot be reached: then what was downloaded before is used."""
        from huggingface_hub import HfFileSystem

        system = HfFileSystem()
        try:
            system.ls(f"datasets/{self.repo}@{self.revision}", detail=False)
        except Exception as error:
            if not is_of_network(error):
                raise
            return None
        return system

    def _download(self, files: str) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.repo, repo_type="dataset", revision=self.revision, allow_patterns=[files]))

    def _remote_rows(self, system: Any, files: str) -> Iterator[Row | Rejected]:
        names = sorted(system.glob(f"datasets/{self.repo}@{self.revision}/{files}"))
        if not names:
            raise ValueError(_no_files(self.repo, files))
        for name in names:
            with system.open(name, "rb", block_size=_BUFFER_BYTES) as stream:
                yield from rows_of_file(name.partition(f"@{self.revision}/")[2] or name, stream)

    def _until_broken(self, rows: Iterator[Any]) -> Iterator[Row | Rejected]:
        number = 0
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except Exception as error:
                if is_of_network(error):
                    raise
                reason = f"not readable by datasets ({type(error).__name__})"
                yield Rejected(f"{self.repo}#{number}", reason, f"after {number} rows: {error}")
                return
            yield Row(f"{self.repo}#{number}", fields, nulls_are_absent=True)
            number += 1


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _local_rows(folder: Path, files: str, repo: str) -> Iterator[Row | Rejected]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    names = sorted(name for name in found if matches(name, [files]))
    if not names:
        raise ValueError(_no_files(repo, files))
    for name in names:
        with found[name].open("rb") as stream:
            yield from rows_of_file(name, stream)


def _no_files(repo: str, files: str) -> str:
    return f"dataset {repo} holds no file that matches files={files!r}; look at its file list and correct the glob"


def is_of_network(error: BaseException) -> bool:
    """Whether something could not be fetched, as against being damaged: errors of the hub, of HTTP and of sockets."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = {
        "HfHubHTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "DatasetNotFoundError", "HTTPError",
        "TransportError", "ConnectionError", "TimeoutError", "gaierror",
    }  # fmt: skip
    return bool(kinds & known) or (isinstance(error, OSError) and error.errno is not None)
