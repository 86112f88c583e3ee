"""What a domain pack is on disk: trained new blocks without their model, pinned to the base that they belong to.

    <pack>/pack.json             facts, as canonical JSON: sorted keys, no spaces, one line
    <pack>/blocks.safetensors    `<index in pack.json's blocks>.<rest of the tensor's name in its block>`

A directory and not one file with the facts in the safetensors header, because the facts can then hold the hash of the
whole weights file, and be read, compared and searched with any tool.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.models.directory import read_object
from pipeline.models.files.tensor_file import Stored, read_header
from pipeline.typed import check_fields

FORMAT = 1
FACTS, WEIGHTS = "pack.json", "blocks.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class PackBlock:
    """One block of a pack.

    Attributes:
        after: the block of the base that it stands above, from 0; -1 is below the first.
        order: its rank from below among the pack's blocks at that place.
        origin: the block of the base that it is built like, and that it was made from, directly or over other rounds.
        group: counts the insertion points of its round from 0.
        round: the round of expansion that added it.
        lr_scale: what its learning rate was multiplied by.
        config: what the model's config says of this block in its per-block lists, by their names.
        writers: its residual writers, by the rest of their names on disk; empty where none are found.
        scales: the tensors that what it adds to the stream is proportional to; empty where this is not shown.
    """

    after: int
    order: int
    origin: int
    group: int | None
    round: int
    lr_scale: float
    config: dict[str, Any]
    writers: tuple[str, ...]
    scales: tuple[str, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> PackBlock:
        """Read one entry of pack.json's blocks; TypeError or ValueError where it is not one."""
        check_fields(cls, entry)
        return cls(**{**entry, "writers": tuple(entry["writers"]), "scales": tuple(entry["scales"])})


@dataclass(frozen=True)
class Pack:
    """A pack, wherever its tensors lie.

    Attributes:
        name: what `gain` and `detach` call it.
        model_type: of the base's config.
        base_hash: `tensors_hash` of the base's tensors.
        base_blocks: the base's depth.
        base_config: see `config.pinned_config`; None in packs of before it was kept.
        blocks: from below.
        provenance: what made the blocks, and when.
        weights: `{"sha256", "num_bytes"}` of the weights file.
        tensors: for each block, by the rest of their names.
    """

    name: str
    model_type: str
    base_hash: str
    base_blocks: int
    blocks: tuple[PackBlock, ...]
    provenance: dict[str, Any]
    weights: dict[str, Any]
    tensors: tuple[dict[str, Stored], ...]
    base_config: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """The plain form in pack.json, with `id`: the sha256 of all the rest of it as canonical JSON."""
        base: dict[str, Any] = {"content_hash": self.base_hash, "num_blocks": self.base_blocks}
        if self.base_config is not None:
            base["config"] = self.base_config
        facts = {
            "format": FORMAT,
            "name": self.name,
            "model_type": self.model_type,
            "base": base,
            "blocks": [{**asdict(b), "writers": list(b.writers), "scales": list(b.scales)} for b in self.blocks],
            "provenance": self.provenance,
            "weights": self.weights,
        }
        return {**facts, "id": identify(facts)}

    @classmethod
    def of(cls, facts: Mapping[str, Any], tensors: tuple[dict[str, Stored], ...], where: Path) -> Pack:
        """The pack that a record describes.

        Raises:
            ValueError: `facts`, which were read from `where`, are not a pack's, or not what their `id` says.
        """
        if facts.get("format") != FORMAT:
            found = facts.get("format")
            raise ValueError(f"{where} is of pack format {found!r}, this program reads {FORMAT}; extract the pack anew")
        if facts.get("id") != identify({key: value for key, value in facts.items() if key != "id"}):
            raise ValueError(f"{where} was changed after it was written: its facts do not give its id; extract it anew")
        try:
            return cls(
                name=check_name(facts["name"]),
                model_type=str(facts["model_type"]),
                base_hash=str(facts["base"]["content_hash"]),
                base_blocks=int(facts["base"]["num_blocks"]),
                blocks=tuple(PackBlock.of(entry) for entry in facts["blocks"]),
                provenance=dict(facts["provenance"]),
                weights=dict(facts["weights"]),
                tensors=tensors,
                base_config=None if facts["base"].get("config") is None else dict(facts["base"]["config"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where} is damaged: {error!r}; extract the pack anew") from error


def canonical(facts: Any) -> str:
    """The one text of plain data."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identify(facts: Mapping[str, Any]) -> str:
    """sha256 of facts as canonical JSON."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()


def check_name(name: str) -> str:
    """The name, or ValueError if it cannot be written as `--gain name=0.5`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a pack cannot be called {name!r}; use letters, digits, dots, dashes and underscores")
    return name


def hash_file(file: Path) -> str:
    """sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_pack(directory: Path) -> Pack:
    """Read a pack and check that its weights are the ones it was written with.

    Raises:
        ValueError: it is not a pack, incomplete, or was changed.
    """
    file, weights = directory / FACTS, directory / WEIGHTS
    lacking = [path.name for path in (file, weights) if not path.is_file()]
    if lacking:
        raise ValueError(f"{directory} is not a pack: it has no {' and no '.join(lacking)}; `extract` makes packs")
    facts = read_object(file, "extract the pack anew")
    pack = Pack.of(facts, (), file)
    if (found := hash_file(weights)) != pack.weights.get("sha256"):
        raise ValueError(
            f"{weights} is not what it was when the pack was extracted: its sha256 is {found[:12]}..., "
            f"{FACTS} says {str(pack.weights.get('sha256'))[:12]}...; get the pack again"
        )
    tensors: tuple[dict[str, Stored], ...] = tuple({} for _ in pack.blocks)
    for name, stored in read_header(weights).items():
        index, _, rest = name.partition(".")
        if not index.isdigit() or int(index) >= len(tensors):
            raise ValueError(f"{weights} holds {name}, {FACTS} lists {len(tensors)} blocks; extract the pack anew")
        tensors[int(index)][rest] = stored
    return Pack.of(facts, tensors, file)
