"""Conversations whose form is told by the columns of each row: ShareGPT, messages, Alpaca, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.conversations import ROLES, Chat, checked
from pipeline.data.formats import Rejected, Row

_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue")
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)
"""Columns of what is asked and of the answer, in the order in which they are looked for."""
_ABOUT = ("input", "context")
"""Columns of what it is asked about, put after the question."""
_CALLS = ("function_call", "tool_call")


@dataclass(frozen=True)
class ByColumns:
    """A layout for `Chats`: each row is read by the form that its columns show, so that files may be mixed.

    - a list of messages (`messages`, `conversations`, ...), each {"role", "content"} or ShareGPT's {"from", "value"},
      where a message from `function_call` is a call of the assistant's;
    - Alpaca: `instruction`, `input` (or `context`) and `output`, with `system` and `history` where a row has them;
    - `prompt` and `completion` (or `response`, `answer`; `question`, `query`), as text or as lists of messages.

    A `tools` column and a `system` column are kept. roles maps role names to system, user, assistant and tool. A row of
    another form, or with another role, is rejected. What follows the assistant's last message is left out.
    """

    roles: Mapping[str, str]

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.roles.values()) - set(ROLES)):
            raise ValueError(f"layout.roles maps to {', '.join(wrong)}; use {', '.join(ROLES)}")

    def chat(self, row: Row) -> Chat | Rejected:
        """See `Layout`; raises nothing."""
        spelled = self._messages(row.fields)
        if spelled is None:
            found = ", ".join(sorted(map(str, row.fields)))
            return Rejected(row.id, "columns of no known form", f"found {found}; required are e.g. messages")
        messages = _system(row.fields) + spelled
        for message in messages:
            if message["role"] not in ROLES:
                return Rejected(row.id, f"unknown role {message['role']!r}")
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        return checked(row.id, messages, row.fields.get("tools"))

    def _messages(self, fields: Mapping) -> list[dict[str, Any]] | None:
        for name in _LISTS:
            if isinstance(fields.get(name), list | tuple):
                return self._listed(fields[name])
        found = [(prompt, answer) for prompt, answer in _PAIRS if prompt in fields and answer in fields]
        # A table has the columns of all its forms, and nothing in those that are not a row's own.
        found.sort(key=lambda pair: any(fields[name] is None for name in pair))
        return self._pair(fields, *found[0]) if found else None

    def _listed(self, entries: Any) -> list[dict[str, Any]] | None:
        if not all(isinstance(entry, Mapping) for entry in entries):
            return None
        return [self._message(entry) for entry in entries]

    def _message(self, entry: Mapping) -> dict[str, Any]:
        said = str(entry.get("role", entry.get("from")))
        content = entry.get("content", entry.get("value"))
        if said in _CALLS:
            return {"role": "assistant", "content": "", "tool_calls": content}
        calls = {"tool_calls": entry["tool_calls"]} if entry.get("tool_calls") else {}
        return {"role": self.roles.get(said, said), "content": content or "", **calls}

    def _pair(self, fields: Mapping, prompt: str, answer: str) -> list[dict[str, Any]] | None:
        asked, answered = fields[prompt], fields[answer]
        if isinstance(asked, list | tuple) and isinstance(answered, list | tuple):
            return self._listed([*asked, *answered])
        if not isinstance(asked, str | None) or not isinstance(answered, str | None):
            return None
        parts = [part.strip() for part in (asked, *map(fields.get, _ABOUT)) if isinstance(part, str)]
        messages = _history(fields.get("history"))
        if messages is None:
            return None
        messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part)})
        return [*messages, {"role": "assistant", "content": answered or ""}]


def _system(fields: Mapping) -> list[dict[str, Any]]:
    """The message of a `system` column, unless the row's own messages begin with one."""
    lists = (fields[name] for name in _LISTS if isinstance(fields.get(name), list | tuple))
    first: Any = next((entries[0] for entries in lists if entries), {})
    own = isinstance(first, Mapping) and first.get("role", first.get("from")) == "system"
    text = fields.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() and not own else []


def _history(turns: Any) -> list[dict[str, Any]] | None:
    """Earlier exchanges of an Alpaca row, pairs of what was asked and answered; None if they have another form."""
    messages: list[dict[str, Any]] = []
    if turns and not isinstance(turns, list | tuple):
        return None
    for turn in turns or ():
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            return None
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)]
    return messages
