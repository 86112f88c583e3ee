"""A tokenizer that is SentencePiece's model alone: read as that model, or refused with what to do."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from pipeline.models import load_tokenizer
from pipeline.models.agreement import check_directory
from pipeline.models.files import tokenizer_files
from pipeline.models.files.tokenizer_files import check_converted, is_converted, vocabulary_hash

PIECES = ["<unk>", "\u2581the", "\u2581cat", "\u2581sat", "s", "1"]


@pytest.fixture
def directory(make_model, tmp_path):
    """A model whose tokenizer is a SentencePiece model alone."""
    made = shutil.copytree(make_model(), tmp_path / "m", ignore=shutil.ignore_patterns("token*"))
    (made / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    return made


@pytest.fixture
def installed(monkeypatch):
    """A function that sets which packages are taken to be installed."""

    def only(*names):
        monkeypatch.setattr(tokenizer_files, "find_spec", lambda name: name if name in names else None)

    return only


@pytest.mark.parametrize("look", [check_directory, load_tokenizer])
@pytest.mark.parametrize(("there", "missing"), [((), "sentencepiece and protobuf"), (("sentencepiece",), "protobuf")])
def test_packages_that_it_takes_are_named_before_anything_is_loaded(directory, installed, look, there, missing):
    installed(*there)
    with pytest.raises(ValueError, match=rf"which takes {missing} to read; run pip install sentencepiece protobuf"):
        look(directory)


def test_one_in_the_format_of_tiktoken_names_that(directory, installed):
    (directory / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    installed("sentencepiece", "google.protobuf")
    with pytest.raises(ValueError, match="pip install tiktoken"):
        check_directory(directory)
    assert not is_converted(directory)


def test_nothing_is_missing_where_they_are_installed_or_not_needed(directory, installed, make_model):
    installed("sentencepiece", "google.protobuf")
    check_directory(directory)
    assert is_converted(directory)
    installed()
    shutil.copyfile(make_model() / "tokenizer.json", directory / "tokenizer.json")
    check_directory(directory)
    assert not is_converted(directory)


class Words:
    """A SentencePiece model that splits at spaces."""

    def __init__(self, file):
        pass

    def vocab_size(self):
        return len(PIECES)

    def id_to_piece(self, index):
        return PIECES[index]

    def decode(self, ids):
        return "".join(PIECES[i] for i in ids).replace("\u2581", " ")

    def encode(self, text, out_type=int):
        return ["\u2581" + word for word in text.split()]


class Converted:
    """What transformers could make of it."""

    def __init__(self, begin):
        self.begin = begin

    def __call__(self, text, add_special_tokens):
        words = text.split()
        return {"input_ids": [self.begin + words[0], *("\u2581" + word for word in words[1:])]}

    def convert_ids_to_tokens(self, ids):
        return ids


def test_a_conversion_is_compared_with_the_model_itself(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", SimpleNamespace(SentencePieceProcessor=Words))
    check_converted(directory, Converted("\u2581"))
    with pytest.raises(ValueError, match=r"reads .*tokenizer\.model as another tokenizer.*tokenizer_class"):
        check_converted(directory, Converted(""))


def test_vocabularies_are_told_apart_by_what_ids_mean(make_model, tmp_path):
    """Not by how texts are padded or cut; a Unigram's pieces and tokens that were added count."""
    record = json.loads((make_model() / "tokenizer.json").read_text())

    def hash_of(**changes):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**record, **changes}))
        return vocabulary_hash(tmp_path)

    assert vocabulary_hash(tmp_path) is None
    plain = hash_of()
    assert plain == vocabulary_hash(make_model()) == hash_of(truncation={"max_length": 4})
    added = [*record["added_tokens"], {"content": "<new>", "id": 299}]
    pieces = [["a", -1.0], ["b", -2.0]]
    others = [hash_of(added_tokens=added), *(hash_of(model={"vocab": one}) for one in (pieces, pieces[::-1]))]
    assert len({plain, *others}) == 4 and None not in others
    (tmp_path / "tokenizer.json").write_text("{")
    assert vocabulary_hash(tmp_path) is None
