"""Where the parts of a conversation come to stand in its rendering, told by marks put into a copy of it.

A mark is a number between two noncharacters, which no text may hold and every template passes through. What is
rendered of a marked copy must be, without the marks, what is rendered of the conversation itself; else the marks
changed what the template did, and say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.data.chat.template_forms import REASONING, Message, Messages
from pipeline.data.sources.rows import strings

Kind = Literal["content", "reasoning", "call", "tool"]
RESERVED = re.compile("[\ufdd0\ufdd1]")
_MARK = re.compile(r"(?:\ufdd0|\\ufdd0)(\d+)(?:\ufdd1|\\ufdd1)")  # as it was put, or as ASCII JSON spells it


@dataclass(frozen=True)
class Part:
    """A piece of a conversation: its message's index (-1 for a tool's description), what it is, and its text."""

    message: int
    kind: Kind
    text: str


@dataclass
class Marked:
    """A copy of a conversation with a mark at both edges of every part, or, if `inside`, one in the middle of each.

    A template that looks at how a message begins or ends is not deceived by marks inside.
    """

    inside: bool
    parts: list[Part] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(messages: Messages, tools: Messages, inside: bool) -> Marked:
        """Mark every message and tool."""
        marked = Marked(inside)
        marked.messages = [marked._message(index, message) for index, message in enumerate(messages)]
        marked.tools = [marked._named(-1, "tool", tool) for tool in tools]
        return marked

    def _message(self, index: int, message: Message) -> dict[str, Any]:
        found = dict(message)
        for key in REASONING:
            if isinstance(found.get(key), str):
                found[key] = self._text(index, "reasoning", found[key])
        if isinstance(content := found.get("content"), str):
            found["content"] = self._content(index, content, message["role"] == "assistant")
        if found.get("tool_calls"):
            found["tool_calls"] = [self._call(index, call) for call in found["tool_calls"]]
        return found

    def _content(self, index: int, content: str, is_assistant: bool) -> str:
        """Content with its reasoning, where it holds some, as a part of its own: a template may drop just that."""
        thought, closing, answer = content.rpartition("</think>")
        if not (closing and is_assistant and answer.strip()):
            return self._text(index, "content", content)
        before, opening, thought = thought.rpartition("<think>")
        thought = self._text(index, "reasoning", thought)
        return f"{before}{opening}{thought}{closing}{self._text(index, 'content', answer)}"

    def _named(self, index: int, kind: Kind, tool: Message) -> dict[str, Any]:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return dict(tool)
        marked = {**function, "name": self._text(index, kind, function["name"])}
        return {**tool, "function": marked} if "function" in tool else marked

    def _call(self, index: int, call: Message) -> dict[str, Any]:
        named = self._named(index, "call", call)
        function = dict(named.get("function", named))
        if "arguments" in function:
            function["arguments"] = self._leaves(index, function["arguments"])
        return {**named, "function": function} if "function" in named else function

    def _leaves(self, index: int, value: Any) -> Any:
        """Arguments with every text in them marked; text as a whole may be JSON and stays as it is."""
        if isinstance(value, Mapping):
            return {
                key: self._text(index, "call", one) if isinstance(one, str) else self._leaves(index, one)
                for key, one in value.items()
            }
        return [self._leaves(index, one) for one in value] if isinstance(value, list) else value

    def _text(self, index: int, kind: Kind, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        number = 2 * len(self.parts)
        self.parts.append(Part(index, kind, core))
        lead, tail = text[: text.index(core[0])], text[len(text.rstrip()) :]
        if self.inside:
            half = len(core) // 2
            return f"{lead}{core[:half]}{_mark(number)}{core[half:]}{tail}"
        return f"{lead}{_mark(number)}{core}{_mark(number + 1)}{tail}"


@dataclass(frozen=True)
class Place:
    """Where a part stands in a rendering: characters [start, stop)."""

    part: int
    start: int
    stop: int


def places(rendered: str, marked: Marked) -> tuple[str, list[Place]] | None:
    """A rendering without its marks, and where its parts stand, in order; None if a mark does not stand as it was put.

    A part that a template repeats has several places.
    """
    text, found = _without(rendered)
    if marked.inside:
        inner = [_around(text, position, number // 2, marked.parts) for position, number in found]
        return None if None in inner else (text, _in_order(place for place in inner if place))
    edges = _pairs(found)
    return None if edges is None else (text, edges)


def _mark(number: int) -> str:
    return f"\ufdd0{number}\ufdd1"


def _without(rendered: str) -> tuple[str, list[tuple[int, int]]]:
    pieces = _MARK.split(rendered)
    found, position = [], 0
    for piece, number in zip(pieces[0::2], pieces[1::2], strict=False):
        position += len(piece)
        found.append((position, int(number)))
    return "".join(pieces[0::2]), found


def _around(text: str, position: int, number: int, parts: Sequence[Part]) -> Place | None:
    core = parts[number].text
    start = position - len(core) // 2
    fits = start >= 0 and text[start : start + len(core)] == core
    return Place(number, start, start + len(core)) if fits else None


def _pairs(found: Sequence[tuple[int, int]]) -> list[Place] | None:
    edges: list[Place] = []
    opened: dict[int, int] = {}
    for position, number in found:
        if number % 2 == 0:
            opened[number] = position
        elif number - 1 in opened:
            edges.append(Place(number // 2, opened.pop(number - 1), position))
        else:
            return None
    return None if opened else _in_order(edges)


def _in_order(found: Iterable[Place]) -> list[Place]:
    return sorted(found, key=lambda place: (place.start, place.stop))


def spoken(messages: Messages, tools: Messages) -> Iterator[str]:
    """Every text in a conversation and its tools, keys included; not the roles, which are no one's words."""
    return strings([*({**message, "role": None} for message in messages), *tools], keys=True)
