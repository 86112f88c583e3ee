"""Messages out of the forms that data sets use: roles, text, reasoning, tool calls, and whether a turn is learned.

Every key of a message, of a part of its content and of a call is read, or noted in the row's `KeyUsage`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipeline.data.sources.json_rows import parse_json
from pipeline.data.sources.rows import unread

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]
NOT_TEXT = "a value that is not text"
BAD_CALLS = "tool calls of unknown form"
BAD_TOOLS = "tools of unknown form"
_CALLING = ("function_call", "tool_call")
"""Roles of messages whose content is a call of the assistant's."""
_LEARNED = ("weight", "train", "training", "loss", "loss_weight", "loss_scale")
"""Keys that say by 1 or true that a turn is learned: OpenAI, axolotl, XTuner, ms-swift, LLaMA-Factory."""
_MASKED = ("masked",)
"""The same by 0 or false: torchtune."""
_SPANS = ("train_detail", "training_detail")
"""axolotl's lists of the characters of a turn that are learned."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


class UnfitRowError(ValueError):
    """A row is not a conversation, or one that cannot be learned as it says. `reason` is one of a few, for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class KeyUsage:
    """What of one row is used (`used`: columns, or dotted paths) and what is not (`unused`: paths of keys).

    irrelevant: paths that are not noted. count_nulls: whether nulls inside tools and calls are noted; in a table they
    stand for keys that a row lacks. literal: whether they stay, as they do in JSON text, which no table has filled up.
    """

    irrelevant: Collection[str] = ()
    count_nulls: bool = True
    literal: bool = False
    used: set[str] = field(default_factory=set)
    unused: list[str] = field(default_factory=list)

    def rest(self, where: str, fields: Mapping, used: Collection[str]) -> None:
        """Note the keys of an object that are not used and hold something other than null.

        Raises UnfitRowError for images, sound and video: without them the text may speak of what is not there.
        """
        for path, value in unread(fields, used, where):
            if value and path.rpartition(".")[2] in _MEDIA and path not in self.irrelevant:
                raise UnfitRowError("images, sound or video beside the text", path)
            self.note(path)

    def note(self, path: str, times: int = 1) -> None:
        """Note that nothing reads what stands under a path, unless it is declared irrelevant."""
        if path not in self.irrelevant:
            self.unused += [path] * times

    def without_nulls(self, value: Any, where: str) -> Any:
        """An object without its keys of value null, at any depth; elements of lists stay."""
        if self.literal:
            return value
        if self.count_nulls:
            self.note(f"null inside {where}", _num_nulls(value))
        return _pruned(value)


