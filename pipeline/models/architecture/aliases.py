"""Tensors that a model has under several names (tied embeddings), and what its config says of them.

transformers 5 ties two names where the config says so, unless the files store both with different values: then it loads
them as two tensors, whatever the config says. Other loaders (vLLM, transformers 4) go by the config.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.architecture.custom_models import empty_model

TIED = "tie_word_embeddings"


def aliases(model: Any) -> dict[str, tuple[str, ...]]:
    """All names of each parameter of a loaded model that has several, by each of these names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def is_untied(model: Any) -> bool:
    """Whether a loaded model's config ties tensors and its files stored them with different values.

    Raises:
        ValueError: of several ties some hold and some do not, which no config can say.
    """
    said = model.get_expanded_tied_weights_keys(all_submodels=True)
    shared = aliases(model)
    apart = [name for name, origin in said.items() if origin not in shared.get(name, ())]
    if apart and len(apart) < len(said):
        raise ValueError(
            f"config.json ties {', '.join(said)} to other tensors; {', '.join(apart)} differ from theirs and the "
            f"others do not, which no value of {TIED} describes. Store tied tensors once"
        )
    return bool(apart)


def untied(config: str) -> str:
    """The text of a config.json that ties nothing, in the model's own section and in those inside it."""
    record = json.loads(config)
    record[TIED] = False
    for section in record.values():
        if isinstance(section, dict) and TIED in section:
            section[TIED] = False
    return json.dumps(record, indent=2) + "\n"


def tied_names(directory: Path) -> dict[str, str]:
    """What transformers ties by the config in `directory`: {name of a parameter: the one that it is}."""
    return dict(empty_model(directory).all_tied_weights_keys)


def stored_name(name: str, prefix: str, stored: Collection[str]) -> str:
    """A tensor's name in its files, which may hold a model with or without the prefix of its body.

    The rule by which transformers finds them: GPT-2's own files say `wte.weight` for `transformer.wte.weight`.
    """
    shorter, longer = name.removeprefix(f"{prefix}."), f"{prefix}.{name}"
    return next((one for one in (name, shorter, longer) if one in stored), name) if prefix else name


def stored_apart(directory: Path, stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tensors that the config ties and the files store with different values, by their names there.

    Args:
        directory: a model directory.
        stored: its tensors, as `read_index` gives them.
    """
    if not _may_tie(directory, stored):
        return []
    model, pairs = empty_model(directory), []
    for tied in model.all_tied_weights_keys.items():
        name, origin = (_found(model, one, stored) for one in tied)
        if name in stored and origin in stored and not _equal(stored[name], stored[origin]):
            pairs.append((name, origin))
    return pairs


def _found(model: Any, name: str, stored: Collection[str]) -> str:
    """A parameter's name in files that hold it by its own name or by the one that transformers saves it under."""
    from transformers.core_model_loading import revert_weight_conversion

    saved = revert_weight_conversion(model, {name: model.get_parameter(name)})
    names = (stored_name(one, model.base_model_prefix, stored) for one in (name, *saved))
    return next((one for one in names if one in stored), name)


def _may_tie(directory: Path, stored: Mapping[str, Any]) -> bool:
    """Whether two matrices outside of the numbered blocks are of one shape, and the config does not untie them."""
    outside = [e.shape for n, e in stored.items() if len(e.shape) > 1 and not any(map(str.isdigit, n.split(".")))]
    config = json.loads((directory / "config.json").read_text())
    sections = [config, *(section for section in config.values() if isinstance(section, dict))]
    return len(set(outside)) < len(outside) and any(section.get(TIED, True) for section in sections)


def _equal(a: Any, b: Any) -> bool:
    import safetensors
    import torch

    values = []
    for entry in (a, b):
        with safetensors.safe_open(entry.file, "pt") as opened:
            values.append(opened.get_tensor(entry.name))
    return values[0].shape == values[1].shape and torch.equal(*values)
