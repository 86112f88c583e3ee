"""How a chat template wants to be given messages, which differs by family, found out by rendering an example."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Message = Mapping[str, Any]
Messages = Sequence[Message]
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, in rows and in templates."""
ASKED = {"role": "user", "content": "asked-1"}
ANSWERED = {"role": "assistant", "content": "answered-1"}
_ARGUMENTS = {"city": "argued-1"}
_CALL = {"id": "call12345", "type": "function", "function": {"name": "called_1", "arguments": _ARGUMENTS}}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RETURNED = {"role": "tool", "content": "returned-1", "name": "called_1", "tool_call_id": "call12345"}
_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "called_1", "description": "Calls.", "parameters": _CITY}}


class Form(NamedTuple):
    """What a template reads: content as a list of parts, arguments of calls as JSON text, what content is where a
    message has none but calls, the key of reasoning (`content` for a think block at its beginning), and what tools are
    where there are none."""

    parts: bool = False
    text_arguments: bool = False
    no_content: str | None = ""
    reasoning: str = "reasoning_content"
    no_tools: tuple[()] | None = None

    def apply(self, message: Message) -> dict[str, Any]:
        """A message in this form; keys without a value are left out, as transformers does."""
        found = {key: value for key, value in message.items() if value is not None}
        if calls := found.get("tool_calls"):
            found["content"] = found.get("content") or self.no_content
            found["tool_calls"] = [_with_text(call) for call in calls] if self.text_arguments else calls
        found = self._with_reasoning(found)
        if self.parts and isinstance(content := found.get("content"), str):
            found["content"] = [{"type": "text", "text": content}]
        return found

    def _with_reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        reasoning = next((message[key] for key in REASONING if key in message), None)
        if reasoning is None:
            return message
        if self.reasoning == "content":
            content = f"<think>\n{reasoning}\n</think>\n\n{message.get('content') or ''}"
            return {key: value for key, value in message.items() if key not in REASONING} | {"content": content}
        return {"thinking": reasoning, **message, "reasoning_content": reasoning, self.reasoning: reasoning}


_SPLITS = re.compile(r"""split\(\s*['"]</think>""")
Attempt = Callable[[Form, Messages, Messages], str]
"""Renders messages with tools in a form; an empty text if the template refuses them."""


def find_form(source: str, attempt: Attempt) -> Form:
    """The first form of each kind in which a template says all of an example; the usual one if none does."""

    def first(forms: Sequence[Form], messages: Messages, tools: Messages, *words: str) -> Form | None:
        return next((form for form in forms if _says(attempt(form, messages, tools), words)), None)

    plain = [Form(parts=parts, no_tools=no) for no in (None, ()) for parts in (False, True)]
    form = first(plain, [ASKED, ANSWERED], (), "asked-1", "answered-1") or Form()
    ways = [form._replace(text_arguments=text, no_content=no) for no in ("", None) for text in (False, True)]
    form = first(ways, [ASKED, _CALLED, _RETURNED, ANSWERED], [_TOOL], "called_1", "argued-1") or form
    keys = ["reasoning_content", "reasoning", *(["content"] if _SPLITS.search(source) else [])]
    thought = {**ANSWERED, "reasoning_content": "thought-1"}
    places = [form._replace(reasoning=key) for key in keys]
    return first(places, [ASKED, thought], (), "thought-1", "answered-1") or form


def _says(text: str, words: Sequence[str]) -> bool:
    """Whether all words are there, and no arguments as Python spells them: what a template makes that wants text."""
    return all(word in text for word in words) and repr(_ARGUMENTS) not in text


def _with_text(call: Message) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        function = {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {**call, "function": function} if "function" in call else dict(function)
