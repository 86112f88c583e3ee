"""Conversations as tokens, with a mask of the assistant's tokens that holds for any chat template, or is refused.

Shapes: K tokens of a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.chat.marks import RESERVED, spoken
from pipeline.data.chat.spans import Aligner
from pipeline.data.chat.template import ChatTemplate, Options, TemplateSettings, UnfitChatError
from pipeline.data.chat.template_forms import Messages
from pipeline.data.chat.turn_borders import TurnBorders

__all__ = ["ChatEncoder", "Encoded", "UnfitChatError"]
_EXAMPLE = (
    {"role": "user", "content": "How many blocks?"},
    {"role": "assistant", "content": "Forty."},
    {"role": "user", "content": "And before?"},
    {"role": "assistant", "content": "Thirty-two."},
)


class Encoded(NamedTuple):
    """A conversation as token ids int64[K] and mask uint8[K]; the UTF-8 bytes of what the assistant says in it; whether
    the template left out reasoning that a message holds."""

    ids: np.ndarray
    mask: np.ndarray
    num_bytes: int
    reasoning_left_out: bool


class ChatEncoder:
    """Renders conversations with a tokenizer's chat template and marks what is learned.

    Learned is what the model has to write from the end of the generation prompt through the token that closes its turn,
    as it stands in the rendering of the whole conversation: reasoning where the template keeps it, text, calls; never a
    role header. A template with `{% generation %}` blocks says itself what the assistant writes; for any other it is
    found by aligning renderings (see `pipeline.data.chat.spans`), conversation by conversation.

    Raises ValueError if there is no template, it does not parse, or the tokenizer gives no offsets.
    """

    def __init__(self, tokenizer: Any, template: TemplateSettings | str | None = None) -> None:
        self.template = ChatTemplate(tokenizer, template)
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} gives no offsets; a fast tokenizer is required")
        self.tokenizer = tokenizer
        self.special_tokens = special_tokens(tokenizer)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._aligner = Aligner(self.template, TurnBorders(self.template, self._special, tokenizer.eos_token))

    def encode(
        self, messages: Messages, tools: Messages = (), options: Options = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64[K] and mask uint8[K], 1 where the token is the assistant's own.

        Args:
            messages: one whose `learned` is False is context only and gets no 1.
            tools: descriptions of the functions that the assistant may call; its calls are its own and learned.
            options: variables of the template for this conversation, over those of the settings.

        Raises UnfitChatError if a message spells a special token, a token crosses the border of a turn, or the template
        refuses or leaves out a message, a call or a tool, or does not allow the mask.
        """
        return self.encode_whole(messages, tools, options)[:2]

    def encode_whole(self, messages: Messages, tools: Messages = (), options: Options = None) -> Encoded:
        """As `encode`, and what else is known of the conversation."""
        unlearned = {index for index, message in enumerate(messages) if message.get("learned") is False}
        messages = [{key: value for key, value in message.items() if key != "learned"} for message in messages]
        self._check_texts(messages, tools)
        text, turns, spans, left_out = self._aligner.align(messages, tools, options)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoding["input_ids"], dtype=np.int64)
        learned = [(start, stop) for index, start, stop in spans if index not in unlearned]
        mask = _mask(encoding["offset_mapping"], learned, text, self._special)
        said = (text[turn.said : turn.silent] for turn in turns if turn.message not in unlearned)
        return Encoded(ids, mask, sum(len(words.encode()) for words in said), left_out)

    def prompt(self, messages: Messages, tools: Messages = (), options: Options = None) -> list[int]:
        """Token ids of a conversation up to where the assistant is to go on. Raises UnfitChatError if it is refused."""
        text = self.template.prompt(messages, tools, options)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def closing_tokens(self) -> list[str] | None:
        """The special tokens that close a turn of the assistant, in order: of the last one, or if it has none of an
        earlier one; empty if the template closes none, None if it refuses a plain exchange."""
        for example in (_EXAMPLE, _EXAMPLE[:2]):
            try:
                text, turns, *_ = self._aligner.align(example)
            except UnfitChatError:
                continue
            closings = (self._special.findall(text[turn.silent : turn.stop]) for turn in reversed(turns))
            return next((closing for closing in closings if closing), [])
        return None

    def _check_texts(self, messages: Messages, tools: Messages) -> None:
        for text in spoken(messages, tools):
            if found := self._special.search(text):
                raise UnfitChatError("a message spells a special token", repr(found.group()))
            if found := RESERVED.search(text):
                raise UnfitChatError("a message holds a noncharacter", f"U+{ord(found.group()):04X}")


def special_tokens(tokenizer: Any) -> list[str]:
    """All special tokens of a tokenizer, sorted."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(set(tokenizer.all_special_tokens) | added)


def _mask(
    offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str, special: re.Pattern[str]
) -> np.ndarray:
    """uint8[K]: tokens whose characters lie in a span.

    A special token may hold white space around it, which does not count. A token of white space that also lies outside
    is not learned: what ends a header or begins a line. Raises UnfitChatError if any other token crosses a border.
    """
    starts_K, stops_K = np.array(list(offsets), dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(starts_K), dtype=np.uint8)
    for start, stop in spans:
        touching = (starts_K < stop) & (stops_K > start)
        inside = (starts_K >= start) & (stops_K <= stop)
        for crossing in np.flatnonzero(touching & ~inside).tolist():
            token = text[starts_K[crossing] : stops_K[crossing]]
            begin = starts_K[crossing] + len(token) - len(token.lstrip())
            if special.fullmatch(core := token.strip()):
                inside[crossing] = start <= begin and begin + len(core) <= stop
            elif core:
                raise UnfitChatError("a token holds both the assistant's text and what surrounds it", repr(token))
        mask[inside & (stops_K > starts_K)] = 1
    return mask
