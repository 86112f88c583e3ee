"""`expansion.json`, beside a model's weights: which of its blocks and parameters an expansion added, and how.

What was added is recorded once and never derived again; which blocks are new, where each one came from and which one a
parameter is in are told here alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.typed import check_fields

EXPANSION_FILE = "expansion.json"


@dataclass(frozen=True)
class NewBlock:
    """One block that an expansion added.

    Attributes:
        position: the block's index in the present stack.
        origin: the index of the block it was made from, in the stack before its round; see `origins`.
        group: counts the insertion points of its round from 0.
        round: counts expansions from 1.
        source_hash: sha256 over samples of the origin's tensors; see `tensor_file.sample_hash`.
        lr_scale: what the learning rate of its parameters is multiplied by (ADEPT); 1 for every other method.
    """

    position: int
    origin: int
    group: int | None = None
    round: int = 1
    source_hash: str = ""
    lr_scale: float = 1.0

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> NewBlock:
        """Read an entry; TypeError or ValueError where it is not one."""
        check_fields(cls, entry)
        return cls(**entry)


@dataclass(frozen=True)
class Round:
    """One expansion of several. Its parameters are named as they are on disk now."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    new_parameters: tuple[str, ...] = ()
    round: int = 1

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Round:
        """Read an entry; TypeError where it is not one."""
        return cls(**{**entry, "new_parameters": tuple(entry.get("new_parameters", ()))})


@dataclass(frozen=True)
class PackBase:
    """What a model with packs records of its base, so that it can be had back.

    Attributes:
        content_hash: see `Pack.base_hash`.
        config: the text of its config.json.
        expansion: the text of its expansion.json, if it had one.
    """

    content_hash: str
    config: str
    expansion: str | None


