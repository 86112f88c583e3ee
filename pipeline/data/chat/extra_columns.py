"""What a row says beside its messages: a system message, tools, and options for the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.chat.messages import BAD_TOOLS, KeyUsage, Message, UnfitRowError, objects, text_of

_SYSTEM = ("system", "system_prompt", "system_message")
"""Columns of a system message, in the order in which they are looked for."""
_OPTIONS = "chat_template_kwargs"
_OWN_OPTIONS = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding",
    "continue_final_message", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask",
}  # fmt: skip
"""What a row may not set: these say how it is rendered, not what."""


def system_of(fields: Mapping, messages: Sequence[Message], usage: KeyUsage) -> list[Message]:
    """The message of a column for it, unless the row's own messages begin with one. Raises UnfitRowError."""
    name = next((name for name in _SYSTEM if fields.get(name) is not None), None)
    if name is None:
        return []
    text, own = text_of(fields[name], name, usage), messages[0] if messages else {}
    if own.get("role") != "system":
        usage.used.add(name)
        return [{"role": "system", "content": text}] if text.strip() else []
    if own["content"].strip() == text.strip():
        usage.used.add(name)
    return []


def tools_of(fields: Mapping, usage: KeyUsage) -> list[Message]:
    """Descriptions of functions, as objects or as JSON text. Raises UnfitRowError."""
    for name in ("tools", "functions"):
        if fields.get(name) is not None:
            usage.used.add(name)
            if found := objects(fields[name], BAD_TOOLS, name, usage):
                return found if name == "tools" else [{"type": "function", "function": entry} for entry in found]
    return []


def options_of(fields: Mapping, usage: KeyUsage) -> dict[str, Any]:
    """Keyword arguments for the chat template, TRL's `chat_template_kwargs`. Raises UnfitRowError."""
    usage.used.add(_OPTIONS)
    reason = "chat_template_kwargs of unknown form"
    options = objects(fields.get(_OPTIONS), reason, _OPTIONS, usage)
    if len(options) > 1:
        raise UnfitRowError(reason, f"{_OPTIONS} is a list")
    if own := sorted(_OWN_OPTIONS & {*(options or [{}])[0]}):
        raise UnfitRowError("chat_template_kwargs that a row may not set", ", ".join(own))
    return options[0] if options else {}
