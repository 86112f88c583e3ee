"""A sweep before Hydra starts it: which cells it has, where their states are kept, and how many run at once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from pipeline.command_line.arguments import PROGRAM, SWEEPING, TELLING, WITH_VALUE, written
from pipeline.command_line.cell_plans import CellPlans
from pipeline.command_line.selection import identity
from pipeline.command_line.short_forms import CONF, as_typed
from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep.capacity import Capacity, Need, capacity, this_machine
from pipeline.engine.sweep.record import Cell, Sweep, new_run, this_process

DIRECTORY = "sweep.directory"
"""The key by which a cell finds the sweep that it belongs to."""
HERE = ("basic", "joblib", "submitit_local")
"""Launchers that run cells on this machine."""
PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""The package that each launcher of the extra `sweeps` needs."""
AUTO = "auto"


@dataclass(frozen=True)
class Prepared:
    """A sweep that is asked for.

    Attributes:
        arguments: for Hydra.
        cells: those known beforehand: all, unless a sweeper finds them as it goes.
        sweep: None for a plan, of which nothing is recorded.
        capacity: how many cells run at once, and why; empty where that is not decided here.
        plans: of the cells, in their order; None where they are not known, or planned one by one.
    """

    arguments: list[str]
    cells: list[Cell]
    sweep: Sweep | None
    capacity: str
    plans: CellPlans | None = None


def prepare(
    arguments: Sequence[str], need_of: Callable[[DictConfig], Need], typed: Sequence[str] | None = None
) -> Prepared | None:
    """What the command line asks for if it is a sweep; None if it is one run.

    Args:
        arguments: in Hydra's order and in long form.
        need_of: what the cell of a composed config takes, `hydra` included; raises what it would be refused for.
        typed: the arguments as a person gave them, which is how they are printed; None: the same.

    Raises:
        ConfigError: a launcher that is not installed, or more cells at once than there can be.
        HydraException: the command line cannot be composed.
    """
    asked = _Asked(*_split(arguments))
    if TELLING & set(asked.flags) or not (
        asked.has_flag or any(word.startswith(("experiment=", "hydra.mode=")) for word in asked.words)
    ):
        return None
    _check_launcher(asked)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return asked.prepared(list(arguments), need_of, typed or arguments) if asked.is_sweep else None


def key_of(number: int, words: Sequence[str]) -> str:
    """Names the files of the cell of this number and these overrides."""
    text = "\n".join(word for word in words if not word.startswith(f"{DIRECTORY}="))
    return f"{number:04d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def unknown_cell(number: int, words: Sequence[str]) -> Cell:
    """A cell that was not known before its sweeper asked for it."""
    own = as_typed([word for word in words if not word.startswith(f"{DIRECTORY}=")])
    return Cell(key_of(number, words), " ".join(own), shlex.join([*PROGRAM.split(), *own]), identity(words)[0])


