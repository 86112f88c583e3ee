"""A sample of lm-evaluation-harness for people to read: what the model was given, what it answered, what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def prompt(sample: Mapping[str, Any]) -> str:
    """The text before the answer; where options stand inside the text, what the first of them is given."""
    return str(sample["arguments"][0][0])


def answer(sample: Mapping[str, Any], metric: str) -> str:
    """The option that the model finds likeliest, by the metric's own normalisation, or the text that it wrote."""
    responses = sample["filtered_resps"]
    if isinstance(responses[0], str):
        return str(sample["resps"][0][0])
    options = _options(sample)
    if len(options) == 1:
        return options[0] if responses[0][1] else ""  # the text itself, or something else that is not known
    lengths = [max(len(option), 1) if metric == "acc_norm" else 1 for option in options]
    values = [response[0] / length for response, length in zip(responses, lengths, strict=True)]
    return options[values.index(max(values))]


def gold(sample: Mapping[str, Any]) -> str:
    """What counts as right, as text where the task names an option by its number."""
    target, options = sample["target"], _options(sample)
    is_number = isinstance(target, int) or (isinstance(target, str) and target.isdecimal())
    if is_number and len(options) > 1 and int(target) < len(options):
        return options[int(target)]
    return str(target)


def _options(sample: Mapping[str, Any]) -> list[str]:
    contexts, endings = zip(*((str(a), str(b)) for a, b in sample["arguments"]), strict=True)
    if len(set(endings)) == 1 and len(endings) > 1:
        return list(contexts)  # the options stand inside the text, the ending is common to all
    return [ending.removeprefix(" ") for ending in endings]
