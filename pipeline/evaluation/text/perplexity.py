"""Bits per byte of held-out documents: what a model pays for text, comparable between tokenizers of any vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.sources.documents import Text
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import Outcome, Workspace, content_hash, num_rows
from pipeline.evaluation.text.passages import Passage, by_hash, check_bounds, held_out, within

_MAX_CHARACTERS_PER_TOKEN = 64  # what is encoded of a long document before it is cut to its first tokens


@dataclass(frozen=True)
class HeldOutText:
    """Bits per byte of documents, out of a data artifact's held-out part or out of a source of their own.

    A document is encoded as in training (`pipeline.data.tokens.text_encoder`), white space at its ends left out. What
    the tokenizer puts before it, such as BOS, is context and is not scored; without, the first token has no context,
    and neither its bits nor its bytes count. EOS is not scored, as it is not text. Windows do not overlap; each is
    scored from its own tokens and the one before it, so only a document's first one begins with BOS: as where training
    cuts a document.

    Attributes:
        documents: a source of documents; null reads the data artifact.
        sources: names of the artifact's sources to read; null reads all.
        window: tokens the model sees at once, at most.
        max_document_tokens: about how many first tokens of a document count (the text is cut at the end of that
            token and encoded again); null for all.
        max_items, max_tokens: score documents in the order of their content hashes, up to this number of documents and
            of tokens in sum: the same documents for every model with this tokenizer. null for no bound.
    """

    documents: Text | None
    sources: Sequence[str] | None
    window: int
    max_document_tokens: int | None
    max_items: int | None
    max_tokens: int | None

    def __post_init__(self) -> None:
        check_bounds(self, "window", "max_document_tokens", "max_items", "max_tokens")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per document: numerator its bits, denominator its UTF-8 bytes."""
        from pipeline.evaluation.text.windows import score_passages

        return score_passages(model, self.passages(tokenizer, num_rows(model), inputs), self.window, inputs)

    def passages(self, tokenizer: Any, num_rows: int, inputs: Workspace) -> list[Passage]:
        """The documents that are scored; `num_rows`: of the model's embedding."""
        encoder = TextEncoder(tokenizer, num_rows)
        passages = (self._passage(encoder, identity, text) for identity, text in by_hash(self._texts(inputs)))
        return within(passages, self.max_items, self.max_tokens)

    def _texts(self, inputs: Workspace) -> Iterator[tuple[str, str]]:
        if self.documents is None:
            return held_out(inputs, self.sources, "text")
        return ((document.id, document.text) for document in self.documents.documents(inputs.locate, inputs.listing))

    def _passage(self, encoder: TextEncoder, identity: str, text: str) -> Passage | None:
        text = cut(encoder, text.strip(), self.max_document_tokens)
        prefix, (ids, spans) = encoder.special.prefix, encoder.spans(text)
        first = 0 if prefix else next((i for i in range(1, len(ids)) if _is_border(spans, i)), len(ids))
        num_bytes = len(text[spans[first - 1][1] if first else 0 :].encode()) if ids else 0
        if not num_bytes:
            return None
        scored = [False] * (len(prefix) + first) + [True] * (len(ids) - first)
        return Passage(identity, content_hash(text), [*prefix, *ids], scored, num_bytes, text)


def cut(encoder: TextEncoder, text: str, max_tokens: int | None) -> str:
    """The text's first `max_tokens` tokens as text, BOS counted, never less than a whole character."""
    if max_tokens is None:
        return text
    text = text[: max_tokens * _MAX_CHARACTERS_PER_TOKEN]
    spans, limit = encoder.spans(text)[1], max(max_tokens - len(encoder.special.prefix), 1)
    if len(spans) <= limit:
        return text
    border = next((i for i in range(limit, 1, -1) if _is_border(spans, i)), 1)
    return text[: spans[border - 1][1]]


def _is_border(spans: Sequence[tuple[int, int]], i: int) -> bool:
    # The bytes of one character can be spread over several tokens: all of them have the span of that character.
    return spans[i][0] >= spans[i - 1][1]
