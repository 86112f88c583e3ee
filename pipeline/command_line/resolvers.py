"""What a config may ask for by `${NAME:}`, beside OmegaConf's own."""

from __future__ import annotations

import sysconfig
from typing import Any

from omegaconf import DictConfig, OmegaConf


def register() -> None:
    """Make them known to OmegaConf.

    `stdlib`: where the interpreter keeps its own library, text that every machine has. `expansion`: the expansion that
    the section `expand` describes, for what follows it without expanding; null for none.
    """
    OmegaConf.register_new_resolver("stdlib", lambda: sysconfig.get_paths()["stdlib"], replace=True)
    OmegaConf.register_new_resolver("expansion", lambda *, _root_: expansion(_root_), replace=True)


def expansion(config: DictConfig) -> dict[str, Any] | None:
    """The method of the section `expand` with its settings, as its stage would settle them; None where it adds none.

    Raises:
        ValueError: settings that the stage refuses.
    """
    from pipeline.engine.stage import find_stage

    section: Any = OmegaConf.to_container(config.get("expand") or OmegaConf.create(), resolve=True)
    if section.pop("skip", True):
        return None
    section.pop("save", None)
    settle = getattr(find_stage("expand"), "settle", lambda section, fact: section)
    return dict(settle(section, (config.get("model") or {}).get))
