"""A GGUF file's weights as a plain `save_pretrained` directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from pipeline.file_io import grant


def convert_gguf(gguf: Path, target: Path, dtype: torch.dtype) -> None:
    """Dequantise `gguf` and save model and tokenizer to `target` in `dtype`.

    The loaded model is bound to its quantisation and refuses to be saved, so its weights are copied into a plain one.

    Raises:
        ValueError: the file does not fill the architecture that it names.
    """
    with _read_once():
        _convert(gguf, target, dtype)


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers parses the file for the config, for the weights and for the tokenizer, and makes the table of all
    names that tensors have once for each module: seconds each time."""
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    found = {name: vars(gguf)[name] for name in names}
    vars(gguf).update({name: cache(one) for name, one in found.items()})
    try:
        yield
    finally:
        vars(gguf).update(found)


def _convert(gguf: Path, target: Path, dtype: torch.dtype) -> None:
    import transformers

    source: dict[str, object] = {"gguf_file": gguf.name, "local_files_only": True}
    if hasattr(transformers, "GgufConfig"):
        source["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
    config = transformers.AutoConfig.for_model(**_plain(loaded.config.to_dict()))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise ValueError(f"{gguf.name} does not match its architecture: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    tokenizer.model_max_length = config.max_position_embeddings
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    grant(target)


def _plain(config: dict) -> dict:
    """Without the quantisation, and with fp32 numbers as people write them: 9.99999974e-06 is 1e-05."""
    config = {k: v for k, v in config.items() if k not in ("quantization_config", "_name_or_path", "dtype")}
    for key, value in config.items():
        if isinstance(value, float):
            config[key] = float(f"{value:.7g}")
    return config
