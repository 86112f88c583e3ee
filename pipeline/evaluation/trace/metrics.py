"""TRACE's metrics of a written answer, each in [0, 1]: exact match, ROUGE-L, edit similarity and SARI.

They are those of the packages that TRACE's code imports: PyPI `rouge` 1.0.1, `fuzzywuzzy` without python-Levenshtein,
and `sari` of huggingface/evaluate. An empty prediction or reference scores 0, but for SARI, which has a value for it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

_TINY = 1e-8
"""What `rouge` adds to a denominator that may be 0."""
_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_LONGEST = 4
"""Words of the longest n-grams of SARI."""


def exact_match(prediction: str, reference: str) -> float:
    """1 where the two are the same text, letter by letter."""
    return float(bool(prediction) and prediction == reference)


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L, the F-measure of the union of longest common subsequences, as PyPI `rouge` 1.0.1 computes it.

    Sentences end at a full stop. Words are counted once each, in the texts and in the union, whatever their number.
    Which of several longest subsequences is taken matters, and so does which of the two texts is the reference.
    """
    hypothesis, wanted = _sentences(prediction), _sentences(reference)
    if not hypothesis or not wanted:
        return 0.0
    union = {word for one in wanted for other in hypothesis for word in _common(one, other)}
    recall = len(union) / len({word for sentence in wanted for word in sentence})
    precision = len(union) / len({word for sentence in hypothesis for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + _TINY))


def edit_similarity(prediction: str, reference: str, *, rounded: bool) -> float:
    """The ratio of matching characters to all of both texts, found as difflib finds them.

    Args:
        rounded: to whole percents, as `fuzzywuzzy.fuzz.ratio` gives it, which leaves characters that are frequent in a
            long reference out of the search (difflib's "autojunk").
    """
    if not prediction or not reference:
        return 0.0
    ratio = difflib.SequenceMatcher(None, prediction, reference, autojunk=rounded).ratio()
    return round(100 * ratio) / 100 if rounded else ratio


def code_of(text: str) -> str:
    """Py150's text with its placeholders of literals written out: `<STR_LIT:name>` is name."""
    text = text.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _LITERAL.sub(lambda found: found.group(2), text)


def sari(source: str, prediction: str, references: Sequence[str]) -> float:
    """SARI (Xu et al. 2016, ACL Q16-1029) of one text: the mean of F1 of what was kept, precision of what was deleted
    and F1 of what was added, over n-grams of 1 to 4 words, in lower case, tokenised as sacrebleu's 13a; 0/0 is 1."""
    texts = [_tokenised(text) for text in (source, prediction, *references)]
    kept, deleted, added = zip(*(_operations([_ngrams(text, n) for text in texts]) for n in _sizes()), strict=True)
    return sum(sum(scores) / _LONGEST for scores in (kept, deleted, added)) / 3


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; one of blanks alone has an empty word, as in `rouge`."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """The words of a longest common subsequence; of several the one that `rouge` comes to."""
    lengths = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, word in enumerate(x, 1):
        for j, other in enumerate(y, 1):
            above, left = lengths[i - 1][j], lengths[i][j - 1]
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if word == other else max(above, left)
    words, i, j = [], len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.append(x[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def _tokenised(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text.lower())).split(" ")


def _sizes() -> range:
    return range(1, _LONGEST + 1)


def _ngrams(words: Sequence[str], n: int) -> Counter[str]:
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def _operations(texts: Sequence[Counter[str]]) -> tuple[float, float, float]:
    """F1 of keeping, precision of deleting and F1 of adding, over the n-grams of a source, a prediction and references.

    Of the references their sum counts, so those of the other two are counted as often as there are references.
    """
    number = len(texts) - 2
    source, prediction = (Counter({gram: number * n for gram, n in one.items()}) for one in texts[:2])
    wanted: Counter[str] = sum(texts[2:], Counter())
    kept, keepable, deleted = source & prediction, source & wanted, source - prediction
    right_kept, right_deleted = kept & wanted, deleted - wanted
    keep_precision = _share(sum(n / kept[gram] for gram, n in right_kept.items()), len(kept))
    keep_recall = _share(sum(right_kept.values()), sum(keepable.values()))
    delete = _share(sum(n / deleted[gram] for gram, n in right_deleted.items()), len(deleted))
    added, addable = set(prediction) - set(source), set(wanted) - set(source)
    right_added = len(added & set(wanted))
    add = _f1(_share(right_added, len(added)), _share(right_added, len(addable)))
    return _f1(keep_precision, keep_recall), delete, add


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision > 0 or recall > 0 else 0.0
