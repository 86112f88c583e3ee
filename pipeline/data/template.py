"""A tokenizer's chat template as it is used everywhere: which one, with what date, options and form of messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

DATE = "2024-07-26"
"""The date that Llama 3.1's template falls back to, so that whoever names none gets the same rows every day."""
REASONING = ("reasoning_content", "thinking", "reasoning")
Message = Mapping[str, Any]
_OWN = ("messages", "tools", "add_generation_prompt")
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError)


class UnfitChatError(ValueError):
    """A conversation cannot be encoded faithfully, though others may be. `reason` is one of a few, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class TemplateSettings:
    """Which chat template renders conversations, and what it is given besides them.

    template: Jinja source, the name of one of the tokenizer's templates, several sources by name, or null for the
    tokenizer's own. date: what a template that prints today's date takes for it, as YYYY-MM-DD; null for `DATE`.
    options: further variables of the template, such as enable_thinking. Raises ValueError for a date of another form or
    an option that is not free.
    """

    template: str | Mapping[str, str] | None = None
    date: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _day(self.date)
        if taken := sorted(set(self.options) & set(_OWN)):
            raise ValueError(f"template_options name {', '.join(taken)}, which every conversation brings itself")

    @staticmethod
    def recorded(summary: Mapping[str, Any]) -> TemplateSettings:
        """What a data artifact was rendered with, out of its `sources.json`."""
        return TemplateSettings(
            summary.get("chat_template"), summary.get("chat_date"), summary.get("chat_template_options") or {}
        )


class Form(NamedTuple):
    """How a template wants messages: content as a list of parts, arguments of calls as JSON text, what content is where
    there is none, and where reasoning goes."""

    parts: bool = False
    text_arguments: bool = False
    no_content: str | None = ""
    reasoning: str = "reasoning_content"


class ChatTemplate:
    """Renders conversations the same way for training, validation and evaluation, whatever day it is.

    Of several templates it takes the one that transformers would: `tool_use` where tools are given and there is one,
    else `default`. How messages are given to a template is found out once per template, by rendering an example.

    Attributes:
        text: what to save with the model: the template, or several by name.
        date, options: as they are used.

    Raises ValueError if there is no template, or one that does not parse.
    """

    def __init__(self, tokenizer: Any, settings: TemplateSettings | str | None = None) -> None:
        if not isinstance(settings, TemplateSettings):
            settings = TemplateSettings(settings)
        self.text = _chosen(tokenizer, settings.template)
        self.date, self.options = settings.date or DATE, dict(settings.options)
        day = _day(self.date)
        dates = {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}
        self._variables = {**tokenizer.special_tokens_map, **dates, **self.options}
        for source in [self.text] if isinstance(self.text, str) else self.text.values():
            _check_parses(source)
        self._forms: dict[str, Form] = {}

    def record(self) -> dict[str, Any]:
        """What `TemplateSettings.recorded` reads."""
        return {"chat_template": self.text, "chat_date": self.date, "chat_template_options": self.options}

    def source(self, tools: Sequence[Message] = ()) -> str:
        """The template for a conversation with these tools. Raises UnfitChatError if none is meant for it."""
        if isinstance(self.text, str):
            return self.text
        name = "tool_use" if tools and "tool_use" in self.text else "default"
        if name not in self.text:
            raise UnfitChatError("no chat template for a conversation without tools", f"there is {sorted(self.text)}")
        return self.text[name]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        options: Mapping[str, Any] | None = None,
        prompt: bool = False,
    ) -> str:
        """The text of a conversation; `prompt` asks for the generation prompt after it.

        Raises UnfitChatError with the template's own words if it refuses the conversation.
        """
        return self._rendered(messages, tools, options, prompt, lambda template, given: template.render(given))

    def render_tracked(
        self, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """As `render`, with the character ranges that the template's `{% generation %}` blocks wrote."""
        spans: list[tuple[int, int]] = []

        def tracked(template: jinja2.Template, given: dict[str, Any]) -> str:
            blocks: list[str] = []
            with template.environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]
                for block in template.generate(given):  # one by one: positions are counted by what is there already
                    blocks.append(block)
            return "".join(blocks)

        return self._rendered(messages, tools, options, False, tracked), spans

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        options: Mapping[str, Any] | None,
        prompt: bool,
        how: Callable[[jinja2.Template, dict[str, Any]], str],
    ) -> str:
        source = self.source(tools)
        if taken := sorted(set(options or ()) & set(_OWN)):
            raise UnfitChatError("options that a chat template cannot be given", ", ".join(taken))
        return self._in_form(self._form(source), source, messages, tools, options, prompt, how)

    def _in_form(
        self,
        form: Form,
        source: str,
        messages: Sequence[Message],
        tools: Sequence[Message],
        options: Mapping[str, Any] | None,
        prompt: bool,
        how: Callable[[jinja2.Template, dict[str, Any]], str],
    ) -> str:
        given = {"documents": None, **self._variables, **(options or {}), "add_generation_prompt": prompt}
        given |= {"messages": [_formed(message, form) for message in messages], "tools": list(tools) or None}
        try:
            return how(_compile_jinja_template(source), given)
        except _FAILURES as error:
            raise UnfitChatError("the chat template refuses it", str(error)) from error

    def _form(self, source: str) -> Form:
        if source not in self._forms:
            self._forms[source] = self._find_form(source)
        return self._forms[source]

    def _find_form(self, source: str) -> Form:
        """The first form of each kind in which a template says all of an example; the usual one if none does."""

        def says(form: Form, messages: Sequence[Message], tools: Sequence[Message], words: Sequence[str]) -> bool:
            try:
                text = self._in_form(form, source, messages, tools, None, False, lambda t, given: t.render(given))
            except UnfitChatError:
                return False
            return all(word in text for word in words) and repr(_ARGUMENTS) not in text

        form = Form()
        for parts in (False, True):
            if says(with_parts := form._replace(parts=parts), [_ASKED, _ANSWERED], (), ("asked-1", "answered-1")):
                form = with_parts
                break
        called = [_ASKED, _CALLED, _RETURNED, _ANSWERED]
        ways = [form._replace(text_arguments=text, no_content=no) for no in ("", None) for text in (False, True)]
        form = next((way for way in ways if says(way, called, [_TOOL], ("called_1", "argued-1"))), form)
        inline = ("content",) if "</think>" in source else ()
        places = [form._replace(reasoning=place) for place in ("reasoning_content", "reasoning", *inline)]
        thought = [_ASKED, {**_ANSWERED, "reasoning_content": "thought-1"}]
        return next((way for way in places if says(way, thought, (), ("thought-1", "answered-1"))), form)

    @cached_property
    def generation_prompt(self) -> str:
        """What `add_generation_prompt` adds after a user's turn; empty if nothing."""
        try:
            without, found = (self.render([_ASKED], prompt=prompt) for prompt in (False, True))
        except UnfitChatError:
            return ""
        start = without.rfind("asked-1") + len("asked-1")
        return found[start + _shared(without[start:], found[start:]) :]

    @cached_property
    def header(self) -> str:
        """What stands before an assistant's text where the template knows no generation prompt; empty otherwise, and
        where that is but white space."""
        if self.generation_prompt:
            return ""
        try:
            asked, answered = self.render([_ASKED]), self.render([_ASKED, _ANSWERED])
        except UnfitChatError:
            return ""
        header = answered[len(asked) : answered.rfind("answered-1")] if answered.startswith(asked) else ""
        return header if header.strip() else ""

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation up to where the assistant is to go on. Raises UnfitChatError as `render`."""
        return self.render(messages, tools, options, prompt=True) + self.header


def read_template(template: str | Mapping[str, Any] | None, locate: Callable[[Mapping[str, Any]], Path]) -> str | None:
    """A template given as text or name, or as a local source: then the text of that file.

    Raises ValueError if the source is no single text file.
    """
    if template is None or isinstance(template, str):
        return template
    path = locate(template)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template: {path} cannot be read as UTF-8 text ({error}); name one .jinja file") from error


_ASKED = {"role": "user", "content": "asked-1"}
_ANSWERED = {"role": "assistant", "content": "answered-1"}
_ARGUMENTS = {"city": "argued-1"}
_CALL = {"id": "call12345", "type": "function", "function": {"name": "called_1", "arguments": _ARGUMENTS}}
_CALLED = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RETURNED = {"role": "tool", "content": "returned-1", "name": "called_1", "tool_call_id": "call12345"}
_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "called_1", "description": "Calls.", "parameters": _CITY}}


def _chosen(tokenizer: Any, asked: str | Mapping[str, str] | None) -> str | dict[str, str]:
    own = tokenizer.chat_template
    if isinstance(own, Mapping) and isinstance(asked, str) and asked in own:
        # Whoever loads the tuned model gets the one it was tuned with, whether or not there are tools.
        return {name: own[asked] if name in ("default", "tool_use") else text for name, text in own.items()} | {
            "default": own[asked]
        }
    found = asked or own
    if isinstance(found, Mapping) and {"default", "tool_use"} & set(found):
        return dict(found)
    if isinstance(found, Mapping) and found:
        raise ValueError(f"no chat template is called default; set `template` to one of {', '.join(sorted(found))}")
    if not isinstance(found, str):
        raise ValueError("the tokenizer has no chat template; give one (data.template) or use a chat model")
    return found


def _check_parses(source: str) -> None:
    try:
        _compile_jinja_template(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is no valid Jinja: {error}; it begins {source[:60]!r}") from error


def _day(date: str | None) -> datetime:
    try:
        return datetime.strptime(date or DATE, "%Y-%m-%d")
    except (TypeError, ValueError) as error:
        raise ValueError(f"date={date!r} must be a date such as {DATE}") from error


def _formed(message: Message, form: Form) -> dict[str, Any]:
    """A message as a template of this form reads it; keys without a value are left out, as transformers does."""
    found = {key: value for key, value in message.items() if value is not None}
    calls, content = found.get("tool_calls"), found.get("content")
    if calls and not content:
        found["content"] = content = form.no_content
    if calls and form.text_arguments:
        found["tool_calls"] = [_with_text_arguments(call) for call in calls]
    reasoning = next((found[key] for key in REASONING if key in found), None)
    if reasoning is not None and form.reasoning == "content":
        content = f"<think>\n{reasoning}\n</think>\n\n{content or ''}"
        found = {key: value for key, value in found.items() if key not in REASONING} | {"content": content}
    elif reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning, form.reasoning: reasoning}
    if form.parts and isinstance(content, str):
        found["content"] = [{"type": "text", "text": content}]
    return found


def _with_text_arguments(call: Message) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        function = {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {**call, "function": function} if "function" in call else dict(function)


def _shared(a: str, b: str) -> int:
    """Length of the common prefix, cut back so that it ends with a line or before an opening bracket."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if length in (len(a), len(b)):
        return length
    opened = max(a[:length].rfind("<"), a[:length].rfind("["))
    closed = max(a[:length].rfind(">"), a[:length].rfind("]"))
    return opened if opened > closed else length
