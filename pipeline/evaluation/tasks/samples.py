"""What people read of one document that lm-evaluation-harness scored: prompt, the model's answer, the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def sample_texts(sample: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    """Prompt, answer and gold of a document.

    Of several options the answer is the one that the metric takes: the likeliest, or with `acc_norm` the likeliest per
    character. Of a text to be predicted (LAMBADA) it is whether greedy decoding gives it; of a generation, the text.
    """
    arguments, target = sample["arguments"], sample["target"]
    responses = responses_of(sample)
    prompt = str(arguments[0][0])
    if not isinstance(arguments[0][1], str):
        return prompt, str(responses[0]), str(target)
    if len(arguments) == 1:
        continuation = str(arguments[0][1])
        return prompt, continuation if responses[0][1] else "(something else)", continuation
    return prompt, *_choice(arguments, responses, target, metric)


def responses_of(sample: Mapping[str, Any]) -> list[Any]:
    """What the model gave for each request of a document, after the task's filter."""
    return [response[0] if _is_nested(response) else response for response in sample["filtered_resps"]]


def _choice(arguments: Sequence[Any], responses: Sequence[Any], target: Any, metric: str) -> tuple[str, str]:
    options = [str(continuation) for _, continuation, *_ in arguments]
    if len(set(options)) == 1:  # the options stand in the context and are followed by the same text
        options = [str(context) for context, *_ in arguments]
    lengths = [len(option.removeprefix(" ")) or 1 if metric == "acc_norm" else 1 for option in options]
    scores = [float(response[0]) / length for response, length in zip(responses, lengths, strict=True)]
    is_index = isinstance(target, int) and 0 <= target < len(options)
    return options[scores.index(max(scores))], options[target] if is_index else str(target)


def _is_nested(response: Any) -> bool:
    return isinstance(response, list | tuple) and bool(response) and isinstance(response[0], list | tuple)
