"""The only door through which weights come into memory. Safetensors only, no remote code unless it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.directory import has_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}


def load(
    path: str | Path,
    dtype: torch.dtype | str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the causal language model saved in `path`, on the CPU and in evaluation mode.

    Args:
        path: a `save_pretrained` directory.
        dtype: a torch dtype, or "auto" for the one the weights are stored in.
        attention: "auto" (the library's choice), "sdpa", "eager", "flex" or "flash".
        trust_remote_code: run Python code shipped with the weights. Off unless the user asks for it.

    Raises:
        ValueError: the directory holds no readable model, or its weights do not fill the architecture.
    """
    import transformers

    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r} is not known; use one of {', '.join(ATTENTION)}")
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    if ATTENTION[attention]:
        options["attn_implementation"] = ATTENTION[attention]
    with _quiet_loading():
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), output_loading_info=True, local_files_only=True, **options
        )
    problems = {k: sorted(map(str, v)) for k, v in report.items() if v and k != "conversion_errors"}
    if problems:
        found = "; ".join(f"{kind}: {', '.join(names[:4])} ({len(names)})" for kind, names in problems.items())
        raise ValueError(f"the weights in {path} do not match their config.json: {found}")
    return model.eval()


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved in `path`.

    Raises:
        ValueError: there is none.
    """
    import transformers

    if not has_tokenizer(Path(path)):
        raise ValueError(f"{path} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the model's")
    return transformers.AutoTokenizer.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=trust_remote_code
    )


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
