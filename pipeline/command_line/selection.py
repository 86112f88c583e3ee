"""What a person chose on the command line wins over what an experiment says of another choice.

An experiment's keys are merged last: those for the option that it has in mind would stay in the section of another.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.command_line.short_forms import ALTERNATIVES, CONF, INSTEAD, settings_of
from pipeline.engine.errors import ConfigError

EXPERIMENT, STRATEGY = "experiment", "strategy@pretrain.strategy"
NOT_IDENTITY = re.compile(
    r"\+{0,2}(name|stage|to|dry_run|verify_resume|verify|launch|paths|report|hydra|sweep|evaluate\.gate)([.@=/]|$)"
    r"|experiment=none$"
)
"""Keys that do not change what a variant is, so that they do not name it."""


def identity(words: Sequence[str]) -> tuple[str, list[str]]:
    """The name that its overrides give a variant, and those in long form that do."""
    overrides = [one for word in words for one in settings_of(word) if not NOT_IDENTITY.match(one)]
    return ",".join(sorted(overrides)) or "default", overrides


def settle(config: DictConfig, typed: Sequence[str], choices: Mapping[str, Any], more: Sequence[str]) -> None:
    """Take out of a composed config what an experiment says of an option that is not the one chosen.

    Args:
        typed: the overrides of the command line, but for Hydra's own, which are `more`.
        choices: the option of every group, as Hydra has them.

    Raises:
        ConfigError: a strategy is chosen for a stage that is left out.
    """
    overrides = {_key(one): one for one in _parsed(typed)}
    # Hydra names no choice for a group of several options, such as benchmark.
    groups = {key for key in overrides if key in choices or (CONF / key.partition("@")[0]).is_dir()}
    chosen = {key: overrides[key] for key in overrides if key in groups and key != EXPERIMENT}
    _check_used(config, chosen)
    if STRATEGY not in chosen:
        _tell_strategy(choices)
    _step_back(config, typed, choices, more)
    if choices.get(EXPERIMENT) in (None, "none") or not chosen:
        return
    try:
        alone = compose("config", [*more, *(str(one.input_line) for one in chosen.values())])
    except HydraException:  # one of them is chosen for what the experiment brings
        return
    values = set(overrides) - set(chosen)
    plain, bare = (OmegaConf.to_container(one, resolve=False) for one in (config, alone))
    with open_dict(config):
        for key, one in chosen.items():
            package = _package(key)
            kept = values | {_package(other) for other in choices if other != key}
            if left := list(_leftovers(_at(plain, package), _at(bare, package), package, kept)):
                _leave_out(config, left, settings_of(str(one.input_line))[0], str(choices[EXPERIMENT]))
        for one in chosen.values():  # the experiment may name another path, repository, ...
            for value in _parsed(settings_of(str(one.input_line))[1:]):
                if _key(value) not in values:
                    OmegaConf.update(config, _key(value), value.value())


def without_sweep_of_others(arguments: Sequence[str]) -> list[str]:
    """The arguments, and what keeps an experiment's own sweep to keys that the options chosen beside it have."""
    plain = [word for word in arguments if "=" in word and not word.startswith("-")]
    overrides = [one for one in _parsed(plain) if not one.is_sweep_override()]
    keys = {_key(one): one.value() for one in overrides}
    if keys.get(EXPERIMENT) in (None, "none") or len(keys) == 1:
        return list(arguments)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [str(one.input_line) for one in overrides], return_hydra_config=True)
    except HydraException:  # told when the run itself is composed
        return list(arguments)
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    needless = {other for key in keys for other in INSTEAD.get(key, ())}
    left = [key for key in params if key in needless or not ("@" in key or _has(config, key))]
    if not left:
        return list(arguments)
    warnings.warn(
        f"{EXPERIMENT}={keys[EXPERIMENT]} sweeps {', '.join(left)}, which this run does not take: left out",
        stacklevel=2,
    )
    return [
        *arguments,
        "hydra.sweeper.params=null",
        *(f"{k}={v}" for k, v in params.items() if k not in {*left, *keys}),
    ]


