"""What is answered to a command line that cannot be run: what was found, and what to type instead."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from pipeline.command_line.short_forms import CONF, FORMS, hint
from pipeline.engine.errors import ConfigError, PipelineError


def show(error: Exception) -> str:
    """An error for the person who asked: its kind, and what to change. Returns what it showed on stderr."""
    text = told(error)
    print(text, file=sys.stderr, flush=True)
    return text


def told(error: Exception) -> str:
    """The text that `show` shows."""
    if isinstance(error, PipelineError):
        return f"{type(error).__name__}: {error}"
    text = str(error).strip()
    if match := re.search(r"Could not override '([\w.]+)'", text):
        key, near = _within(match[1], error) or (match[1], _nearest(match[1]))
        text = f"{key} is not a key of the config{near}; `python -m pipeline --cfg job` prints all"
    elif match := re.match(r"(?:In '([^']+)': )?Could not (?:find|load) '([\w/]+)/(\w[\w.-]*)'", text):
        text = _nearest_option(text, getattr(error, "options", None), *match.groups())
    elif key := missing_key(error):
        text = f"{key} must be given: {key}=VALUE"
    return f"{ConfigError.__name__}: {text}"


def _within(path: str, error: Exception) -> tuple[str, str] | None:
    """A key that is not there within the mapping that a key was given, and what is near; None where it is that key."""
    cause = error.__cause__
    key, there = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if not key or not key.startswith(f"{path}.") or not isinstance(there, DictConfig):
        return None
    where, _, leaf = key.rpartition(".")
    close = difflib.get_close_matches(leaf, list(map(str, there)), n=1)
    guess = f"; did you mean {where}.{close[0]}?" if close else ""
    return key, f"{guess} ({where} has: {', '.join(map(str, there))})"


def missing_key(error: Exception) -> str | None:
    """The key without a value that an error is about, where others refer to it as well; None for any other error."""
    found = re.search(r"Missing mandatory value: (\S+)", str(error))
    referred = isinstance(error, InterpolationToMissingValueError)
    return found and (found[1] if referred else getattr(error, "full_key", None) or found[1])


def _nearest(path: str) -> str:
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = compose("config")
    GlobalHydra.instance().hydra = around
    whole = node
    *parents, leaf = path.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, DictConfig) else None
    keys = [str(key) for key in node] if isinstance(node, DictConfig) else []
    if leaf in keys:
        return " with the groups that were chosen; it is one of the default's"
    close = difflib.get_close_matches(leaf, keys if parents else [*FORMS, *keys], n=1)
    where = ".".join(parents) or "config"
    guesses = [".".join([*parents, close[0]])] if close else _elsewhere(leaf, whole)
    guess = f"; did you mean {' or '.join(guesses)}?" if guesses else ""
    return f"{guess} ({where} has: {', '.join(keys)})" if keys else guess


def _elsewhere(leaf: str, config: DictConfig) -> list[str]:
    """Keys of that name in the sections of a config."""
    sections: Any = OmegaConf.to_container(config, resolve=False)
    return [f"{name}.{leaf}" for name, section in sections.items() if isinstance(section, dict) and leaf in section]


def _nearest_option(text: str, options: Sequence[str] | None, file: str | None, group: str, option: str) -> str:
    """Hydra's words for a choice that is not there, without its search path and with what is near."""
    known = groups_of_options()
    if group not in known:  # a folder that is not there
        top, _, below = group.partition("/")
        group, option = top, f"{below}/{option}"
    nested = {
        f"{folder}/{name}".removeprefix(f"{group}/"): name
        for folder, names in known.items() if f"{folder}/".startswith(f"{group}/") for name in names
    }  # fmt: skip
    listed = known.get(group) or options
    if not listed:
        return text.partition("Config search path")[0].strip()
    leaf = option.rpartition("/")[2]
    close = difflib.get_close_matches(option, [*listed, *nested], n=1)
    close = close or [one for one, name in nested.items() if difflib.get_close_matches(leaf, [name])][:1]
    where = "" if file in (None, "config") else f"{file}: "
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"{where}{group} has no {option!r}{guess} (it has: {', '.join(listed)}){hint(group)}"


def groups_of_options() -> dict[str, list[str]]:
    """What can be chosen. Hydra's own listing composes every file first, which takes seconds."""
    groups: dict[str, list[str]] = {}
    for file in sorted(CONF.glob("*/**/*.yaml")):
        groups.setdefault(file.parent.relative_to(CONF).as_posix(), []).append(file.stem)
    return groups
