"""Text in general as token rows: it stands for what must not be forgotten, for methods that measure a model on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pipeline.data.sources.documents import Text
from pipeline.data.sources.files import Listing, Locate

if TYPE_CHECKING:  # a request is checked without
    from pipeline.data.tokens.text_encoder import TextEncoder


@runtime_checkable
class ReadsGeneralText(Protocol):
    """A method that reads some text in general.

    `general` is its source, `window` the tokens of one document at most, `max_tokens` those of all together.
    """

    @property
    def general(self) -> Text: ...
    @property
    def window(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...


def check_bounds(reader: ReadsGeneralText) -> None:
    """Raise ValueError where nothing would be predicted."""
    if reader.window < 2 or reader.max_tokens < 2:
        raise ValueError(
            f"window={reader.window} and max_tokens={reader.max_tokens} must be at least 2: a first token is never "
            "predicted"
        )


def general_rows(
    reader: ReadsGeneralText, tokenizer: Any, num_rows: int, locate: Locate, listing: Listing
) -> list[list[int]]:
    """The rows that a method reads; `num_rows`: of the model's embedding. Raises ValueError: see `token_rows`."""
    from pipeline.data.tokens.text_encoder import TextEncoder

    texts = (document.text for document in reader.general.documents(locate, listing))
    return token_rows(TextEncoder(tokenizer, num_rows), texts, reader.window, reader.max_tokens)


def token_rows(encoder: TextEncoder, texts: Iterable[str], window: int, max_tokens: int) -> list[list[int]]:
    """The first `window` tokens of each text, taken in the order of the texts' hashes, of `max_tokens` in sum.

    A text begins as a document of training does. The last row is cut where the sum is reached.

    Raises:
        ValueError: there is no text of two tokens, or the model has no row for a token.
    """
    rows: list[list[int]] = []
    left = max_tokens
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        limit = min(window, left)
        ids = encoder.prompt(text)[:limit]
        if len(ids) > 1:
            rows.append(ids)
            left -= len(ids)
        if left < 2:
            break
    if not rows:
        raise ValueError("the general text has no document of two tokens or more; give `general` another source")
    return rows
