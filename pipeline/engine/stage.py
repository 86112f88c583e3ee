"""What a stage is: the declaration in its module, and the one function that finds it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import ModuleType
from typing import Any

from pipeline.engine.errors import ConfigError

STAGES = "stages"
ANY_ROLE = "*"
"""In `Stage.inputs`: any further roles, as a merge of several models has them."""
ROOT = "root"
"""In `Stage.inputs`, as a kind: the model without parents that the lineage of this one began with."""


@dataclass(frozen=True)
class Stage:
    """The `STAGE` of a stage module.

    The module also has `run(context) -> metrics`, and may have
        forecast(request) -> Forecast: what can be told before it runs, see `pipeline.engine.run.forecast`;
        facts(directory) -> Mapping: what is known of an artifact that it made, for the forecasts of what reads it;
        also_reads(section) -> {role: settings}: inputs of this section beside those of every run: prepared data or
            samples of these settings, or the root, whatever its settings;
        settle(section, fact) -> section: its settings that follow from facts about the first model that it reads;
            `fact(key)` is None where that is not known;
        params_of(section) -> params: its params out of its section of the config, where they differ;
        check_network(params): raise ValueError for what a worker will download and this machine cannot.

    Attributes:
        version: part of the identity; bumped when the stage's meaning changes.
        makes: kind of its artifact, such as model, data or scores.
        inputs: role -> kind of the artifact that it reads in that role; `ANY_ROLE` stands for any other roles. The
            lineage's `from` gives the models, the section's `data` the role of that name; others `also_reads` asks for.
        section: of the config with its settings; None: as the stage is called.
        params: frozen dataclass with a field for each param; None: the library types them where they are used.
        hints: keys of the section that only estimates use: given to `forecast`, no part of the identity.
        reads_sources: it reads what the user named, so it runs early: a bad source fails before any work.
        single_process: launched with one process, whatever `launch.num_processes` says.
        resumable: what an interrupted run left in its directory is kept for the next one.
        shared_role: nodes with the same input in this role run in one worker, one after another.
        proves_identity: its metrics have exact=true for a model that computes bit for bit what its parent does.
    """

    version: int
    makes: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    section: str | None = None
    params: type | None = None
    hints: tuple[str, ...] = ()
    reads_sources: bool = False
    single_process: bool = False
    resumable: bool = False
    shared_role: str | None = None
    proves_identity: bool = False

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise ValueError if `params` have a key that `self.params` has not, or lack one without a default."""
        if self.params is None:
            return
        known = {one.name: one for one in fields(self.params)}
        if unknown := sorted(set(params) - set(known)):
            raise ValueError(f"{', '.join(map(repr, unknown))} is not a setting here; there are {', '.join(known)}")
        given = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
        if missing := [name for name in given if name not in params]:
            raise ValueError(f"{', '.join(missing)} must be given")

    def kind_of(self, role: str) -> str | None:
        """Kind of the artifact that it reads in `role`; None if it reads none there."""
        return self.inputs.get(role, self.inputs.get(ANY_ROLE))


def find_stage(name: str, package: str = STAGES) -> ModuleType:
    """The module of a stage: `<package>.<name>`, or the module of that name if it has a dot.

    Raises:
        ConfigError: there is no such module, or it declares no stage.
    """
    path = name if "." in name else f"{package}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"there is no stage {name!r}{_nearest(name, package)}") from error
    if not isinstance(getattr(module, "STAGE", None), Stage) or not callable(getattr(module, "run", None)):
        raise ConfigError(f"there is no stage {name!r}: {path} has no STAGE (pipeline.engine.stage.Stage) and run")
    return module


def _nearest(name: str, package: str) -> str:
    """What to write in the place of the name of a stage that is not there."""
    if "." in name:
        return f": {name} cannot be imported"
    known = [one.name for one in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    close = difflib.get_close_matches(name, known, n=1)
    return f"{f'; did you mean {close[0]}?' if close else ''} (there are: {', '.join(known)})"
