"""The one way in which text becomes token ids, in training and in evaluation.

    a document                 prefix, text, end   training; bits per byte, which scores the text's part
    a prompt, or a context     prefix, text        tasks, generation, what a server is sent
    an option, a continuation  text
    a conversation             text                as `apply_chat_template` does: a template writes its own tokens

The prefix is what the tokenizer puts before a text by itself: BOS (Llama, Mistral, Gemma), several tokens (GLM), or
nothing (SmolLM2, Qwen). The end is EOS, once. What else a tokenizer puts behind a text ([SEP]) stands before EOS, as to
the tokenizer it is part of a whole text. Neither stands behind a prompt, even if the tokenizer puts it there
(`add_eos_token`): a text that has ended has no continuation.

A row of training or a window of evaluation that begins inside a document has no prefix. Text that spells a special
token is ordinary text everywhere, except in a conversation, whose template means it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.data.tokens.special_tokens import SpecialTokens
from pipeline.data.tokens.vocabulary import check_rows


class TextEncoder:
    """Turns texts into token ids (see the module). num_rows: of the model's embedding; None checks no id against it."""

    def __init__(self, tokenizer: Any, num_rows: int | None = None) -> None:
        self._tokenizer, self._num_rows = tokenizer, num_rows
        self.special = SpecialTokens.of(tokenizer)

    @property
    def before_text(self) -> tuple[int, ...]:
        """What a text without a context follows: the prefix; lm-evaluation-harness' convention where there is none.

        Raises ValueError if the tokenizer has neither BOS nor EOS.
        """
        tokenizer = self._tokenizer
        if self.special.prefix:
            return self.special.prefix
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if first is None:
            raise ValueError("the tokenizer has neither bos_token nor eos_token, so a text needs something before it")
        return (first,)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole documents.

        Raises ValueError if the tokenizer has no end-of-text token, NoRowError if the model has no row for a token.
        """
        end = self.special.end
        return [[*self.special.prefix, *ids, *end] for ids in self._ids(list(texts))]

    def document(self, text: str) -> list[int]:
        """Ids of a whole document; see `documents`."""
        return self.documents([text])[0]

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that is to be continued."""
        return [*self.special.prefix, *self.continuation(text)]

    def continuation(self, text: str) -> list[int]:
        """Ids of a text that follows another."""
        return self._ids([text])[0]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what follows it, as lm-evaluation-harness divides them.

        White space at the context's end goes with what follows, both are encoded together, and what follows is what the
        whole has beyond as many ids as the context has. Where a token spans both and nothing is left, they are encoded
        apart. A context without ids is `before_text`.

        Raises ValueError if what follows has no id.
        """
        cut = len(context.rstrip())
        context, continuation = context[:cut], context[cut:] + continuation
        if own := self.continuation(context):
            before = [*self.special.prefix, *own]
            after = self.continuation(context + continuation)[len(own) :] or self.continuation(continuation)
        else:
            before, after = list(self.before_text), self.continuation(continuation)
        if not after:
            where = f"after {context[-40:]!r}" if context else "without a context"
            raise ValueError(
                f"the text {continuation!r} {where} has no token, so it cannot be scored; give at least one"
            )
        begins_itself = not own and before == after[:1] and len(after) > 1
        return before, after[1:] if begins_itself else after

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text alone, and the characters of each. Raises ValueError for a tokenizer that gives none."""
        if not self._tokenizer.is_fast:
            raise ValueError(f"{type(self._tokenizer).__name__} gives no offsets; a fast tokenizer is required")
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        self.check(encoded["input_ids"], f"the text {text[:40]!r}")
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def check(self, ids: Sequence[int], what: str) -> None:
        """Raise NoRowError if one of the ids has no row in the embedding; `what` holds them."""
        if self._num_rows is not None:
            check_rows(ids, self._num_rows, what, self._tokenizer)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            self.check(ids, f"the text {text[:40]!r}")
        return encoded["input_ids"]
