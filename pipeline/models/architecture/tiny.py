"""Small models with random weights and a byte-level tokenizer, for tests and dry runs of the whole pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.file_io import grant

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_random(target: Path, config: Mapping[str, Any], dtype: str, seed: int) -> None:
    """Save a model of `config` (with `model_type`) with seeded random weights and a byte tokenizer that fits it.

    Raises:
        ValueError: the vocabulary is too small for the 256 bytes and the special tokens.
    """
    import torch
    import transformers

    tokenizer = byte_tokenizer()
    settings = dict(config)
    if settings["vocab_size"] < len(tokenizer):
        raise ValueError(f"vocab_size={settings['vocab_size']} is less than the byte tokenizer's {len(tokenizer)}")
    settings |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**settings), dtype=getattr(torch, dtype)
    )
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    tokenizer.model_max_length = settings["max_position_embeddings"]
    tokenizer.save_pretrained(target)
    grant(target)


def byte_tokenizer() -> Any:
    """A fast tokenizer with one token a byte, ChatML's special tokens and its template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, **{c: i + 3 for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
