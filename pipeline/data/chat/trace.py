"""A row of TRACE (arXiv 2310.06762): what a model is asked, and the answer that it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.chat.conversations import ColumnLayout, dialogue
from pipeline.data.chat.messages import KeyUsage, Message, text_of
from pipeline.data.sources.rows import field_value

PROMPT, ANSWER = "prompt", "answer"
_BEGINNING = "<s>"
"""Begins Py150's prompts: Llama's BOS written out, which the chat template puts before every prompt."""


def asked(prompt: str) -> str:
    """A prompt as it is trained on: without the spelling of a token that begins a text, and white space around it."""
    return prompt.removeprefix(_BEGINNING).strip()


@dataclass(frozen=True)
class TraceRow(ColumnLayout):
    """The columns `prompt` and `answer`; irrelevant: see `ColumnLayout`."""

    irrelevant: Sequence[str] = ()

    def _messages(self, fields: Mapping, usage: KeyUsage) -> list[Message]:
        usage.used |= {PROMPT, ANSWER}
        prompt, answer = (text_of(field_value(fields, name), name, usage) for name in (PROMPT, ANSWER))
        return dialogue(asked(prompt), answer)
