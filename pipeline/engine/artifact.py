"""Artifact directories: committed once by a rename, told apart by their manifest, never written to again.

<outputs>/artifacts/<stage>/<slug>-<fingerprint[:12]>/   manifest.json, config.yaml, log.txt and the stage's files
<outputs>/artifacts/<stage>/<...>.partial/               not committed: what a worker is writing, or left behind
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.engine.errors import ArtifactError
from pipeline.engine.graph import SHORT, Node, identify
from pipeline.engine.sources.hashes import HashCache, sha256_file, write_atomic
from pipeline.file_io import grant, sync

MANIFEST, CONFIG, LOG = "manifest.json", "config.yaml", "log.txt"
PARTIAL = ".partial"
OF_NODE = ("stage", "label", "version", "fingerprint", "params")
"""What a manifest and a worker's config say of their node."""
REQUIRED = (*OF_NODE, "inputs", "metrics", "files", "provenance")
TOLD_BYTES = 1 << 30
"""Reading more than this takes seconds, so a person is told."""
UNLISTED = {MANIFEST, LOG}
"""Left out of a manifest's files: the manifest itself, and the log, whose last lines may come after the commit."""


def stage_root(outputs: Path, stage: str) -> Path:
    return outputs.absolute() / "artifacts" / stage


def find(node: Node, outputs: Path) -> Path | None:
    """The committed directory of a node, whatever label it was built under, or None. Reads no manifest."""
    return next((path for path in _candidates(node, outputs, "") if path.is_dir()), None)


def directory_of(node: Node, outputs: Path) -> Path:
    """Where a node is committed or will be; a `.partial` left under another label is taken up again."""
    if committed := find(node, outputs):
        return committed
    for left in _candidates(node, outputs, PARTIAL):
        return final(left)
    return stage_root(outputs, node.stage) / node.name


def partial(directory: Path) -> Path:
    """`<directory>.partial`."""
    return directory.with_name(directory.name + PARTIAL)


def final(directory: Path) -> Path:
    """The committed name of a `.partial` directory."""
    return directory.with_name(directory.name.removesuffix(PARTIAL))


def is_committed(directory: Path) -> bool:
    """Whether the directory got its final name, which happens only after its manifest was written."""
    return directory.is_dir() and not directory.name.endswith(PARTIAL)


def load_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a committed directory.

    Raises:
        ArtifactError: if it is missing, truncated, or not about this directory.
    """
    remedy = "delete this directory to rebuild it"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{directory} has no {MANIFEST}; {remedy}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / MANIFEST} cannot be read ({error}); {remedy}") from error
    missing = [key for key in REQUIRED if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise ArtifactError(f"{directory / MANIFEST} lacks {', '.join(missing)}; {remedy}")
    if (found := _identity(manifest)) != manifest["fingerprint"]:
        raise ArtifactError(
            f"{directory / MANIFEST} was changed: its content means {found}, but it says {manifest['fingerprint']}; "
            f"{remedy}"
        )
    if not directory.name.endswith("-" + found[:SHORT]) or directory.parent.name != manifest["stage"]:
        raise ArtifactError(
            f"{directory} holds the artifact {manifest['stage']}/...-{found[:SHORT]}; "
            f"give it that name back, or {remedy}"
        )
    return manifest


def identity_of(record: dict[str, Any]) -> str:
    """The fingerprint that the stage, version, params and inputs of a manifest or a worker's config have together.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: one of them is not there, or not what it should be.
    """
    inputs = {role: entry["fingerprint"] for role, entry in record["inputs"].items()}
    return identify(record["stage"], record["version"], record["params"], inputs)


def check(directory: Path) -> dict[str, Any]:
    """Cheap check of a committed directory: a sound manifest, and every listed file there with its size.

    Returns the manifest. Raises ArtifactError naming the directory and the file.
    """
    manifest, remedy = load_manifest(directory), f"delete {directory} to rebuild it"
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {remedy}")
        if (size := path.stat().st_size) != entry["size"]:
            raise ArtifactError(f"{path} has {size} bytes, its manifest says {entry['size']}; {remedy}")
    reference = manifest.get("model_path")
    if reference and not Path(reference).exists():
        raise ArtifactError(
            f"{directory} refers to the model at {reference}, which is not there; "
            f"put it back, or delete {directory} to make the reference anew"
        )
    return manifest


def verify(directory: Path, hashes: HashCache, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """`check`, and the sha256 of every listed file; hashes of unchanged files are remembered.

    `tell` gets a line before a gigabyte or more is read. Returns the manifest. Raises ArtifactError naming the
    directory and the file.
    """
    manifest = check(directory)
    files = manifest["files"]
    unread = sum(entry["size"] for name, entry in files.items() if not hashes.remembers(directory / name))
    if unread > TOLD_BYTES:
        tell(f"verifying {directory.name}: {unread / 1e9:.1f} GB (once)")
    for name, entry in files.items():
        try:
            found = hashes.sha256(directory / name)
        except OSError as error:
            raise ArtifactError(f"{directory / name} cannot be read: {error}") from error
        if found != entry["sha256"]:
            raise ArtifactError(
                f"{directory / name} is damaged: its sha256 is {found}, its manifest says {entry['sha256']}; "
                f"delete {directory} to rebuild it"
            )
    return manifest


def model_dir(directory: Path) -> Path:
    """The plain `save_pretrained` directory of an artifact: its own `model/`, or the one that it refers to.

    Raises:
        ArtifactError: if the artifact has no model.
    """
    own = directory / "model"
    if own.is_dir():
        return own
    reference = load_manifest(directory).get("model_path")
    if reference and Path(reference).is_dir():
        return Path(reference)
    found = f"refers to {reference}, which is not a directory" if reference else "has neither model/ nor a model_path"
    raise ArtifactError(f"{directory} {found}; a stage that needs a model got this artifact")


def commit(directory: Path, manifest: dict[str, Any]) -> Path:
    """Give a `.partial` directory its final name: list and flush its files, write the manifest last, rename.

    Hidden files are removed: they are the engine's own. Returns the committed path.

    Raises:
        ArtifactError: if the final name is taken.
        OSError: if the disk is full or the files cannot be read; nothing is committed then.
    """
    target = final(directory)
    if target.exists():
        raise ArtifactError(f"{target} exists already; {directory} is left as it is")
    for hidden in directory.glob(".*"):
        if hidden.is_file():
            hidden.unlink()
    grant(directory)
    files = _flush(directory)
    text = json.dumps({**manifest, "files": files}, indent=1, sort_keys=True, allow_nan=False)
    write_atomic(directory / MANIFEST, text + "\n")
    sync(directory)
    os.rename(directory, target)
    sync(target.parent)
    return target


def publish(directory: Path, target: Path) -> Path:
    """Copy a committed artifact's files to `target`, for people; files of the same name are replaced. Returns it.

    A copy: what a person does to it cannot harm the artifact. Raises ArtifactError as `load_manifest` does.
    """
    for name in load_manifest(directory)["files"]:
        if name != CONFIG:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, partial(copy))
            os.replace(partial(copy), copy)
    return target


def _candidates(node: Node, outputs: Path, suffix: str) -> list[Path]:
    return sorted(stage_root(outputs, node.stage).glob(f"*-{node.fingerprint[:SHORT]}{suffix}"))


def _identity(manifest: dict[str, Any]) -> str:
    try:
        return identity_of(manifest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"nothing ({error!r})"


def _flush(directory: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        sync(path)
        if not path.is_dir() and name not in UNLISTED:
            files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return files
