"""What nodes will cost, told by their stages before anything is built. The engine passes on what it does not read.

A stage module may have `outlook(ahead) -> Outlook`: quick, and from what is on disk already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine import artifact
from pipeline.engine.graph import Node


@dataclass(frozen=True)
class Outlook:
    """What a stage says of a node that is not built.

    Attributes:
        facts: for the stages that will read it; any values, by names that the stages agree on.
        lines: for a person.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Ahead:
    """A node before it runs, as its stage's `outlook` sees it.

    Attributes:
        facts: of the base model, see `build`.
        earlier: manifests of what is committed of the training stages: what was measured before.
    """

    params: Mapping[str, Any]
    launch: Mapping[str, Any]
    facts: Mapping[str, Any]
    earlier: Callable[[], Sequence[Mapping[str, Any]]]
    inputs: Mapping[str, Path | Outlook]

    def model(self, key: str, read: Callable[[Path], Any], role: str = "model") -> Any:
        """A fact about the model in this role: read from its directory if it is there, else what its stage foresaw.

        Raises:
            ArtifactError: the artifact in this role is there and holds no model.
        """
        source = self.inputs[role]
        return source.facts.get(key) if isinstance(source, Outlook) else read(artifact.model_dir(source))

    def metrics(self, role: str) -> Mapping[str, Any]:
        """The metrics of an input that is there; empty for one that is not."""
        source = self.inputs[role]
        return {} if isinstance(source, Outlook) else artifact.load_manifest(source)["metrics"]


def outlooks(
    nodes: Iterable[tuple[Node, Path | None]],
    module_of: Callable[[str], Any],
    facts: Mapping[str, Any],
    earlier: Callable[[], Sequence[Mapping[str, Any]]],
) -> dict[Node, Outlook]:
    """The outlook of every node that is not committed.

    Args:
        nodes: inputs before their users, each with its committed directory, if it has one.
        module_of: stage -> its module.
        facts: of the base model.
        earlier: see `Ahead`; called only where a stage asks.
    """
    known: dict[Node, Path | Outlook] = {}
    for node, directory in nodes:
        tell = getattr(module_of(node.stage), "outlook", None)
        if directory is not None or tell is None:
            known[node] = directory or Outlook()
            continue
        inputs = {role: known[source] for role, source in node.inputs.items()}
        known[node] = tell(Ahead(node.params, node.launch, facts, earlier, inputs))
    return {node: found for node, found in known.items() if isinstance(found, Outlook)}