@dataclass(frozen=True)
class AttachedPack:
    """A pack in a model.

    Attributes:
        facts: what its pack.json says.
        gain: what its blocks' additions were multiplied by.
        positions: of its blocks, from below.
        block_gains: of single blocks, counted from 0 within the pack, that have a gain of their own.
    """

    facts: Mapping[str, Any]
    gain: float
    positions: tuple[int, ...]
    block_gains: Mapping[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.facts["name"]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the pack's facts, and what attaching it adds to them."""
        own = {"block_gains": {str(i): gain for i, gain in self.block_gains.items()}} if self.block_gains else {}
        return {**self.facts, "gain": self.gain, **own, "positions": list(self.positions)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> AttachedPack:
        """Read an entry; KeyError, TypeError or ValueError where it is not one."""
        facts = {key: value for key, value in entry.items() if key not in ("gain", "block_gains", "positions")}
        gains = {int(index): float(gain) for index, gain in entry.get("block_gains", {}).items()}
        return cls(facts, float(entry["gain"]), tuple(map(int, entry["positions"])), gains)


@dataclass(frozen=True)
class ExpansionMap:
    """What was added to a model; nothing by default.

    Attributes:
        method, settings: of the last round.
        exact: its method claims that the expanded model computes what its source does.
        blocks: earlier rounds' blocks at their present positions, then the last round's.
        new_parameters: the last round's tensors, by their names on disk.
        module_parameters: the same by their names in the loaded model, which differ where transformers joins experts;
            empty: they do not.
        rounds: the earlier rounds.
        fixed_parameters: of the loaded model, by name, which no strategy trains: constants of the architecture that the
            model's class declares as parameters.
        buffers: tensors on disk that make no parameter of the model (masks, tables): nothing counts or trains them.
        notes: what the method keeps besides, by name.
        base, packs: of a model that packs were attached to.
    """

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    blocks: tuple[NewBlock, ...] = ()
    new_parameters: tuple[str, ...] = ()
    module_parameters: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    fixed_parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    base: PackBase | None = None
    packs: tuple[AttachedPack, ...] = ()

    def __post_init__(self) -> None:
        if not self.module_parameters:
            object.__setattr__(self, "module_parameters", self.new_parameters)

    @property
    def round(self) -> int:
        """The number of the last round; 0 where nothing was added. It may have added parameters and no block."""
        return max([len(self.rounds) + bool(self.new_parameters), *(block.round for block in self.blocks)])

    @property
    def history(self) -> tuple[Round, ...]:
        """Every round, the last one too."""
        last = Round(self.method, self.settings, self.exact, self.new_parameters, self.round)
        return (*self.rounds, last) if self.new_parameters else self.rounds

    @property
    def by_position(self) -> dict[int, NewBlock]:
        """The blocks of all rounds."""
        return {block.position: block for block in self.blocks}

    @property
    def last_positions(self) -> frozenset[int]:
        """Where the last round's blocks stand."""
        return frozenset(block.position for block in self.blocks if block.round == self.round)

    def lr_scales(self) -> dict[str, float]:
        """What the learning rate of each new parameter of the loaded model is multiplied by, where that is not 1."""
        scales = {block.position: block.lr_scale for block in self.blocks}
        places = {name: split_name(name) for name in self.module_parameters}
        found = {name: scales.get(place[1], 1.0) for name, place in places.items() if place}
        return {name: scale for name, scale in found.items() if scale != 1.0}

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in the file."""
        return {
            "method": self.method,
            "settings": self.settings,
            "exact": self.exact,
            "blocks": [asdict(block) for block in self.blocks],
            "new_parameters": list(self.new_parameters),
            "module_parameters": list(self.module_parameters),
            "rounds": [{**vars(one), "new_parameters": list(one.new_parameters)} for one in self.rounds],
            **{key: list(names) for key in ("fixed_parameters", "buffers") if (names := getattr(self, key))},
            **self.notes,
            **({"base": asdict(self.base)} if self.base else {}),
            **({"packs": [pack.to_json() for pack in self.packs]} if self.packs else {}),
        }

    def to_text(self) -> str:
        """The content of the file."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str | None) -> ExpansionMap:
        """Read the content of the file, if there is one; raises as `from_json`."""
        return cls() if text is None else cls.from_json(json.loads(text))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ExpansionMap:
        """Read what `to_json` gave, in this version or an earlier one.

        Raises:
            ValueError: it is something else.
        """
        makers = {"blocks": NewBlock.from_json, "rounds": Round.from_json, "packs": AttachedPack.from_json}
        try:
            known = {key: record[key] for key in ("method", "settings", "exact") if key in record}
            known |= {key: tuple(record.get(key, ())) for key in ("module_parameters", "fixed_parameters", "buffers")}
            known |= {key: tuple(map(make, record.get(key, ()))) for key, make in makers.items()}
            known |= {"new_parameters": tuple(record["new_parameters"]), "base": None}
            if record.get("base"):
                known["base"] = PackBase(**record["base"])
            return cls(**known, notes={key: value for key, value in record.items() if key not in known})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no record of an expansion: {error!r}") from error


def read_expansion(directory: Path) -> ExpansionMap:
    """What was added to the model of a directory; nothing if it has no record.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        return ExpansionMap.from_text(expansion_text(directory))
    except ValueError as error:
        raise ValueError(f"{directory / EXPANSION_FILE} is damaged ({error}); expand again") from error


def expansion_text(directory: Path) -> str | None:
    """The record of a model directory as it lies there; None where there is none."""
    file = directory / EXPANSION_FILE
    return file.read_bytes().decode() if file.is_file() else None


def origins(blocks: Iterable[NewBlock], num_blocks: int) -> dict[int, int]:
    """Position of each new block -> position of its origin, both in the present stack of `num_blocks`.

    The record counts an origin in the stack before its round: that is the present one without the blocks of this and
    later rounds.
    """
    blocks = tuple(blocks)
    rounds = {block.position: block.round for block in blocks}
    found = {}
    for block in blocks:
        before = [position for position in range(num_blocks) if rounds.get(position, 0) < block.round]
        found[block.position] = before[block.origin]
    return found


def split_name(name: str) -> tuple[str, int] | None:
    """What stands before the number of the block that a tensor is in, and that number; None outside the blocks.

    It is the first number of a name: 4 in "model.layers.4.mlp.experts.1.up_proj.weight".
    """
    match = re.match(r"((?:.*?\.)??)(\d+)(?:\.|$)", name)
    return (match[1], int(match[2])) if match else None
