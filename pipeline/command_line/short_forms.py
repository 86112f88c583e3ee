"""Short forms of the command line, each the same run as its long one.

They are rewritten before Hydra reads them. A value that no file of conf/ names, such as a path, becomes an option made
on the spot: it can stand in a sweep beside others, and a launcher takes it along into its processes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import OmegaConf

from pipeline.command_line.arguments import written
from pipeline.engine.errors import ConfigError
from pipeline.lineage.entries import BUDGETS

CONF = Path(__file__).parents[2] / "conf"
_MARK = "+"  # between an option and the value it is made with: a character that Hydra's sweeper leaves as it is
_HUB = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_PATH = re.compile(r"(\.{0,2}|~[^/]*)/|\.{1,2}$|~$")
_URL = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:datasets/)?([\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True)
class Form:
    """A group under a short key.

    Attributes:
        key: of the group, as Hydra has it; its options are chosen by the short key as well.
        means: what it chooses, for a person.
        local, hub: the option for a path, and for a repository of the hub, and where in it they are named; None: the
            group takes names of its options alone.
    """

    key: str
    means: str
    local: tuple[str, str] | None = None
    hub: tuple[str, str] | None = None

    @property
    def group(self) -> str:
        """Folder below conf/."""
        return self.key.partition("@")[0]

    @property
    def package(self) -> str:
        """Section of the config that its option fills."""
        return self.key.partition("@")[2] or self.key


_LOCAL, _OF_HUB = "sources.local.origin.source.path", "sources.hub.origin.source"
FORMS = {
    "model": Form("model", "the model that is grown", ("local", "source.path"), ("hub", "source")),
    "data": Form("data@pretrain.data", "text to post-pretrain on", ("local_text", _LOCAL), ("hub_text", _OF_HUB)),
    "chats": Form("data@sft.data", "conversations to tune on", ("local_chat", _LOCAL), ("hub_chat", _OF_HUB)),
    "strategy": Form("strategy@pretrain.strategy", "what post-pretraining trains; instruction tuning keeps its own"),
}
ALTERNATIVES = tuple(tuple(f"{section}.{key}" for key in BUDGETS) for section in ("pretrain", "sft"))
"""Of these keys one is set: the others step back, wherever they were set but on the command line."""
INSTEAD = {"expand.num_blocks": ("expand.num_groups", "expand.per_group")}
"""A key, and those that it makes superfluous."""


def literal_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments with quotes around paths of short forms, such as ~/a b, that Hydra's grammar would not take.

    A comma stays one between values of a sweep.
    """
    return [_literal(word) for word in arguments]


def _literal(word: str) -> str:
    key, equal, value = word.partition("=")
    takes_path = bool(equal) and any(form.local and key in (name, form.key) for name, form in FORMS.items())
    return (
        written(key, value) if takes_path and _PATH.match(value) and "," not in value and value.isprintable() else word
    )


def lengthened(arguments: Sequence[str]) -> list[str]:
    """The arguments of the command line, in Hydra's order, with long forms for short ones.

    Raises:
        ConfigError: a value that is meant for a short form and is none, or keys that exclude each other.
    """
    parser = OverridesParser.create()
    found: list[str] = []
    for word in arguments:
        found += (
            [word] if _is_flag(word) else _added(override := parser.parse_override(word)) or [_long(override, word)]
        )
    return [*found, *_stepping_back([parser.parse_override(word) for word in found if not _is_flag(word)])]


def settings_of(override: str) -> list[str]:
    """The overrides that say in long form what this one says by an option made on the spot; itself for any other."""
    key, _, option = override.partition("=")
    form = next((form for form in FORMS.values() if form.key == key), None)
    base, mark, value = option.partition(_MARK)
    if form is None or not mark:
        return [override]
    named = _named(form, base, unquote(value))
    return [f"{key}={base}", *(written(f"{form.package}.{path}", text) for path, text in named)]


def as_typed(overrides: Sequence[str]) -> list[str]:
    """The overrides of one run in short form, without those that `lengthened` adds: it makes them the same again."""
    parser = OverridesParser.create()
    budgets = {f"{key}=null" for keys in ALTERNATIVES for key in keys}
    added = set(_stepping_back([parser.parse_override(word) for word in overrides if word not in budgets]))
    return [shortened(word) for word in overrides if word not in added]


def shortened(override: str) -> str:
    """One override in short form, with the path or repository that its option was made with; others as they are."""
    key, _, option = override.partition("=")
    if key.startswith("+benchmark@") and _added(OverridesParser.create().parse_override(f"+benchmark={option}")) == [
        override
    ]:
        return f"+benchmark={option}"
    name = next((name for name, form in FORMS.items() if form.key == key), None)
    if name is None:
        return override
    _, mark, value = option.partition(_MARK)
    return written(name, unquote(value)) if mark else f"{name}={option}"


def help_lines() -> str:
    """The short keys, with what they take and choose, a line each."""
    taken = {name: "./path, ORG/NAME[@REVISION] or OPTION" if form.local else "OPTION" for name, form in FORMS.items()}
    return "\n".join(f"  {f'{name}={taken[name]}':<46} {form.means}" for name, form in FORMS.items())


def hint(group: str) -> str:
    """How else than by an option the value of a group can be given; empty where it cannot."""
    found = {name: form for name, form in FORMS.items() if form.group == group and form.local}
    return "".join(f"; {form.means}: {name}=./path or {name}=ORG/NAME" for name, form in found.items())


def _is_flag(word: str) -> bool:
    return word.startswith("-") or not ("=" in word or word.startswith("~"))


