"""What a composed config must have before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
            raise ConfigError(f"{key}={found!r} must be text; what reads as a number needs quotes: '{key}=\"{found}\"'")
    if ".." in Path(config["name"]).parts or Path(config["name"]).is_absolute():
        raise ConfigError(f"name={config['name']!r} names folders below paths.outputs; it must not leave them")
