"""Token ids of text with every distinct word encoded once: the tokenizer's own ids, several times faster.

A byte-level tokenizer cuts text into words before it merges anything, and words repeat. Text is cut at places where its
own cut is certain, each distinct piece is encoded by the tokenizer itself, and the ids are joined. Where that is not
certain, of a tokenizer or of one text, the text is encoded whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_WORDS = 400_000
"""Words remembered by one process, about 60 MB."""
_PIECE = 1 << 15
"""Characters of a text that are looked at together: few enough that most pieces are ASCII alone."""
_CHECKED = 20_000
"""In each batch one text of at most this many characters is encoded whole as well, and compared."""

_RARE_SPACE = re.compile("[^\\S \\t\\n\\r]|[\x1c-\x1f\u180e\u200b\ufeff]")
"""White space on whose meaning regular expression engines differ."""
_RARE_IN_ASCII = "\x0b\x0c\x1c\x1d\x1e\x1f"
_CUT = re.compile(r"(?<=[!-~]) (?=[!-~])")
"""A space between two visible characters: every pattern cuts before it."""


@dataclass(frozen=True)
class _Cut:
    """A way to cut text into words: any text, and text of ASCII alone (the same words, found faster)."""

    text: re.Pattern[str]
    ascii: re.Pattern[str]

    def words(self, text: str) -> list[str] | None:
        """The words, which make up the text; None where white space is in it that makes the cut uncertain."""
        if text.isascii():
            rare = any(space in text for space in _RARE_IN_ASCII)
            return None if rare else self.ascii.findall(text)
        return None if _RARE_SPACE.search(text) else self.text.findall(text)


def _by_space(pattern: str) -> _Cut:
    return _Cut(re.compile(pattern), re.compile(pattern))


_FINE = _by_space(r"[ \t\n\r]+(?=[ \t\n\r][^ \t\n\r])|[ \t\n\r]?[^ \t\n\r]+|[ \t\n\r]+")
"""A cut wherever white space begins, and before the last of several white characters (GPT-2's own pattern)."""
_COARSE = _by_space(r"[ \t\n\r]*[^ \t\n\r]+(?:[\t\n\r][ \t\n\r]*[^ \t\n\r]+)*(?:[\t\n\r][ \t\n\r]*\Z)?|[ \t\n\r]+")
"""A cut only where a space follows something else: newer patterns join punctuation with the line's end."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a `ByteLevel` pre-tokenizer cuts by (Radford et al. 2019)."""
_FOREIGN = r"[ \t\n\r]?[^ \t\n\r]*[^\x00-\x7f][^ \t\n\r]*"
_LINE_END = r"(?:[\r\n](?:[ \t\n\r]*[\r\n])?)?"
"""A word with a character beyond ASCII, and the lines' ends after it, which newer patterns may join with it."""
_IN_ASCII = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9", r"\p{Lu}": "A-Z", r"\p{Ll}": "a-z", r"\p{M}": "", r"\p{Lm}": ""}

_SPLITTERS = {"ByteLevel", "Split", "Digits", "Punctuation"}
_PROBES = (
    "def f(x, y=1):\n    return x + y  # sum\n\n\nclass A:\n\tpass\n",
    "It's  we'll   they'D     1234 5,678.90\r\n\r\n  end  \n ",
    " leading;\n\n\tTabs\t\tand   \n   spaces \t mixed !?\n)]}\n\n    x=='y'...\n",
    "naïve 漢字仮名 и кириллица مرحبا بالعالم  שלום \U0001f600\U0001f468\u200d\U0001f469 e\u0301 ﬁ ½ ²³ \n",
    "\n".join(" " * width + "word" + " " * width for width in range(18)),
    "a" + "\t" * 5 + "b" + "\n" * 5 + "c" + "\r\n" * 3 + "d \n e\n f \t g\t h\r i",
    "wörd;\nfoo\n(ü)\n  bar ö!\n  \n end\n\né\n\tx \n ß\r\n\r\n  y «z»\n",
    "<b>x</b> <|y|> ``` --- === *** $a_1^2$ \\begin{x} #!/bin/sh\n%%\n@@ ++ -- // \n// a",
)


class WordEncoder:
    """Encodes texts without special tokens; text that spells a special token stays text.

    Attributes:
        by_word: whether texts are cut into words; otherwise every text is encoded whole.
    """

    def __init__(self, tokenizer_json: str, words: bool = True) -> None:
        """Args: tokenizer_json: the text of a `tokenizer.json`; words: false encodes every text whole."""
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(tokenizer_json)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._known: dict[str, bytes] = {}
        stated = json.loads(tokenizer_json)
        self._added = _added_words(stated)
        self._cut = self._find_cut(stated) if words else None
        self._known.clear()

    @property
    def by_word(self) -> bool:
        return self._cut is not None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """uint32 ids of every text.

        Raises ValueError if the words of a text do not give the ids of the whole, which no known tokenizer does.
        """
        if self._cut is None:
            return [np.frombuffer(ids, dtype=np.uint32) for ids in self._whole(texts)]
        encoded = [self._encode_one(text, self._cut) for text in texts]
        self._check(texts, encoded)
        return encoded

    def _whole(self, texts: Sequence[str]) -> list[bytes]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32).tobytes() for encoding in encodings]

    def _encode_one(self, text: str, cut: _Cut) -> np.ndarray:
        return np.frombuffer(b"".join(self._piece(piece, cut) for piece in pieces(text)), dtype=np.uint32)

    def _piece(self, text: str, cut: _Cut) -> bytes:
        if (self._added and self._added.search(text)) or (words := cut.words(text)) is None:
            return self._whole([text])[0]
        known = self._known
        if fresh := set(words).difference(known):
            if len(known) > _MOST_WORDS:
                known.clear()
                fresh = set(words)
            known.update(zip(fresh, self._whole(list(fresh)), strict=True))
        return b"".join(map(known.__getitem__, words))

    def _check(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> None:
        for text, ids in zip(texts, encoded, strict=True):
            if len(text) <= _CHECKED:
                if self._whole([text])[0] != ids.tobytes():
                    raise ValueError(
                        f"the tokenizer's ids of {text[:60]!r} are not those of its words; set launch.word_cache=false"
                    )
                return

    def _find_cut(self, stated: dict[str, Any]) -> _Cut | None:
        if not _cuts_first(stated):
            return None
        whole = self._whole(_PROBES)
        for cut in _cuts(stated):
            self._known.clear()
            if all(self._piece(probe, cut) == ids for probe, ids in zip(_PROBES, whole, strict=True)):
                return cut
        return None


def pieces(text: str) -> list[str]:
    """A text cut where a space stands between two visible characters, into pieces of some ten thousand characters."""
    found, start = [], 0
    while len(text) - start > 2 * _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        found.append(text[start : cut.start()])
        start = cut.start()
    return [*found, text[start:]]


def _cuts(stated: dict[str, Any]) -> list[_Cut]:
    """The ways in which a tokenizer's text may be cut, the finest first.

    One that cuts by one pattern cuts words of ASCII by this pattern here too, and a word with another character stays
    whole. Where several steps cut one after the other, white space may be divided otherwise, so it is kept together.
    """
    splitter = stated["pre_tokenizer"]
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    found = [_GPT2 for step in steps if step["type"] == "ByteLevel" and step["use_regex"]]
    found += [step.get("pattern", {}).get("Regex", r"\p{}") for step in steps if step["type"] != "ByteLevel"]
    if len(found) != 1 or r"\p{" in (own := _in_ascii(found[0])):
        return [_COARSE]
    try:
        ends = [re.compile(f"{_FOREIGN}{end}|{own}") for end in ("", _LINE_END)]
        return [*(_Cut(end, re.compile(own)) for end in ends), _FINE, _COARSE]
    except re.error:
        return [_COARSE]


def _in_ascii(pattern: str) -> str:
    """A pattern with classes of Unicode in terms of ASCII alone."""
    parts = []
    for part in re.split(r"(\[(?:\\.|[^\]\\])*\])", pattern):
        bracketed = part.startswith("[")
        for name, letters in _IN_ASCII.items():
            part = part.replace(name, letters if bracketed or not letters else f"[{letters}]")
        parts.append(part)
    return "".join(parts)


def _cuts_first(stated: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` cuts text by patterns that never look back, and merges without chance."""
    splitter = stated.get("pre_tokenizer") or {}
    steps = splitter["pretokenizers"] if splitter.get("type") == "Sequence" else [splitter]
    known = all(step.get("type") in _SPLITTERS and not step.get("add_prefix_space") for step in steps)
    behind = any("(?<" in json.dumps(step.get("pattern", "")) for step in steps)
    fixed = not stated["model"].get("dropout")
    plain = not any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"])
        for token in stated["added_tokens"]
    )
    return known and not behind and fixed and plain


def _added_words(stated: dict[str, Any]) -> re.Pattern[str] | None:
    """What a tokenizer finds in text before it cuts it; special tokens are no part of it, as text may spell them."""
    added = [re.escape(token["content"]) for token in stated["added_tokens"] if not token["special"]]
    return re.compile("|".join(added)) if added else None
