"""Bits per byte of held-out documents: what a model pays for text, comparable between tokenizers of any vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.documents import Text
from pipeline.evaluation.base import Inputs, Outcome, content_hash
from pipeline.evaluation.passages import Passage, by_hash, check_bounds, held_out, within

_MAX_CHARACTERS_PER_TOKEN = 64  # what is encoded of a long document before it is cut to its first tokens


@dataclass(frozen=True)
class HeldOutText:
    """Bits per byte of documents, out of a data artifact's held-out part or out of a source of their own.

    A document is encoded as the tokenizer does by itself. If that begins with BOS, all its text is scored; otherwise
    the first token has no context, and neither its bits nor its bytes count. Text that spells a special token is
    ordinary text, as in training. Windows do not overlap; each is scored from its own tokens and the one before it.

    Attributes:
        documents: a source of documents; null reads the data artifact.
        sources: names of the artifact's sources to read; null reads all.
        window: tokens the model sees at once, at most.
        max_document_tokens: only about so many first tokens of a document count (the text is cut at the end of that
            token and encoded again); null for all.
        max_items, max_tokens: score documents in the order of their content hashes until so many documents, or so many
            tokens in sum: the same ones for every model with this tokenizer. null for no bound.
    """

    documents: Text | None
    sources: Sequence[str] | None
    window: int
    max_document_tokens: int | None
    max_items: int | None
    max_tokens: int | None

    def __post_init__(self) -> None:
        check_bounds(self, "window", "max_document_tokens", "max_items", "max_tokens")

    def run(self, model: Any, tokenizer: Any, inputs: Inputs) -> Outcome:
        """One item per document: numerator its bits, denominator its UTF-8 bytes."""
        from pipeline.evaluation.windows import score_passages

        passages = (self._passage(tokenizer, identity, text) for identity, text in by_hash(self._texts(inputs)))
        return score_passages(model, within(passages, self.max_items, self.max_tokens), self.window, inputs)

    def _texts(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        if self.documents is None:
            return held_out(inputs, self.sources, "text")
        return ((document.id, document.text) for document in self.documents.documents(inputs.locate, inputs.listing))

    def _passage(self, tokenizer: Any, identity: str, text: str) -> Passage | None:
        text = cut(tokenizer, text.strip(), self.max_document_tokens)
        encoded = _encode(tokenizer, text)
        tokens, spans = encoded["input_ids"], encoded["offset_mapping"]
        first = next((i for i in range(1, len(tokens)) if _is_border(spans, i)), len(tokens))
        num_bytes = len(text[spans[first - 1][1] :].encode()) if tokens else 0
        if not num_bytes:
            return None
        return Passage(identity, content_hash(text), tokens, [i >= first for i in range(len(tokens))], num_bytes, text)


def cut(tokenizer: Any, text: str, max_tokens: int | None) -> str:
    """The text's first `max_tokens` tokens as text, never less than a whole character."""
    if max_tokens is None:
        return text
    text = text[: max_tokens * _MAX_CHARACTERS_PER_TOKEN]
    spans = _encode(tokenizer, text)["offset_mapping"]
    if len(spans) <= max_tokens:
        return text
    border = next((i for i in range(max_tokens, 1, -1) if _is_border(spans, i)), 1)
    return text[: spans[border - 1][1]]


def _encode(tokenizer: Any, text: str) -> dict[str, list[Any]]:
    """Token ids and character spans, BOS first if the tokenizer puts one, no EOS."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets; a fast tokenizer is required")
    encoded = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True, split_special_tokens=True, verbose=False
    )
    length = len(encoded["input_ids"])
    while length and encoded["special_tokens_mask"][length - 1]:
        length -= 1
    return {key: encoded[key][:length] for key in ("input_ids", "offset_mapping")}


def _is_border(spans: Sequence[tuple[int, int]], i: int) -> bool:
    # The bytes of one character can be spread over several tokens: all of them have the span of that character.
    return spans[i][0] >= spans[i - 1][1]
