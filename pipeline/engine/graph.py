"""What is to be built: nodes that name their inputs, identified by what they mean and not by where they lie."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.fingerprint import digest, plain

SHORT = 12
"""Hexadecimal digits of a fingerprint that name a directory."""
SLUG_LENGTH = 60


def identify(stage: str, version: int, params: Any, inputs: dict[str, str]) -> str:
    """The fingerprint of a configured stage whose inputs have these fingerprints, role by role."""
    return digest({"stage": stage, "version": version, "params": params, "inputs": inputs}, stage)


@dataclass(frozen=True, eq=False)
class Node:
    """One configured use of a stage.

    Args:
        stage: name of the module under `stages/`.
        label: short name for people, unique within one configuration; never part of the identity.
        version: the stage module's `VERSION`.
        params: plain JSON data; the identity, together with stage, version and inputs. Copied.
        inputs: role -> node whose artifact is read.
        settings: recorded, never hashed: {"launch": how it is launched, "locations": where its local sources lie,
            "key": of the config where its params stand, if it says,
            "hints": values that only estimates use, "access": how servers are reached, "early": built first, since it
            reads what the user named, "derived": role -> whether that model came from the first one}.

    Two nodes are equal when their fingerprints are.

    Raises:
        ConfigError: if `params` hold something without a stable form; the message has its path.
    """

    stage: str
    label: str
    version: int
    params: dict[str, Any]
    inputs: dict[str, Node] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "params", plain(self.params, "params"))
        except ValueError as error:
            raise ConfigError(f"{self.label}: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        inputs = {role: node.fingerprint for role, node in self.inputs.items()}
        return identify(self.stage, self.version, self.params, inputs)

    @property
    def slug(self) -> str:
        """The label as part of a directory name; the stage is left out where other words remain."""
        words = re.sub(r"[^a-z0-9._]+", "-", self.label.lower()).strip("-.")
        rest = words.removeprefix(f"{self.stage}-")
        return (rest[:SLUG_LENGTH].strip("-.")) or self.stage

    @property
    def name(self) -> str:
        """Directory name of the artifact: `<slug>-<first digits of the fingerprint>`."""
        return f"{self.slug}-{self.fingerprint[:SHORT]}"

    @property
    def launch(self) -> dict[str, Any]:
        return self.settings.get("launch") or {}

    @property
    def is_early(self) -> bool:
        return bool(self.settings.get("early"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def topological(targets: Iterable[Node]) -> list[Node]:
    """All nodes that `targets` need, each fingerprint once, inputs before their users.

    Deterministic. Among the nodes whose inputs are done, those that read what the user named come first, so that a bad
    source fails before any work; then the order in which a walk from the targets finds them.
    """
    found = _discover(targets)
    position = {fingerprint: index for index, fingerprint in enumerate(found)}
    sorter = TopologicalSorter({one: [i.fingerprint for i in node.inputs.values()] for one, node in found.items()})
    sorter.prepare()
    ready: list[tuple[bool, int, str]] = []
    order = []
    while sorter.is_active():
        for fingerprint in sorter.get_ready():
            heapq.heappush(ready, (not found[fingerprint].is_early, position[fingerprint], fingerprint))
        *_, fingerprint = heapq.heappop(ready)
        order.append(found[fingerprint])
        sorter.done(fingerprint)
    return order


def _discover(targets: Iterable[Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.fingerprint in found:
            return
        for role in sorted(node.inputs):
            visit(node.inputs[role])
        found[node.fingerprint] = node

    for target in targets:
        visit(target)
    return found
