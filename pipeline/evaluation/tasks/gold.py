"""How likely a model finds the right answer: its loss in bits per byte, and the margin to the best wrong option.

Whether the right option was picked is one bit an item, and most items do not change it. How likely the right answer was
is a number, changes on every item, and comes out of the same log-likelihoods: options and last words (LAMBADA) cost no
pass of their own. Of an answer that the model writes (GSM8K) the right one is scored after the same prompt, by one
teacher-forced pass over prompt and answer; what prompts begin with in common is run once.

The bytes are those of the answer's own text in UTF-8, as lm-evaluation-harness counts them: the space between prompt
and answer is predicted and counts in the loss, but not in the bytes. Where the options stand in the prompt
and are followed by the same words (WinoGrande), the answer is these words. Of several right answers (TruthfulQA's mc2,
labels) bits and bytes are the mean over them. A task's value is the mean over items, each weighing as in its score.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.tasks.samples import responses_of
from pipeline.records.gold import GoldLoss


@dataclass(frozen=True)
class ScoredOption:
    """An answer and its natural log-probability.

    `length` is what the metric divides that by when it ranks options: 1, characters, bytes or tokens.
    """

    text: str
    logprob: float
    length: float = 1.0


def gold_loss(options: Sequence[ScoredOption], right: Collection[int]) -> GoldLoss | None:
    """The loss of the right ones of an item's options; None if none is right, or one has probability 0.

    The margin is that of the best right over the best wrong option by log-probability per `length`, at the right one's
    length: its sign says whether the metric picks a right one.
    """
    rights = [option for place, option in enumerate(options) if place in right]
    wrongs = [option for place, option in enumerate(options) if place not in right]
    if not rights or not all(math.isfinite(option.logprob) for option in rights):
        return None
    bits = -math.fsum(option.logprob for option in rights) / len(rights) / math.log(2)
    num_bytes = sum(num_answer_bytes(option.text) for option in rights) / len(rights)
    return GoldLoss(bits, num_bytes, _margin(rights, wrongs))


def _margin(rights: Sequence[ScoredOption], wrongs: Sequence[ScoredOption]) -> float | None:
    if not wrongs:
        return None
    best_right, best_wrong = (max(of, key=_rank) for of in (rights, wrongs))
    margin = (_rank(best_right) - _rank(best_wrong)) * best_right.length / math.log(2)
    return margin if math.isfinite(margin) else None


def _rank(option: ScoredOption) -> float:
    return option.logprob / option.length


def num_answer_bytes(text: str) -> int:
    """Bytes of an answer in UTF-8 without white space in front of it, at least 1."""
    return len((text.lstrip() or text).encode("utf-8", "surrogatepass")) or 1


def gold_losses(lm: Any, task: Any, samples: Sequence[Mapping[str, Any]], metric: str) -> list[GoldLoss | None]:
    """Of every document that lm-evaluation-harness scored; None where no right answer is known or can be scored.

    `lm` is asked only where the task has answers written. One behind a server names in `unscored` the errors that mean
    that the server tells no log-probabilities of a prompt; then this raises UnscoredError.
    """
    kinds = {"multiple_choice": _of_options, "loglikelihood": _of_continuation}
    if task.OUTPUT_TYPE in kinds:
        return [kinds[task.OUTPUT_TYPE](task, sample, metric) for sample in samples]
    return _of_written(lm, task, samples) if task.OUTPUT_TYPE == "generate_until" else [None] * len(samples)


class UnscoredError(ValueError):
    """The right answers have a loss, but the model's server does not tell it."""


def _of_options(task: Any, sample: Mapping[str, Any], metric: str) -> GoldLoss | None:
    choices = list(map(str, task.doc_to_choice(sample["doc"])))
    lengths = [_length(choice, metric) for choice in choices]
    # Where the options stand in the prompt, what is scored is the same text after each.
    texts = [str(sample["target"])] * len(choices) if task.multiple_input else choices
    logprobs = [float(response[0]) for response in responses_of(sample)]
    rows = zip(texts, logprobs, lengths, strict=False)  # beyond them there may be options without their prompt
    return gold_loss([ScoredOption(*row) for row in rows], _right(task, sample["doc"], choices))


def _of_continuation(task: Any, sample: Mapping[str, Any], metric: str) -> GoldLoss | None:
    ((logprob, _),) = responses_of(sample)
    return gold_loss([ScoredOption(str(sample["target"]), float(logprob))], [0])


def _length(choice: str, metric: str) -> float:
    """What lm-evaluation-harness divides an option's log-probability by."""
    return {"acc_norm": len(choice), "acc_bytes": len(choice.encode("utf-8", "surrogatepass"))}.get(metric, 1) or 1


def _right(task: Any, document: Mapping[str, Any], choices: Sequence[str]) -> set[int]:
    """Places of the right options: what the task takes for the target.

    A task that judges by a function of its own may have a constant there, which says nothing about what is right; then
    they are those that the document marks, if it does.
    """
    if callable(task.config.process_results) and isinstance(task.config.doc_to_target, int):
        return next(_marked(document, choices), set())
    target = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    found = target if isinstance(target, list | tuple) else [target]
    places = [choices.index(one) if isinstance(one, str) and one in choices else one for one in found]
    return {one for one in places if isinstance(one, int) and 0 <= one < len(choices)}


def _marked(document: Mapping[str, Any], choices: Sequence[str]) -> Iterator[set[int]]:
    """The options labelled 1, where a document keeps `choices` and `labels` side by side (TruthfulQA)."""
    for value in document.values():
        if isinstance(value, Mapping) and list(value.get("choices") or ()) == choices:
            labels = list(value.get("labels") or ())
            if len(labels) == len(choices) and set(labels) <= {0, 1}:
                yield {place for place, label in enumerate(labels) if label}


def _of_written(lm: Any, task: Any, samples: Sequence[Mapping[str, Any]]) -> list[GoldLoss | None]:
    from lm_eval.api.instance import Instance
    from lm_eval.api.utils import maybe_delimit

    texts = [_written(lm, task, sample) for sample in samples]
    requests = []
    for number, (sample, own) in enumerate(zip(samples, texts, strict=True)):
        context = str(sample["arguments"][0][0])
        for place, text in enumerate(own):
            continuation = maybe_delimit(context, text, task.config.target_delimiter)[len(context) :]
            requests.append(Instance("loglikelihood", {}, (context, continuation), place, (task.task_name, number, 1)))
    try:
        scores = iter(lm.loglikelihood(requests) if requests else ())
    except getattr(lm, "unscored", ()) as error:
        raise UnscoredError(f"The server tells no log-probability of a right answer: {error}") from error
    return [
        gold_loss([ScoredOption(text, next(scores)[0]) for text in own], range(len(own))) if own else None
        for own in texts
    ]


def _written(lm: Any, task: Any, sample: Mapping[str, Any]) -> list[str]:
    """The right answers as the examples of a prompt spell them, those that fit into the model's window."""
    target = sample["target"]
    if task.config.doc_to_choice is not None and isinstance(target, int):
        target = task.doc_to_choice(sample["doc"])[target]
    texts = [str(text) for text in (target if isinstance(target, list | tuple) else [target])]
    return [text for text in texts if text.strip() and len(lm.tok_encode(text)) < lm.max_length]