def _num_nulls(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(1 if inner is None else _num_nulls(inner) for inner in value.values())
    return sum(map(_num_nulls, value)) if isinstance(value, list | tuple) else 0


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class MessageFormat:
    """The keys that may hold the role and the content of a listed message, and the meaning of role names."""

    role_keys: Sequence[str]
    content_keys: Sequence[str]
    roles: Mapping[str, str]

    def messages(self, entries: Iterable[Mapping], usage: KeyUsage) -> list[Message]:
        """Messages of {"role", "content"} and, where they are said, `reasoning_content`, `name`, `tool_calls`,
        `tool_call_id`, and `learned: False` of an assistant's turn that is context only.

        Raises UnfitRowError.
        """
        return [self._message(entry, usage) for entry in entries]

    def _message(self, entry: Mapping, usage: KeyUsage) -> Message:
        role_key, content_key = _said(entry, self.role_keys), _said(entry, self.content_keys)
        said, content = str(entry.get(role_key)), entry.get(content_key)
        calling = said in _CALLING and said not in self.roles
        role = "assistant" if calling else self.roles.get(said)
        if role not in ROLES:
            raise UnfitRowError("unknown role", repr(said))
        used = {role_key, content_key}
        message = {"role": role, "content": "" if calling else text_of(content, content_key, usage)}
        if role == "assistant":
            message |= _reasoning(entry, used) | _calls(entry, content if calling else None, used, usage)
        message |= _names(entry, role, used) | _learned(entry, role, used)
        usage.rest("messages[].", entry, used)
        return message


def _said(entry: Mapping, keys: Sequence[str]) -> str:
    """The first of the keys that has a value: a table of two forms has the keys of both."""
    return next((key for key in keys if entry.get(key) is not None), keys[0])


def text_of(value: Any, name: str, usage: KeyUsage) -> str:
    """Text as it stands, the parts of a content joined, a number, true or false as JSON spells it, '' for null.

    Raises UnfitRowError for images, objects, other lists, and numbers that are not finite.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(part, Mapping) for part in value):
        found = str(value) if isinstance(value, float | Decimal) else f"of type {type(value).__name__}"
        raise UnfitRowError(NOT_TEXT, f"{name} is {found}")
    return "".join(_part(part, name, usage) for part in value)


def _part(part: Mapping, name: str, usage: KeyUsage) -> str:
    kind = part.get("type")
    if kind not in (None, "text") or not isinstance(part.get("text"), str):
        raise UnfitRowError(NOT_TEXT, f"{name} has a part of type {kind!r}")
    usage.rest("messages[].content[].", part, ("type", "text"))
    return str(part["text"])


def _reasoning(entry: Mapping, used: set[str]) -> Message:
    found = set()
    for key in _REASONING:
        if (value := entry.get(key)) is not None:
            if not isinstance(value, str):
                raise UnfitRowError(NOT_TEXT, f"{key} is of type {type(value).__name__}")
            used.add(key)
            found |= {value} if value.strip() else set()
    if len(found) > 1:
        raise UnfitRowError("a message with two different reasonings", ", ".join(sorted(used & set(_REASONING))))
    return {"reasoning_content": found.pop()} if found else {}


def _names(entry: Mapping, role: str, used: set[str]) -> Message:
    found: Message = {}
    for key in ("name", "tool_call_id") if role == "tool" else ("name",):
        if (value := entry.get(key)) is not None:
            if not isinstance(value, str | int):
                raise UnfitRowError(NOT_TEXT, f"{key} is of type {type(value).__name__}")
            used.add(key)
            found |= {key: str(value)} if value != "" else {}
    return found


def _learned(entry: Mapping, role: str, used: set[str]) -> Message:
    """{"learned": False} of an assistant's turn that is marked so. Only the assistant's turns are ever learned, so a
    mark on another one is used if it says no, and left in the usage if it says yes."""
    if role != "assistant":
        used |= {key for keys, no in ((_LEARNED, 0), (_MASKED, 1)) for key in keys if entry.get(key) == no}
        return {}
    marks = {key: _flag(key, entry[key]) for key in _LEARNED if entry.get(key) is not None}
    marks |= {key: not _flag(key, entry[key]) for key in _MASKED if entry.get(key) is not None}
    if spans := [key for key in _SPANS if entry.get(key)]:
        raise UnfitRowError("only part of a message is to be trained on", spans[0])
    if len(set(marks.values())) > 1:
        raise UnfitRowError("contradicting training flags", ", ".join(sorted(marks)))
    used |= {*marks, *_SPANS}
    return {} if all(marks.values()) else {"learned": False}


def _flag(key: str, value: Any) -> bool:
    known = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool | int | float) and value in (0, 1):
        known = bool(value)
    if known is None:
        raise UnfitRowError("a training flag that is neither 0 nor 1", f"{key} is {value!r}"[:200])
    return known


def _calls(entry: Mapping, content: Any, used: set[str], usage: KeyUsage) -> Message:
    """The calls of a turn, of whichever kind it has; "function_call" is OpenAI's older name of a single one."""
    said = {key: entry[key] for key in ("tool_calls", "function_call") if entry.get(key) is not None}
    for key, value in {**({} if content is None else {"": content}), **said}.items():
        used |= {key} - {""}
        if calls := [_call(call, usage) for call in objects(value, BAD_CALLS, "tool_calls", usage)]:
            return {"tool_calls": calls}
    return {}


def _call(call: Mapping, usage: KeyUsage) -> Message:
    """A tool call as chat templates read it: {"type", "function": {"name", "arguments"}}, the arguments an object."""
    where, nested = "messages[].tool_calls[].", call.get("function") is not None
    function = call["function"] if nested else call
    outer = {"id", "type", "function"}
    own = {"name", "arguments"} | (set() if nested else outer)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnfitRowError(BAD_CALLS, "a call without the name of a function")
    if call.get("type") not in (None, "function"):
        raise UnfitRowError(BAD_CALLS, f"a call of type {call['type']!r}"[:200])
    if nested:
        usage.rest(where, call, outer)
    usage.rest(f"{where}function." if nested else where, function, own)
    if function.get("arguments") is None and (others := [key for key in function if key not in own and function[key]]):
        raise UnfitRowError(BAD_CALLS, f"no arguments, but {', '.join(map(str, others))}"[:200])
    arguments = _arguments(function.get("arguments"))
    named = {"id": str(call["id"])} if call.get("id") not in (None, "") else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        value = parsed(value, BAD_CALLS, "arguments") if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnfitRowError(BAD_CALLS, f"arguments that are {type(value).__name__}, not an object")
    return value


def objects(value: Any, reason: str, name: str, usage: KeyUsage) -> list[Any]:
    """A list of objects, or one, given as it is or as JSON text; empty for nothing.

    Nulls inside what is not JSON text are taken out, see `KeyUsage`. Raises UnfitRowError with that reason.
    """
    if text := isinstance(value, str):
        value = parsed(value, reason, name) if value.strip() else None
    listed = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    return [_object(entry, reason, name, usage, text) for entry in listed]


def _object(entry: Any, reason: str, name: str, usage: KeyUsage, text: bool) -> Any:
    if isinstance(entry, str):
        entry, text = parsed(entry, reason, name), True
    if not isinstance(entry, Mapping):
        raise UnfitRowError(reason, f"{name} of type {type(entry).__name__}")
    return dict(entry) if text else usage.without_nulls(dict(entry), name)


def parsed(text: str, reason: str, name: str) -> Any:
    """The value of a JSON text that stands in column or key `name`. Raises UnfitRowError with that reason."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UnfitRowError(reason, f"{name}: {error}"[:500]) from error
