"""Conversations as tokens, with a mask of the assistant's tokens that holds for any chat template, or is refused.

Shapes: K tokens of a conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_EXAMPLE = (
    {"role": "user", "content": "How many blocks?"},
    {"role": "assistant", "content": "Forty."},
    {"role": "user", "content": "And before?"},
    {"role": "assistant", "content": "Thirty-two."},
)
Message = Mapping[str, Any]


class UnfitChatError(ValueError):
    """A conversation cannot be encoded faithfully, though others may be. `reason` is short, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ChatEncoder:
    """Renders conversations with a tokenizer's chat template and marks what is learned.

    A template with `{% generation %}` blocks says itself what the assistant writes. For any other the assistant's part
    is what the whole conversation has beyond its rendering up to that turn; both renderings must agree, or the template
    is refused. Learned is the assistant's text and the token that ends its turn, never a role header.

    Raises ValueError if there is no template or the part cannot be established.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.template = template or tokenizer.chat_template
        if not isinstance(self.template, str):
            raise ValueError("the tokenizer has no chat template; give one (data.template) or use a chat model")
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} gives no offsets; a fast tokenizer is required")
        self._tokenizer = tokenizer
        self._marks_itself = bool(_GENERATION_BLOCK.search(self.template))
        self.special_tokens = sorted(set(tokenizer.all_special_tokens) | _added_specials(tokenizer))
        self._check_template()

    def _check_template(self) -> None:
        ids, mask = self.encode(_EXAMPLE)
        if not mask.any() or mask.all():
            raise ValueError(f"the chat template marks {int(mask.sum())} of {len(ids)} tokens as the assistant's")

    def encode(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64[K] and mask uint8[K], 1 where the token is the assistant's own.

        tools: descriptions of the functions that the assistant may call; its calls are its own and learned.

        Raises UnfitChatError if a message spells a special token, a token crosses the border of a turn, or the template
        refuses or leaves out a message, a call or a tool, or does not allow the mask.
        """
        self._check_messages(messages, tools)
        if self._marks_itself:
            return self._encode_marked(messages, tools)
        text, spans = self._assistant_spans(messages, tools)
        self._check_all_said(text, messages, tools)
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoding["input_ids"], dtype=np.int64)
        return ids, _mask(encoding["offset_mapping"], spans, text)

    def _check_messages(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        more = [json.dumps([message.get("tool_calls") for message in messages] + list(tools), ensure_ascii=False)]
        for text in [message["content"] for message in messages] + more:
            for token in self.special_tokens:
                if token in text:
                    raise UnfitChatError("a message spells a special token", repr(token))

    def _check_all_said(self, text: str, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Raise UnfitChatError if something of a conversation is not in what the template made of it."""
        for message in messages:
            if message["content"].strip() not in text:
                reason = f"the chat template leaves out a message of the {message['role']}"
                raise UnfitChatError(reason, repr(text[:60]))
        calls = [_with_other_calls(message) for message in messages]
        # What is not rendered may have another name and the rendering is still the same.
        if tools and self._render(messages, False, list(map(_with_other_name, tools))) == text:
            raise UnfitChatError("the chat template leaves out the tools", f"{len(tools)} tools")
        if calls != list(messages) and self._render(calls, False, tools) == text:
            raise UnfitChatError("the chat template leaves out a tool call", repr(text[:60]))

    def _encode_marked(self, messages: Sequence[Message], tools: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        self._check_all_said(self._render(messages, False, tools), messages, tools)
        encoding = self._tokenizer.apply_chat_template(
            _spoken(messages),
            tools=list(tools) or None,
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = np.array(encoding["assistant_masks"], dtype=np.uint8)
        return np.array(encoding["input_ids"], dtype=np.int64), mask

    def _render(self, messages: Sequence[Message], prompt: bool, tools: Sequence[Message] = ()) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                _spoken(messages),
                tools=list(tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise UnfitChatError("the chat template refuses it", str(error)) from error

    def _assistant_spans(
        self, messages: Sequence[Message], tools: Sequence[Message]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation and the character range learned in every assistant turn."""
        text = self._render(messages, False, tools)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or message.get("learned") is False:
                continue
            head = self._render(messages[:index], True, tools)
            turn = self._render(messages[: index + 1], False, tools)
            if not turn.startswith(head) or not text.startswith(turn):
                raise UnfitChatError(
                    "the chat template renders earlier turns differently once more follow",
                    "so the assistant's part cannot be told; add {% generation %} blocks to the template",
                )
            spans.append((len(head), len(head) + self._end_of_turn(turn[len(head) :], message)))
        return text, spans

    def _end_of_turn(self, turn: str, message: Message) -> int:
        """Length of the part of an assistant's turn to learn: its text through the first special token after it.

        Of a turn that calls tools, which a template may set off by special tokens, it is through the last one.
        """
        content = message["content"].strip()
        start = turn.find(content)
        if start < 0 or turn[:start].strip():
            raise UnfitChatError(
                "the chat template does not put the assistant's text right after its header",
                f"found {turn[:40]!r}; add {{% generation %}} blocks to the template",
            )
        after = start + len(content)
        find = turn.rfind if message.get("tool_calls") else turn.find
        ends = [place + len(token) for token in self.special_tokens if (place := find(token, after)) >= 0]
        if not ends:
            raise UnfitChatError(
                "the chat template ends the assistant's turn without a special token",
                f"{turn[after:]!r} holds no special token, so the model would not learn to stop; end it with eos_token",
            )
        return max(ends) if message.get("tool_calls") else min(ends)


def _spoken(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a template reads them, without what only the mask needs."""
    return [{key: value for key, value in message.items() if key != "learned"} for message in messages]


def _with_other_name(tool: Message) -> Message:
    """A tool, or a call of one, under another name."""
    function = tool.get("function", tool)
    renamed = {**function, "name": f"{function.get('name')}_"}
    return {**tool, "function": renamed} if "function" in tool else renamed


def _with_other_calls(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": list(map(_with_other_name, calls))} if calls else message


def _added_specials(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _mask(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str) -> np.ndarray:
    """uint8[K]: tokens whose characters lie in a span. Raises UnfitChatError if a token crosses the end of one."""
    starts_K, stops_K = np.array(list(offsets), dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(starts_K), dtype=np.uint8)
    for start, stop in spans:
        touching = (starts_K < stop) & (stops_K > start)
        inside = (starts_K >= start) & (stops_K <= stop)
        if crossing := np.flatnonzero(touching & ~inside).tolist():
            token = text[starts_K[crossing[0]] : stops_K[crossing[0]]]
            raise UnfitChatError("a token holds both the assistant's text and what surrounds it", repr(token))
        mask[inside & (stops_K > starts_K)] = 1
    return mask
