"""A tokenizer's chat template as it is used everywhere: which one, with what date, options and form of messages."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2

from pipeline.data.chat.messages import UnfitRowError
from pipeline.data.chat.template_forms import ANSWERED, ASKED, Form, Messages, find_form
from pipeline.data.sources.files import Locate

DATE = "2024-07-26"
"""The date that Llama 3.1's template falls back to, so that whoever names none gets the same rows every day."""
Options = Mapping[str, Any] | None
"""Variables of a template for one conversation."""
_OWN = ("messages", "tools", "add_generation_prompt")
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError)


class UnfitChatError(UnfitRowError):
    """A conversation cannot be encoded faithfully, though others may be. `reason` is one of a few, for counting."""


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
        options = summary.get("chat_template_options") or {}
        return TemplateSettings(summary.get("chat_template"), summary.get("chat_date"), options)


class ChatTemplate:
    """Renders conversations the same way for training, validation and evaluation, whatever day it is.

    Of several templates it takes the one that transformers would: `tool_use` where tools are given and there is one,
    else `default`. How messages are given to a template is found out once per template (see `template_forms`).

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
        self._variables = {"documents": None, **tokenizer.special_tokens_map, **dates, **self.options}
        for source in [self.text] if isinstance(self.text, str) else self.text.values():
            _check_parses(source)
        self._forms: dict[str, Form] = {}

    def record(self) -> dict[str, Any]:
        """What `TemplateSettings.recorded` reads."""
        return {"chat_template": self.text, "chat_date": self.date, "chat_template_options": self.options}

    def source(self, tools: Messages = ()) -> str:
        """The template for a conversation with these tools. Raises UnfitChatError if none is meant for it."""
        if isinstance(self.text, str):
            return self.text
        name = "tool_use" if tools and "tool_use" in self.text else "default"
        if name not in self.text:
            raise UnfitChatError("no chat template for a conversation without tools", f"there is {sorted(self.text)}")
        return self.text[name]

    def render(self, messages: Messages, tools: Messages = (), options: Options = None, prompt: bool = False) -> str:
        """The text of a conversation; `prompt` asks for the generation prompt after it.

        Raises UnfitChatError with the template's own words if it refuses the conversation.
        """
        source = self.source(tools)
        return _render(source, self._given(self._form(source), messages, tools, options, prompt))

    def render_tracked(
        self, messages: Messages, tools: Messages, options: Options
    ) -> tuple[str, list[tuple[int, int]]]:
        """As `render`, with the character ranges that the template's `{% generation %}` blocks wrote."""
        source = self.source(tools)
        spans: list[tuple[int, int]] = []
        return _render(source, self._given(self._form(source), messages, tools, options, False), spans), spans

    def prompt(self, messages: Messages, tools: Messages = (), options: Options = None) -> str:
        """A conversation up to where the assistant is to go on. Raises UnfitChatError as `render`."""
        return self.render(messages, tools, options, prompt=True) + self.header

    @cached_property
    def generation_prompt(self) -> str:
        """What `add_generation_prompt` adds after a user's turn; empty if nothing."""
        try:
            without, found = (self.render([ASKED], prompt=prompt) for prompt in (False, True))
        except UnfitChatError:
            return ""
        start = without.rfind("asked-1") + len("asked-1")
        return found[start + _shared(without[start:], found[start:]) :]

    @cached_property
    def header(self) -> str:
        """What stands before an assistant's text where the template knows no generation prompt; empty otherwise, where
        that is but white space, and where a template always ends with it."""
        if self.generation_prompt:
            return ""
        try:
            asked, answered, more = (self.render([ASKED, ANSWERED, ASKED][:number]) for number in (1, 2, 3))
        except UnfitChatError:
            return ""
        if not (answered.startswith(asked) and more.startswith(answered)):
            return ""
        header = answered[len(asked) : answered.rfind("answered-1")]
        return header if header.strip() else ""

    def _given(self, form: Form, messages: Messages, tools: Messages, options: Options, prompt: bool) -> dict[str, Any]:
        if taken := sorted(set(options or ()) & set(_OWN)):
            raise UnfitChatError("options that a chat template cannot be given", ", ".join(taken))
        formed = [form.apply(message) for message in messages]
        own = {"messages": formed, "tools": list(tools) or form.no_tools, "add_generation_prompt": prompt}
        return {**self._variables, **(options or {}), **own}

    def _form(self, source: str) -> Form:
        def attempt(form: Form, messages: Messages, tools: Messages) -> str:
            try:
                return _render(source, self._given(form, messages, tools, None, False))
            except UnfitChatError:
                return ""

        if source not in self._forms:
            self._forms[source] = find_form(source, attempt)
        return self._forms[source]


