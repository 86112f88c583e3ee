"""What a composed config must have before anything is made of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from pipeline.command_line.answers import missing_key
from pipeline.command_line.short_forms import CONF
from pipeline.engine.errors import ConfigError


def check_whole(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that lacks one of its sections (`~expand`), or whose switches are neither true nor false.

    Raises:
        ConfigError: which one, and what to write.
    """
    for group in ("model", "expand", "pretrain", "sft", "items", "report", "launch", "evaluate", "paths"):
        if group not in config:
            skipped = f"; {group}=none leaves the stage out" if (CONF / group / "none.yaml").is_file() else ""
            raise ConfigError(f"the config has no {group}, because ~{group} removes it{skipped}")
    for switch in ("dry_run", "verify_resume"):
        if type(found := config.get(switch)) is not bool:
            raise ConfigError(f"{switch}={found!r} must be true or false")
    texts = {"name": config.get("name"), "stage": config.get("stage")}
    for key, found in (texts | {f"paths.{key}": path for key, path in config["paths"].items()}).items():
        if type(found) is not str or not found:
            raise ConfigError(f"{key}={found!r} must be text{_as_text(key, found)}")
    if ".." in Path(config["name"]).parts or Path(config["name"]).is_absolute():
        raise ConfigError(f"name={config['name']!r} names folders below paths.outputs; it must not leave them")


def _as_text(key: str, found: Any) -> str:
    """How a value that is no text is written as one."""
    if found in ("", None, [], {}):
        return f" that is not empty; leave {key} out for the default, or write {key}=TEXT"
    if isinstance(found, list):
        return f", one at a time: {key}={found[0]}, or -m {key}={','.join(map(str, found))} for one after another"
    return f"; what reads as a number needs quotes: '{key}=\"{found}\"'"


def leave_out_unplanned(config: DictConfig) -> None:
    """For a plan: leave out the benchmarks that wait for a value, such as the folder of their files, and say which."""
    waiting: dict[str, list[str]] = {}
    for name in (config.get("benchmark") or {}) if config.get("dry_run") is True else ():
        try:
            if (benchmark := config.benchmark[name]) is not None:
                OmegaConf.to_container(benchmark, resolve=True, throw_on_missing=True)
        except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
            waiting.setdefault(str(missing_key(error)), []).append(str(name))
    for key, names in waiting.items():
        for name in names:
            config.benchmark[name] = None
        warnings.warn(f"left out of this plan: {', '.join(names)}; a run needs {key}=VALUE", stacklevel=2)