def without_effect(shared: Sequence[str]) -> Callable[[str], bool]:
    """Whether an override says what the config of the overrides `shared` says without it; of none, if there is none."""
    try:
        if GlobalHydra.instance().is_initialized():
            config = compose("config", list(shared), return_hydra_config=True)
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", list(shared), return_hydra_config=True)
    except HydraException:  # a folder of its own held what they choose
        return lambda word: False
    choices = config.hydra.runtime.choices

    def changes_nothing(word: str) -> bool:
        (one,) = _parsed([word])
        key = _key(one)
        found = choices[key] if key in choices else OmegaConf.select(config, key, throw_on_missing=False)
        return bool(found == one.value())

    return changes_nothing


def _parsed(typed: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(typed))


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _package(key: str) -> str:
    """Section of the config that a group fills."""
    return key.partition("@")[2] or key


def _check_used(config: DictConfig, chosen: Mapping[str, Override]) -> None:
    for key, one in chosen.items():
        section = _package(key).partition(".")[0]
        if key.startswith("strategy@") and OmegaConf.select(config, f"{section}.skip"):
            raise ConfigError(
                f"{section} is left out ({section}=none), so {one.input_line} has no use; leave one of them out"
            )


def _tell_strategy(choices: Mapping[str, Any]) -> None:
    """Warn where the option of one model's expansion has chosen the strategy of a whole run."""
    said = {_strategy_in("expand", choices.get("expand")), _strategy_in(EXPERIMENT, choices.get(EXPERIMENT))}
    for key, option in choices.items():
        found = _strategy_in("expand", option) if key.startswith("expand@lineage.") else None
        if found is not None and found == choices.get(STRATEGY) and found not in said:
            warnings.warn(
                f"{key.split('.')[1]} is made by expand={option}, so every model of the run that names no strategy is "
                f"post-pretrained with strategy={found}; say which is meant among the experiment's defaults: "
                f"'- override /{STRATEGY}: {found}', or new_blocks, full, ...",
                stacklevel=2,
            )


def _strategy_in(group: str, option: Any) -> str | None:
    """The strategy that an option chooses for post-pretraining."""
    file = CONF / group / f"{option}.yaml"
    defaults = (OmegaConf.select(OmegaConf.load(file), "defaults") or []) if file.is_file() else []
    entries = [entry for one in defaults if isinstance(one, DictConfig) for entry in one.items()]
    return next((str(value) for key, value in entries if str(key).startswith("override /strategy@")), None)


def _step_back(config: DictConfig, typed: Sequence[str], choices: Mapping[str, Any], more: Sequence[str]) -> None:
    """Of the budgets that exclude each other leave the one that the experiment gives, as the command line does."""
    several = [[key for key in keys if OmegaConf.select(config, key) is not None] for keys in ALTERNATIVES]
    several = [keys for keys in several if len(keys) > 1]
    if not several or choices.get(EXPERIMENT) in (None, "none"):
        return
    try:
        bare = compose("config", [*more, *(word for word in typed if not word.startswith(f"{EXPERIMENT}="))])
    except HydraException:  # it needs what the experiment brings
        return
    for keys in several:
        own = [key for key in keys if OmegaConf.select(bare, key) != OmegaConf.select(config, key)]
        for key in keys if own else ():
            if key not in own:
                OmegaConf.update(config, key, None)


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _has(config: DictConfig, path: str) -> bool:
    *above, key = path.split(".")
    parent = OmegaConf.select(config, ".".join(above)) if above else config
    return isinstance(parent, DictConfig) and key in parent


def _leftovers(found: Any, bare: Any, path: str, kept: Collection[str]) -> Iterator[str]:
    """Paths in a section that its option alone does not have; a mapping that is empty there takes any key."""
    if not (isinstance(found, Mapping) and isinstance(bare, Mapping) and bare):
        return
    for key, value in found.items():
        below = f"{path}.{key}"
        if any(f"{other}.".startswith(f"{below}.") for other in kept):
            continue
        if key in bare:
            yield from _leftovers(value, bare[key], below, kept)
        else:
            yield below


def _leave_out(config: DictConfig, paths: Sequence[str], choice: str, experiment: str) -> None:
    for path in paths:
        above, _, key = path.rpartition(".")
        del OmegaConf.select(config, above)[key]
    warnings.warn(
        f"experiment={experiment} sets {', '.join(paths)}, which {choice} does not have: left out", stacklevel=3
    )
