"""The only door through which weights come into memory. Safetensors only, no code shipped with the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.architecture.custom_models import empty_model, register_custom_models
from pipeline.models.directory import check_side_files, read_config
from pipeline.models.files.reference import is_reference, read_reference
from pipeline.models.files.tokenizer_files import check_converted, check_tokenizer, is_converted
from pipeline.models.plain_decoding import plain_decoding

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}

# Said, not left to the default: transformers would ask at the terminal whether code may be run.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load(path: str | Path, dtype: torch.dtype | str = "auto", attention: str = "auto") -> PreTrainedModel:
    """Load the causal language model saved in `path`, on the CPU and in evaluation mode.

    It decodes greedily, see `plain_decoding`, whatever its own generation_config.json says.

    Args:
        path: a `save_pretrained` directory, or a model by reference to another.
        dtype: a torch dtype, or "auto" for the one the weights are stored in.
        attention: "auto" (the library's choice), "sdpa", "eager", "flex" or "flash".

    Raises:
        ValueError: the directory holds no readable model, or its weights do not fill the architecture.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r} is not known; use one of {', '.join(ATTENTION)}")
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    options["generation_config"] = plain_decoding(Path(path))
    options["ignore_mismatched_sizes"] = True  # they are in the report, and refused below by name and shape
    if ATTENTION[attention]:
        options["attn_implementation"] = ATTENTION[attention]
    register_custom_models(read_config(Path(path)).get("model_type"))
    with _quiet_loading():
        load_form = _load_referred if is_reference(Path(path)) else _load_whole
        model, report = load_form(Path(path), options)
    report["unexpected_keys"] = {
        name for name in report["unexpected_keys"] if not _predicts_further(name, model.config)
    }
    problems = {k: sorted(v, key=str) for k, v in report.items() if v and k != "conversion_errors"}
    if problems:
        raise ValueError(f"the weights in {path} do not match their config.json: {_in_words(problems)}")
    return model.eval()


def _in_words(problems: Mapping[str, list[Any]]) -> str:
    """What transformers reports of loading, a few of each kind."""
    told = []
    for kind, found in problems.items():
        few = [
            f"{one[0]} has shape {list(one[1])} and needs {list(one[2])}" if isinstance(one, tuple) else str(one)
            for one in found[:4]
        ]
        told.append(f"{kind}: {', '.join(few)} ({len(found)})")
    return "; ".join(told)


def _predicts_further(name: str, config: Any) -> bool:
    """Whether a tensor is of the blocks for multi-token prediction that the config announces.

    transformers leaves them out, but knows them by the depth of the models that it was written for alone.
    """
    text = config.get_text_config()
    depth, count = getattr(text, "num_hidden_layers", 0), getattr(text, "num_nextn_predict_layers", None) or 0
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return found is not None and depth <= int(found.group(1)) < depth + count


def _load_whole(path: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(str(path), **_LOCAL, **options)


def _load_referred(path: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `from_pretrained` does with one directory, for tensors that lie in several and have other names there."""
    import safetensors
    import torch
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled

    from pipeline.models.save import DTYPES

    stored = read_reference(path)
    config, empty = transformers.AutoConfig.from_pretrained(str(path), **_LOCAL), empty_model(path)
    if options["dtype"] == "auto" and config.dtype is None:
        floats = (DTYPES[s.dtype] for s in stored.values() if s.dtype in ("F64", "F32", "F16", "BF16"))
        options = {**options, "dtype": next(floats, torch.float32)}
    with ExitStack() as opened:
        paths = {s.file for s in stored.values()}
        files = {file: opened.enter_context(safetensors.safe_open(file, "pt")) for file in paths}
        # DeepSpeed's third stage hands the values to torch; all else reads a slice when its turn comes.
        take = "get_tensor" if is_deepspeed_zero3_enabled() else "get_slice"
        values = {name: getattr(files[s.file], take)(s.name) for name, s in stored.items()}
        model, report = type(empty).from_pretrained(None, config=config, state_dict=values, **options)
    _part(model)
    model.config.name_or_path = model.name_or_path = str(path)
    return model, report


def _part(model: Any) -> None:
    """Give each parameter memory of its own: names that refer to one stored tensor are loaded as one mapped range."""
    seen: set[int] = set()
    for parameter in model.parameters():  # yields a tied parameter once
        if parameter.data_ptr() in seen:
            parameter.data = parameter.data.clone()
        seen.add(parameter.data_ptr())


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved in `path`.

    Raises:
        ValueError: there is none, or transformers cannot read it or reads it as another.
    """
    import transformers

    check_tokenizer(Path(path))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), **_LOCAL)
    except Exception as error:  # of the tokenizers' Rust code, of plain type
        check_side_files(Path(path))
        raise ValueError(
            f"transformers cannot read the tokenizer in {path}: {type(error).__name__}: {str(error)[:300]}; copy the "
            "tokenizer's files of the model again"
        ) from error
    if is_converted(Path(path)):
        check_converted(Path(path), tokenizer)
    return tokenizer


class _quiet_loading:  # noqa: N801
    """Weight-loading progress bars say nothing that the stage's own progress does not."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on:
            logging.enable_progress_bar()
