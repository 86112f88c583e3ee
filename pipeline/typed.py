"""Whether the values of a config section are of the types that its class declares, asked before the class is built."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_SECTION = typing.TypeVar("_SECTION", bound=Mapping[str, Any])
_TARGET = "_target_"
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def checked(section: _SECTION) -> _SECTION:
    """Return a section that names its class by `_target_`, and sections within it, after a look at their values.

    Raises:
        ValueError: a value is not of its field's type; names the key, the value and what is required.
    """
    if not isinstance(section, Mapping):
        raise ValueError(
            f"found {section!r} where a section that names its class by {_TARGET} is required; an option of a group is "
            f"chosen with an @, such as strategy@pretrain.strategy={section}"
        )
    _check_within(section, "")
    return section


def check_fields(cls: Any, values: Mapping[str, Any], where: str = "") -> None:
    """Compare values with the annotated fields of a dataclass; what has no simple type is left to the class.

    `where` is what stands before a field's name in an error. Raises ValueError as `checked`.
    """
    hints = _hints(cls)
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if field.name in values and not _fits(values[field.name], hints[field.name]):
            wanted = _in_words(hints[field.name])
            raise ValueError(f"{where}{field.name}={values[field.name]!r} must be {wanted}")


def _check_within(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        if isinstance(value.get(_TARGET), str):
            cls = _class_of(value[_TARGET])
            _check_names(cls, value, where)
            check_fields(cls, value, where)
        for key, inner in value.items():
            _check_within(inner, f"{where}{key}.")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            _check_within(inner, f"{where}{index}.")


def _class_of(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{_TARGET}={target} names no class that can be imported ({error})") from error


def _check_names(cls: Any, values: Mapping[str, Any], where: str) -> None:
    if not dataclasses.is_dataclass(cls):
        return
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in values:
        if key not in known and not str(key).startswith("_"):  # _target_ and its like are Hydra's
            close = difflib.get_close_matches(str(key), known, n=1)
            guess = f"; did you mean {where}{close[0]}?" if close else f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{where}{key} is not a setting of {getattr(cls, '__name__', cls)}{guess}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of a config can stand for the type; True where only the class itself can tell."""
    if isinstance(value, Mapping) and _TARGET in value:  # becomes an object; its own fields are looked at
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, inner[-1]) for one in value.values())
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return _fit_in_turn(value, origin, inner)
    return True


def _fit_in_turn(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if origin is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(one, inner[0]) for one in value)


def _in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(one) for one in inner)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping, each value {_in_words(inner[-1])}" if inner and inner[-1] in _WORDS else "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {_in_words(inner[0])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