@dataclass(frozen=True)
class _Asked:
    """The command line in its parts: flags with their values, and overrides."""

    flags: list[str]
    words: list[str]

    @property
    def has_flag(self) -> bool:
        return bool(SWEEPING & set(self.flags))

    @property
    def is_sweep(self) -> bool:
        return self.has_flag or str(self.config.hydra.mode).endswith("MULTIRUN")

    @cached_property
    def parser(self) -> OverridesParser:
        return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())

    @cached_property
    def config(self) -> DictConfig:
        """Of the overrides that all cells share, with `hydra`."""
        return self.compose([word for word in self.words if not self.parser.parse_override(word).is_sweep_override()])

    @cached_property
    def of_hydra(self) -> list[str]:
        return [word for word in self.words if self.parser.parse_override(word).is_hydra_override()]

    @property
    def launcher(self) -> str:
        return str(self.config.hydra.runtime.choices["hydra/launcher"])

    @cached_property
    def cells(self) -> list[list[str]]:
        """The overrides of each cell, as the sweeper will have them; none where another than Hydra's own is chosen."""
        sweeper = self.config.hydra.sweeper
        if not sweeper._target_.endswith(".BasicSweeper"):
            return []
        own = [word for word in self.words if word not in self.of_hydra]
        params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        return BasicSweeper.split_arguments(self.parser.parse_overrides([*params, *own]), None)[0]

    def compose(self, words: Sequence[str]) -> DictConfig:
        values = dict(zip(self.flags, self.flags[1:], strict=False))
        folder = next((values[flag] for flag in ("--config-dir", "-cd") if flag in values), None)
        more = [f"hydra.searchpath=[{written('x', f'file://{Path(folder).absolute()}')[2:]}]"] if folder else []
        name = next((values[flag] for flag in ("--config-name", "-cn") if flag in values), "config")
        return compose(name, [*words, *more], return_hydra_config=True)

    def prepared(self, arguments: list[str], need_of: Callable[[DictConfig], Need], typed: Sequence[str]) -> Prepared:
        self.check_launcher()
        plans = self.planned(need_of)
        fitting = self.fitting(need_of, plans)
        reason = fitting.reason if fitting else ""
        if self.config.dry_run:  # a plan is printed here, one cell after another
            left = [word for word in arguments if not word.startswith(("hydra/launcher=", "hydra.launcher."))]
            return Prepared(left, [], None, reason)
        settings = self.settings(fitting)
        sweep = Sweep(
            directory=self.directory(),
            run=new_run(),
            driver=this_process(),
            command=shlex.join([*PROGRAM.split(), *typed]),
            at_once=fitting.at_once if fitting else None,
            capacity=reason,
            threads=fitting.threads if fitting and not os.environ.get("OMP_NUM_THREADS") else None,
            devices=fitting.shares() if fitting else [],
            is_parallel=self.launcher != "basic"
            and settings.get("n_jobs", self.config.hydra.launcher.get("n_jobs")) != 1,
        )
        more = [f"hydra.launcher.{key}={value}" for key, value in settings.items()]
        found = [*arguments, *more, written(DIRECTORY, str(sweep.directory))]
        return Prepared(found, list(self.named()), sweep, reason, plans)

    def check_launcher(self) -> None:
        """Refuse what the settings of the sweep cannot be with its launcher. Raises ConfigError."""
        limit_s = self.config.sweep.planning_s
        if type(limit_s) not in (int, float) or limit_s < 0:
            raise ConfigError(f"sweep.planning_s={limit_s!r} must be a number of seconds, 0 or more")
        asked = self.config.sweep.max_parallel
        if asked != AUTO and (type(asked) is not int or asked < 1):
            raise ConfigError(f"sweep.max_parallel={asked!r} must be auto or a whole number of at least 1")
        if self.launcher == "basic" and asked not in (AUTO, 1):
            raise ConfigError(
                f"sweep.max_parallel={asked} needs a launcher that runs cells side by side; add hydra/launcher=joblib"
            )
        if self.launcher not in HERE and asked != AUTO:
            raise ConfigError(
                f"sweep.max_parallel={asked} is for cells on this machine, not for hydra/launcher={self.launcher}; see "
                f"its settings: {', '.join(map(str, self.config.hydra.launcher))}"
            )

    def planned(self, need_of: Callable[[DictConfig], Need]) -> CellPlans | None:
        """Plans of the cells, as many as there are after `sweep.planning_s`; None where nothing asks for them."""
        if not self.cells or (self.config.dry_run and self.launcher not in HERE[1:]):
            return None
        search = [word for word in self.of_hydra if word.startswith("hydra.searchpath=")]
        plans = CellPlans([[*search, *cell] for cell in self.cells], self.compose, need_of)
        plans.wait(self.config.sweep.planning_s)
        return plans

    def fitting(self, need_of: Callable[[DictConfig], Need], plans: CellPlans | None) -> Capacity | None:
        """How many cells run at once, by the plans that there are; None where they run one after another, or on other
        machines.

        Raises:
            ConfigError: `sweep.max_parallel` asks for more than there is room for.
        """
        if self.launcher not in HERE[1:]:
            return None
        asked = self.config.sweep.max_parallel
        found = [plan.need for plan in plans.found.values() if plan.need] if plans else [need_of(self.config)]
        return capacity(None if asked == AUTO else asked, found, this_machine(), len(self.cells) or None)

    def settings(self, fitting: Capacity | None) -> dict[str, Any]:
        """Settings of the launcher that follow from the sweep's; those given on the command line stay."""
        found: dict[str, Any] = {}
        if self.launcher == "joblib" and fitting:
            found = {"n_jobs": min(fitting.at_once, len(self.cells) or fitting.at_once), "batch_size": 1}
        elif self.launcher == "submitit_local":
            found = {"timeout_min": self.config.sweep.time_limit_min}
        given = {word.partition("=")[0]: word.partition("=")[2] for word in self.of_hydra}
        return {key: value for key, value in found.items() if f"hydra.launcher.{key}" not in given}

    def directory(self) -> Path:
        """The same for the same cells, so that a sweep that is started again goes on where it was."""
        text = "\n".join(sorted(map(" ".join, self.cells))) or " ".join(self.words)
        name = f"{len(self.cells) or 'open'}-cells-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return Path(self.config.paths.outputs).absolute() / "runs" / self.config.name / "sweeps" / name

    def named(self) -> Iterator[Cell]:
        """The cells by what tells them apart, each with the command that runs it alone."""
        short = [as_typed(cell) for cell in self.cells]
        shared = set(short[0]).intersection(*short[1:]) if len(short) > 1 else set()
        flags = [flag for flag in self.flags if flag not in SWEEPING]
        search = [word for word in self.of_hydra if word.startswith("hydra.searchpath=")]
        for number, (cell, words) in enumerate(zip(self.cells, short, strict=True)):
            name = " ".join(word for word in words if word not in shared) or "default"
            command = shlex.join([*PROGRAM.split(), *flags, *search, *words])
            yield Cell(key_of(number, cell), name, command, identity(cell)[0])


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    for index, word in enumerate(arguments):
        if not (word.startswith("-") or (flags and flags[-1] in WITH_VALUE)):
            return flags, list(arguments[index:])
        flags.append(word)
    return flags, []


def _check_launcher(asked: _Asked) -> None:
    if "--config-path" in asked.flags or "-cp" in asked.flags:
        raise ConfigError("a sweep reads conf/; give further folders by hydra.searchpath=[file:///DIR] or --config-dir")
    for word in asked.words:
        key, _, launcher = word.partition("=")
        if key.endswith("hydra/launcher") and launcher in PLUGINS and not _is_installed(PLUGINS[launcher]):
            raise ConfigError(f"hydra/launcher={launcher} needs an extra: pip install -e '.[sweeps]'")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
