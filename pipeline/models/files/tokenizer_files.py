"""Which files a model's tokenizer is in, and whether what transformers makes of a SentencePiece model is that model.

transformers converts `tokenizer.model` when it is loaded. For that it needs packages that nothing else here needs, and
where no `tokenizer_class` is given it guesses: the ids may then differ from those that the model was trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SENTENCEPIECE_FILE = "tokenizer.model"
_FILES = ("tokenizer.json", SENTENCEPIECE_FILE, "vocab.json")
_NEEDED = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
_TIKTOKEN = {"tiktoken": "tiktoken"}
_NUM_TEXTS, _NUM_PIECES = 4, 16


def check_tokenizer(directory: Path) -> None:
    """Look at which files hold a tokenizer, without loading it.

    Raises:
        ValueError: there are none, or reading them needs packages that are not installed.
    """
    found = [name for name in _FILES if (directory / name).is_file()]
    if not found:
        raise ValueError(
            f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the model's"
        )
    if found == [SENTENCEPIECE_FILE]:
        needed = _NEEDED if is_sentencepiece(directory / SENTENCEPIECE_FILE) else _TIKTOKEN
        if missing := [package for module, package in needed.items() if not _installed(module)]:
            raise ValueError(
                f"{directory} has its tokenizer as tokenizer.model alone, which takes {' and '.join(missing)} to read; "
                f"run pip install {' '.join(needed.values())}, or put the model's tokenizer.json beside it"
            )


def vocabulary_hash(directory: Path) -> str | None:
    """A hash of which token has which id; None where tokenizer.json does not tell."""
    try:
        return _vocabulary_hash((directory / "tokenizer.json").read_bytes())
    except OSError:
        return None


@lru_cache(maxsize=4)
def _vocabulary_hash(content: bytes) -> str | None:
    """Of a tokenizer.json, which the models of a run have in common."""
    try:
        record = json.loads(content)
        words = record["model"]["vocab"]
        ids = dict(words) if isinstance(words, dict) else {one[0]: number for number, one in enumerate(words)}
        ids |= {one["content"]: one["id"] for one in record.get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def is_converted(directory: Path) -> bool:
    """Whether transformers makes the tokenizer out of a SentencePiece model, having nothing else."""
    return [name for name in _FILES if (directory / name).is_file()] == [SENTENCEPIECE_FILE] and is_sentencepiece(
        directory / SENTENCEPIECE_FILE
    )


def check_converted(directory: Path, tokenizer: Any) -> None:
    """Compare a tokenizer that was made out of a SentencePiece model with it, on a few texts.

    Raises:
        ValueError: one is split otherwise.
    """
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(str(directory / SENTENCEPIECE_FILE))
    for text in _known_texts(original):
        expected = original.encode(text, out_type=str)
        # Not the ids: some tokenizers put their special tokens before the pieces.
        found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        if found != expected:
            raise ValueError(
                f"transformers reads {directory / SENTENCEPIECE_FILE} as another tokenizer: {text[:40]!r} becomes "
                f"{found[:6]}, and {expected[:6]} by SentencePiece itself. Put the model's tokenizer.json beside it, "
                "or a tokenizer_config.json with its tokenizer_class, such as LlamaTokenizer"
            )


def _known_texts(original: Any) -> Iterator[str]:
    """A few texts of the model's own pieces that are letters, so that none is unknown to it."""
    plain = [i for i in range(original.vocab_size()) if original.id_to_piece(i).replace("\u2581", "").isalpha()]
    step = max(1, len(plain) // (_NUM_TEXTS * _NUM_PIECES))
    for start in range(_NUM_TEXTS):
        yield original.decode(plain[start :: step * _NUM_TEXTS][:_NUM_PIECES]).strip()


def is_sentencepiece(file: Path) -> bool:
    """Whether a tokenizer.model is SentencePiece's: a protobuf, which begins with a piece; tiktoken's is text."""
    with file.open("rb") as stream:
        return stream.read(1) == b"\n"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package's parent
        return False