def read_template(template: str | Mapping[str, Any] | None, locate: Locate) -> str | None:
    """A template given as text or name, or as a local source: then the text of that file.

    Raises ValueError if the source is no single text file.
    """
    if template is None or isinstance(template, str):
        return template
    path = locate(dict(template))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template: {path} cannot be read as UTF-8 text ({error}); name one .jinja file") from error


def _chosen(tokenizer: Any, asked: str | Mapping[str, str] | None) -> str | dict[str, str]:
    own = tokenizer.chat_template
    if isinstance(own, Mapping) and isinstance(asked, str) and asked in own:
        # Whoever loads the tuned model gets the one it was tuned with, whether or not there are tools.
        replaced = {name: own[asked] for name in ("default", "tool_use") if name == "default" or name in own}
        return {**own, **replaced}
    if isinstance(asked, str) and "{" not in asked:
        known = f"it has {', '.join(sorted(own))}" if isinstance(own, Mapping) else "its templates have no names"
        raise ValueError(
            f"template={asked!r} is neither Jinja nor the name of one of the tokenizer's templates ({known}); the path "
            "of a template ends in .jinja"
        )
    found = asked or own
    if isinstance(found, Mapping) and {"default", "tool_use"} & set(found):
        return dict(found)
    if isinstance(found, Mapping) and found:
        raise ValueError(f"no chat template is called default; set `template` to one of {', '.join(sorted(found))}")
    if not isinstance(found, str):
        raise ValueError("the tokenizer has no chat template; give one (data.template) or use a chat model")
    return found


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    # Not at the top: a stage's check needs the settings, and no transformers.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(source)


def _check_parses(source: str) -> None:
    try:
        _compiled(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}; it begins {source[:60]!r}") from error


def _render(source: str, given: dict[str, Any], spans: list[tuple[int, int]] | None = None) -> str:
    """What a template renders; `spans` takes the ranges of its generation blocks.

    It is compiled by transformers, but not rendered by `apply_chat_template`, which turns functions such as
    `strftime_now` into text. Raises UnfitChatError.
    """
    template = _compiled(source)
    blocks: list[str] = []
    try:
        if spans is None:
            return template.render(given)
        with template.environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]
            for block in template.generate(given):  # one by one: positions are counted by what is there already
                blocks.append(block)
        return "".join(blocks)
    except _FAILURES as error:
        raise UnfitChatError("the chat template refuses it", str(error)) from error


def _day(date: str | None) -> datetime:
    try:
        return datetime.strptime(date or DATE, "%Y-%m-%d")
    except (TypeError, ValueError) as error:
        raise ValueError(f"date={date!r} must be a date such as {DATE}") from error


def common_length(a: str, b: str) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shared(a: str, b: str) -> int:
    """Length of the common prefix, cut back so that it does not end inside a token in brackets."""
    length = common_length(a, b)
    if length in (len(a), len(b)):
        return length
    opened = max(a[:length].rfind("<"), a[:length].rfind("["))
    closed = max(a[:length].rfind(">"), a[:length].rfind("]"))
    return opened if opened > closed else length