def _added(override: Override) -> list[str]:
    """A benchmark beside the chosen ones, by its own place: a chosen list would replace a plain `+benchmark=NAME`.

    Raises:
        ConfigError: its file asks for the group `items`, which Hydra does not know yet where groups are added.
    """
    if override.get_key_element() != "+benchmark" or override.is_sweep_override():
        return []
    value = override.value()
    texts = {str(name): _file_of("benchmark", str(name)) for name in (value if isinstance(value, list) else [value])}
    if not all(texts.values()):
        return []
    if asking := [name for name, text in texts.items() if _asks_for_items(text)]:
        raise ConfigError(f"{asking[0]} cannot be added with a +; name it in the list: benchmark=[domain,{asking[0]}]")
    headers = {name: re.match(r"# @package (\S+)", text) for name, text in texts.items()}
    return [f"+benchmark@{header[1] if header else 'benchmark'}={name}" for name, header in headers.items()]


def _asks_for_items(text: str) -> bool:
    nested = re.findall(r"^  - /benchmark/(\w+)$", text, re.M)
    return "${items}" in text or any(_asks_for_items(_file_of("benchmark", name)) for name in nested)


def _file_of(group: str, name: str) -> str:
    """The text of an option; empty if there is none of that name."""
    file = CONF / group / f"{name}.yaml"
    return file.read_text() if file.is_file() else ""


def _long(override: Override, typed: str) -> str:
    """One override in long form."""
    key = override.get_key_element()
    form = FORMS.get(key) or next((form for form in FORMS.values() if form.key == key), None)
    has_none = (CONF / key.partition("@")[0] / "none.yaml").is_file()
    value = override.value()
    if value is None and not has_none and (options := sorted(CONF.glob(f"{key.partition('@')[0]}/*.yaml"))):
        if key == "benchmark":  # the one group of which several are chosen, or none
            return f"{key}=[]"
        raise ConfigError(f"{typed} names no option of {key}; it has: {', '.join(file.stem for file in options)}")
    if form is None and not has_none:
        return typed
    if isinstance(value, ChoiceSweep) or not override.is_sweep_override():
        given = value.list if isinstance(value, ChoiceSweep) else [override._value]
        elements = [_element(form, key, one) for one in given]
        return f"{form.key if form else key}={','.join(elements)}"
    return f"{form.key if form else key}={typed.partition('=')[2]}"


def _element(form: Form | None, key: str, value: Any) -> str:
    """One value of an override as Hydra shall read it."""
    if value is None:  # in a sweep Hydra takes no null for a group
        return "none" if (CONF / key.partition("@")[0] / "none.yaml").is_file() else "null"
    text = str(Override._convert_value(value))
    if form is None or form.local is None or form.hub is None or not isinstance(Override._convert_value(value), str):
        return Override._get_value_element_as_str(value)
    if _is_option(form.group, text):
        return text
    if _PATH.match(text):
        return _made(form, form.local[0], text)
    if _HUB.fullmatch(text):
        if Path(text).exists():
            warnings.warn(
                f"{key}={text} is the Hub's {text}; for the one that lies here write {key}=./{text}", stacklevel=2
            )
        return _made(form, form.hub[0], text)
    _refuse_likely(key, text)
    return Override._get_value_element_as_str(value)


def _refuse_likely(key: str, text: str) -> None:
    """Say what to type where it can be told what was meant. Another name is left to Hydra, which knows the options."""
    if url := _URL.match(text):
        raise ConfigError(f"{key}={text} is an address; write {key}={url[1]}")
    if Path(text).expanduser().exists():
        raise ConfigError(f"{key}={text} names no option; for the path write {key}=./{text}")
    if "/" in text or "@" in text:
        raise ConfigError(
            f"{key}={text} is neither a path, which begins with ./, ../, ~/ or /, nor a name of the Hub, which is "
            "ORG/NAME or ORG/NAME@REVISION"
        )


def _is_option(group: str, name: str) -> bool:
    return (CONF / group / f"{name}.yaml").is_file()


def _made(form: Form, base: str, value: str) -> str:
    """Make the option that is `base` with this value, and return its name, which holds the value."""
    name = f"{base}{_MARK}{quote(value, safe='').replace('~', '%7E')}"
    changes = OmegaConf.create()
    for path, text in _named(form, base, value):
        OmegaConf.update(changes, path, text)
    ConfigStore.instance().store(group=form.group, name=name, node={"defaults": [base, "_self_"], **changes})
    return name


def _named(form: Form, base: str, value: str) -> Iterator[tuple[str, str]]:
    """Where in the option the value goes, and what of it."""
    assert form.local is not None and form.hub is not None
    if base == form.local[0]:
        yield form.local[1], value
        return
    parts = _HUB.fullmatch(value)
    assert parts is not None
    yield f"{form.hub[1]}.repo", parts["repo"]
    if parts["revision"]:
        yield f"{form.hub[1]}.revision", parts["revision"]


def _stepping_back(overrides: Iterable[Override]) -> Iterator[str]:
    given = {one.get_key_element().lstrip("+"): one for one in overrides if not one.is_delete()}
    set_ = {key for key, one in given.items() if one.is_sweep_override() or one.value() is not None}
    for keys in ALTERNATIVES:
        if set_ & set(keys):
            yield from (f"{key}=null" for key in keys if key not in given)
    for key, others in INSTEAD.items():
        if key in set_ and (both := [other for other in others if other in set_]):
            raise ConfigError(f"{key} counts all new blocks, so {both[0]} cannot be given beside it; leave one out")
