from __future__ import annotations

import re

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"]
CORPUS = [
    "system user assistant You are a helpful assistant. How many blocks? Forty blocks.",
    "def f(x):\n    return x + 1\n",
]


def byte_level_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred entries; ends with <|im_end|>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=template
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(CHATML)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Builds such a tokenizer with another chat template."""
    return byte_level_tokenizer


SPELLED = re.compile(
    r"<\|[^<>{}|'\"\s]+\|>|<｜[^<>{}'\"\s]+｜>|<[a-z_]+\|>|<\|[a-z_]+>"
    r"|\[/?[A-Z_]{3,}\]|\[gMASK\]|</?s>|<(?:start|end)_of_[a-z]+>|<sop>"
)
"""Special tokens as chat templates spell them."""


def tokenizer_of(template, eos: str, *added: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens that a template spells; `added` are tokens that are not special.

    It has a token of two line ends, as most real ones have.
    """
    spelled = SPELLED.findall(template if isinstance(template, str) else "".join(template.values()))
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\s*\n+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=sorted({*spelled, "<s>", eos}),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*CORPUS, "one\n\n", "two\n\n", ".\n\n"] * 4, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token="<s>", chat_template=template)
    found.add_tokens(list(added))
    return found


@pytest.fixture(scope="session")
def make_tokenizer_of():
    """Builds a tokenizer for a template."""
    return tokenizer_of


@pytest.fixture(scope="session")
def learned_turns():
    """The texts that a tokenizer's template has an encoder learn of a conversation, one a run of learned tokens."""

    def turns(tokenizer, encoder, messages, tools=(), options=None) -> list[str]:
        ids, mask = encoder.encode(messages, tools, options)
        runs: list[list[int]] = []
        for before, (token, learned) in zip([0, *mask], zip(ids.tolist(), mask, strict=True), strict=False):
            if learned:
                runs += [] if before else [[]]
                runs[-1].append(token)
        return [tokenizer.decode(run) for run in runs]

    return turns
