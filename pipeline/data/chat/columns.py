"""Conversations whose form is told by the columns of each row: ShareGPT, messages, Alpaca, prompt and completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.chat.conversations import ColumnLayout, dialogue, exchange, listed_messages
from pipeline.data.chat.messages import ROLES, KeyUsage, Message, MessageFormat, UnfitRowError, parsed, text_of
from pipeline.data.sources.rows import columns

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
_WANTED = ("label", "kto_tag")
"""Columns that say by false that an answer is one to avoid (TRL's and LLaMA-Factory's KTO)."""
_COMPARED = ("chosen", "rejected")
_NO_FORM = "columns of no known form"


@dataclass(frozen=True)
class ByColumns(ColumnLayout):
    """A layout for `Chats`: each row is read by the form that its columns show, so that files may be mixed.

    - a list of messages (`messages`, `conversations`, ...), each {"role", "content"} or ShareGPT's {"from", "value"},
      where a message from `function_call` is a call of the assistant's; as it is, or as JSON text;
    - Alpaca: `instruction`, `input` (or `context`) and `output`, with `history` where a row has it;
    - `prompt` and `completion` (or `response`, `answer`; `question`, `query`), as text or as lists of messages.

    See `ColumnLayout` for the other columns. roles maps role names to system, user, assistant and tool. A
    row of another form, with another role, or of answers that are only compared or marked as unwanted, is rejected.
    What follows the assistant's last message is left out and counted, as is every key that nothing reads, except those
    named in `irrelevant` (of a message as `messages[].key`).
    """

    roles: Mapping[str, str]
    irrelevant: Sequence[str] = ()

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.roles.values()) - set(ROLES)):
            raise ValueError(f"layout.roles maps to {', '.join(wrong)}; use {', '.join(ROLES)}")

    def _messages(self, fields: Mapping, usage: KeyUsage) -> list[Message]:
        _require_wanted(fields, usage)
        for name in _LISTS:
            if fields.get(name) is not None and (listed := listed_messages(fields[name], usage)) is not None:
                usage.used.add(name)
                return _answered(self._format().messages(listed, usage), fields)
        found = [(prompt, answer) for prompt, answer in _PAIRS if prompt in fields and answer in fields]
        if not found:
            raise _no_form(fields)
        # A table has the columns of all its forms, and nothing in those that are not a row's own.
        found.sort(key=lambda pair: any(fields[name] is None for name in pair))
        return self._pair(fields, *found[0], usage)

    def _format(self) -> MessageFormat:
        return MessageFormat(("role", "from"), ("content", "value"), {**{role: role for role in ROLES}, **self.roles})

    def _pair(self, fields: Mapping, prompt: str, answer: str, usage: KeyUsage) -> list[Message]:
        asked, answered = fields[prompt], fields[answer]
        if isinstance(asked, list | tuple) and isinstance(answered, list | tuple):
            usage.used |= {prompt, answer}
            listed = listed_messages([*asked, *answered], usage)
            if listed is None:
                raise _no_form(fields)
            return self._format().messages(listed, usage)
        about = [name for name in _ABOUT if name in fields]
        return _history(fields, usage) + exchange(fields, [prompt, *about], answer, usage)


def _require_wanted(fields: Mapping, usage: KeyUsage) -> None:
    """Raise UnfitRowError for an answer that the row marks as one to avoid."""
    for name in _WANTED:
        if fields.get(name) is False:
            raise UnfitRowError("an answer marked as unwanted", f"{name} is false")
        if fields.get(name) is True:
            usage.used.add(name)


def _answered(messages: list[Message], fields: Mapping) -> list[Message]:
    """The messages, unless their answer stands in columns that are compared."""
    if messages and messages[-1]["role"] != "assistant" and _compares(fields):
        raise _no_form(fields)
    return messages


def _compares(fields: Mapping) -> bool:
    return any(fields.get(name) is not None for name in _COMPARED)


def _no_form(fields: Mapping) -> UnfitRowError:
    if _compares(fields):
        return UnfitRowError("a preference pair, not a conversation", f"found {columns(fields)}")
    lists = [f"{name} is {type(fields[name]).__name__}" for name in _LISTS if fields.get(name) is not None]
    wrong = f"; {', '.join(lists)}, neither a list of messages nor the same as JSON" if lists else ""
    return UnfitRowError(_NO_FORM, f"found {columns(fields)}{wrong}; required are e.g. messages")


def _history(fields: Mapping, usage: KeyUsage) -> list[Message]:
    """Earlier exchanges of an Alpaca row, pairs of what was asked and answered, or the same as JSON text."""
    turns, messages = fields.get("history"), []
    reason = "history is not a list of pairs"
    usage.used.add("history")
    if isinstance(turns, str):
        turns = parsed(turns, reason, "history") if turns.strip() else None
    if not isinstance(turns, list | tuple | None):
        raise UnfitRowError(reason, type(turns).__name__)
    for turn in turns or ():
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise UnfitRowError(reason, repr(turn)[:200])
        messages += dialogue(*(text_of(text, "history", usage) for text in turn))
    return messages
