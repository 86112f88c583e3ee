"""Whether models go together in a mix, and what is recorded as new in what is made of them."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.expansion.source import Source
from pipeline.models.architecture.shape import Shape
from pipeline.records.expansion import ExpansionMap

_WITHOUT_MEANING = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "initializer_range",
    "max_position_embeddings",
)  # fmt: skip
"""Keys of a config that do not change what is computed, beside ids of tokens and dropout: the first model's count."""


RELATED = 0.5


class ModelFacts(Protocol):
    """What is known of the models of an expansion before any work."""

    roles: Sequence[str]
    """Of the models beside the first."""

    def __call__(self, role: str, key: str) -> Any:
        """A fact, or None where it is not known."""


def check_facts(facts: ModelFacts, differences: bool) -> None:
    """Refuse models that cannot be mixed, by what is known of them before any work.

    Args:
        differences: whether differences to the first model are asked for.

    Raises:
        ValueError: another architecture, vocabulary, shape or way to tie the head, or a model that did not grow from
            the first one.
    """
    for role in facts.roles:
        for key in ("model_type", "num_blocks"):
            _compare(role, key, facts("model", key), facts(role, key))
        own, other = facts("model", "shape"), facts(role, "shape")
        if own is not None and other is not None:
            _compare_shapes(role, own, other)
        if differences and facts(role, "derived") is False:
            raise ValueError(
                f"differences to the model in the role model are asked for, and that in the role {role} was not made "
                "from it in this run; put the model that all of them came from in the role model, use method=linear or "
                "slerp, or ancestry=weights for models that came from it elsewhere"
            )


def _compare_shapes(role: str, own: Shape, other: Shape) -> None:
    _compare(role, "vocabulary", own.vocab, other.vocab)
    _compare(role, "tie_word_embeddings", own.tied, other.tied)
    _compare(role, "hidden_size", own.hidden, other.hidden)
    for index, (one, two) in enumerate(zip(own.blocks, other.blocks, strict=True)):
        _compare(role, f"shape of block {index}", *(dataclasses.replace(block, new=False) for block in (one, two)))


def _compare(role: str, key: str, own: Any, other: Any) -> None:
    if own is not None and other is not None and own != other:
        raise ValueError(
            f"only models of one architecture, shape and vocabulary can be mixed: {key} is {own} in the role model and "
            f"{other} in the role {role}"
        )


def check_alike(source: Source) -> None:
    """Refuse models whose files do not go together: all of what facts may not have told.

    Raises:
        ValueError: config.json or the vocabulary differ in what is computed, or a tensor is missing or of another
            shape; or a model has packs, whose record a mix would make untrue.
    """
    for role, other in source.others.items():
        own, theirs = (_compared(one.anatomy.text_config) for one in (source, other))
        for key in ("model_type", *sorted({*own, *theirs})):
            _compare(role, key, own.get(key, "not given"), theirs.get(key, "not given"))
        for name in sorted(set(source.tensors) ^ set(other.tensors)):
            held, lacks = ("model", role) if name in source.tensors else (role, "model")
            raise ValueError(f"{name} is in the files of the model in the role {held} and not in those of {lacks}")
        for name, stored in source.tensors.items():
            _compare(role, f"the shape of {name}", list(stored.shape), list(other.tensors[name].shape))
        _compare_vocabularies(role, source.directory, other.directory)
    for role, one in {"model": source, **source.others}.items():
        if one.expansion.packs:
            raise ValueError(
                f"the model in the role {role} has packs attached; detach them, mix, and attach them again"
            )


def check_related(source: Source) -> None:
    """Refuse models whose weights do not show that they came from the first: their differences to it are no update.

    Weights of models that were trained apart are at a right angle to each other; tuning turns them by far less.

    Raises:
        ValueError: the cosine over the matrices of the first block is below `RELATED`.
    """
    import torch

    from pipeline.expansion.values import pieces_of

    names = [name for name in source.tensors if (place := source.blocks.split(name)) and place[0] == 0]
    matrices = [name for name in names if len(source.tensors[name].shape) > 1 and source.anatomy.parameters_from(name)]
    for role, other in source.others.items():
        pairs = [[next(pieces_of(one.tensors[name])) for one in (source, other)] for name in matrices]
        found = torch.cosine_similarity(*(torch.cat(parts) for parts in zip(*pairs, strict=True)), dim=0).item()
        if not found >= RELATED:
            raise ValueError(
                f"the weights of the first block in the roles model and {role} have a cosine of {found:.2f}, that of "
                f"models where one came from the other is above {RELATED}; mix them by method=linear or slerp"
            )


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in _WITHOUT_MEANING and not key.endswith("_token_id") and "dropout" not in key
    }


def _compare_vocabularies(role: str, own: Path, other: Path) -> None:
    files = [directory / "tokenizer.json" for directory in (own, other)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    first, second = map(_token_ids, files)
    for token in sorted({*first, *second}, key=str):
        _compare(role, f"the id of token {token!r}", first.get(token, "none"), second.get(token, "none"))


def _token_ids(file: Path) -> dict[str, Any]:
    """token -> id, or what stands for it in a vocabulary that is a list."""
    record = json.loads(file.read_text(encoding="utf-8"))
    held = (record.get("model") or {}).get("vocab") or {}
    listed = held if isinstance(held, dict) else {entry[0]: index for index, entry in enumerate(held)}
    return {**listed, **{entry["content"]: entry["id"] for entry in record.get("added_tokens") or ()}}


def common_record(source: Source) -> ExpansionMap:
    """What the mix records as new: what all the models record, where they agree; else nothing, which is said."""
    own = _recorded(source.expansion)
    different = [role for role, other in source.others.items() if _recorded(other.expansion) != own]
    if not different:
        return source.expansion
    warnings.warn(
        f"the models in the roles model and {', '.join(different)} record different expansions, so that nothing in the "
        "mix is new: strategy new_blocks cannot train it, and no pack can be taken from it",
        stacklevel=2,
    )
    kept = {key: getattr(source.expansion, key) for key in ("fixed_parameters", "buffers")}
    return ExpansionMap(**kept)


def _recorded(record: ExpansionMap) -> dict[str, Any]:
    return {key: value for key, value in record.to_json().items() if key not in record.notes}
