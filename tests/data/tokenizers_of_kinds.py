"""Small tokenizers of many kinds: what they put around a text, how they cut it, and tokens beyond their vocabulary."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[gMASK]"]
CORPUS = ["How many blocks has the grown model? Forty blocks.", "def f(x):\n    return x + 1\n", "trees grow of trees"]


def _template(single):
    names = [part for part in single.split() if part != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[(name, SPECIAL.index(name)) for name in names])


BYTE_LEVEL = processors.ByteLevel(trim_offsets=False)
AROUND = {
    "none": (None, [], []),
    "bytes": (BYTE_LEVEL, [], []),
    "bos": (_template("<s> $A"), [1], []),
    "eos": (_template("$A </s>"), [], [2]),
    "both": (_template("<s> $A </s>"), [1], [2]),
    "eos before": (_template("</s> $A"), [2], []),
    "several": (_template("[gMASK] <s> $A"), [5, 1], []),
    "cls": (_template("[CLS] $A [SEP]"), [3], [4]),
    "sequence": (processors.Sequence([BYTE_LEVEL, _template("<s> $A </s>")]), [1], [2]),
    "roberta": (processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False), [1], [2]),
    "bert": (processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3)), [3], [4]),
}
"""By name: the post-processor, the ids it puts before a text, and those it puts behind."""


def metaspace(scheme):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    return backend, ["▁"]


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend, []


def prepending():
    """As Llama 2's tokenizer.json: the normalizer writes a blank before the text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend, ["▁"]


CUTS = {
    "byte-level": byte_level,
    "metaspace": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "prepending": prepending,
}


def make(around="none", cut="byte-level", added=(), **options):
    """A fast tokenizer. added: tokens behind the vocabulary that are not special."""
    backend, letters = CUTS[cut]()
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *letters, "\n", "\t"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    if AROUND[around][0] is not None:
        backend.post_processor = AROUND[around][0]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    names = {"bos_token": "<s>", "eos_token": "</s>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
