"""What stages tell before they run: whether a request can be run, what is known of its result, and what it costs.

A stage module may have `forecast(request) -> Forecast`: quick, from params and from what is on disk already. It raises
ValueError for a request that cannot be run; nothing was launched then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.graph import Node
from pipeline.engine.sources.locations import listing


@dataclass(frozen=True)
class Forecast:
    """What a stage tells of a node that is not built.

    Attributes:
        facts: of its result, for the forecasts of the nodes that read it; any values, by names on which stages agree.
        lines: for a person.
        memory_bytes: of one of its processes at most, without libraries; None: not known. A little need not be told.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    memory_bytes: int | None = 0


@dataclass(frozen=True)
class Input:
    """What a node will read.

    Attributes:
        directory: of the committed artifact; None if it is not built yet.
        tell: gives the facts, which are asked for only where they matter.
    """

    directory: Path | None
    tell: Callable[[], Mapping[str, Any]] = dict

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """As its stage knows or foresees them."""
        return self.tell()


@dataclass(frozen=True)
class Request:
    """A node before it runs.

    Attributes:
        settings: of the node, see `Node`.
        earlier: manifests of what is committed of stages that forecast: what was measured before.
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    earlier: Callable[[], Sequence[Mapping[str, Any]]] = list

    @property
    def launch(self) -> Mapping[str, Any]:
        """How it will be launched."""
        return self.settings.get("launch") or {}

    @property
    def hints(self) -> Mapping[str, Any]:
        """Values of the config that only estimates use."""
        return self.settings.get("hints") or {}

    @property
    def derived(self) -> Mapping[str, bool]:
        """Of several models that it reads: role -> whether the lineage made that model from the first one."""
        return self.settings.get("derived") or {}

    @property
    def access(self) -> Mapping[str, Any]:
        """How servers that it asks are reached."""
        return self.settings.get("access") or {}

    def fact(self, key: str, role: str = "model") -> Any:
        """A fact about the input in this role; None where it is not known."""
        return self.inputs[role].facts.get(key) if role in self.inputs else None

    def path(self, source: Mapping[str, Any]) -> Path:
        """Where a local source of the params lies."""
        return Path(self.settings["locations"][source["content"]]["path"])

    def names(self, source: Mapping[str, Any]) -> list[str]:
        """The files that a local source means, below its path."""
        place = self.settings["locations"][source["content"]]
        return listing(Path(place["path"]), place["include"], place["exclude"])


def forecasts(
    nodes: Iterable[tuple[Node, Path | None]],
    module_of: Callable[[str], ModuleType],
    earlier: Callable[[], Sequence[Mapping[str, Any]]],
) -> dict[Node, Forecast]:
    """The forecast of every node that is not committed.

    Args:
        nodes: inputs before their users, each with its committed directory, if it has one. Committed ones are not
            asked: they were requested in their time, maybe of an older form of their stage.
        module_of: stage -> its module.
        earlier: see `Request`; called only where a stage asks.

    Raises:
        ConfigError: a request that its stage refuses; names the node.
    """
    known: dict[Node, Input] = {}
    found: dict[Node, Forecast] = {}
    for node, directory in nodes:
        module = module_of(node.stage)
        if directory is not None:
            known[node] = Input(directory, partial(getattr(module, "facts", lambda _: {}), directory))
            continue
        request = Request(node.params, {r: known[i] for r, i in node.inputs.items()}, node.settings, earlier)
        with naming(node):
            module.STAGE.check(node.params)
            found[node] = getattr(module, "forecast", lambda _: Forecast())(request)
        known[node] = Input(None, partial(dict, found[node].facts))
    return found


@contextlib.contextmanager
def naming(node: Node) -> Iterator[None]:
    """Let a wrong request in here say which node it is of."""
    try:
        yield
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{node.label}: {error}") from error
