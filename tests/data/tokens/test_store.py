from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens.encoding import Encoding, encode_all
from pipeline.data.tokens.store import ArrayWriter, open_store, store_paths, token_dtype, write_store


def test_the_smallest_type_that_holds_every_id():
    assert token_dtype(49152) == np.uint16
    assert token_dtype(65535) == np.uint16
    assert token_dtype(65536) == np.uint32


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_arrays_written_in_pieces_are_ordinary_npy_files(tmp_path, length):
    values = np.arange(length) % 7
    with ArrayWriter(tmp_path / "a.npy", np.dtype(np.uint16)) as writer:
        for start in range(0, length, 300):
            writer.write(values[start : start + 300])
    read = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert read.dtype == np.uint16
    assert np.array_equal(read, values)
    assert (tmp_path / "a.npy").stat().st_size == 128 + 2 * length


def test_documents_survive_the_tokenizer_and_end_with_eos(tokenizer, tmp_path):
    texts = ["def f(x):\n    return x + 1\n", "ünïcode 漢字 \t ", "How many blocks?"]
    encoded = ((ids, None) for ids in encode_all(tokenizer, texts, Encoding()))
    assert write_store(tmp_path, "s", encoded, len(tokenizer))[0] == 3
    store = open_store(tmp_path, "s")
    assert isinstance(store.tokens, np.memmap)
    assert store.targets is None
    for number, text in enumerate(texts):
        ids = store.tokens[store.offsets[number] : store.offsets[number + 1]]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == text


def test_text_that_spells_a_special_token_stays_text(tokenizer):
    (ids,) = encode_all(tokenizer, ["a<|im_end|>b"], Encoding())
    assert (ids == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(ids[:-1]) == "a<|im_end|>b"
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]


def test_many_batches_equal_one(tokenizer, monkeypatch):
    texts = [f"document {number}" for number in range(20)]
    whole = list(encode_all(tokenizer, texts, Encoding()))
    monkeypatch.setattr("pipeline.data.tokens.encoding._BATCH_CHARS", 25)
    assert all(np.array_equal(a, b) for a, b in zip(whole, encode_all(tokenizer, texts, Encoding()), strict=True))


def test_targets_are_kept_beside_the_tokens(tmp_path):
    documents = [(np.array([1, 2, 3]), np.array([0, 1, 1])), (np.array([4]), np.array([0]))]
    assert write_store(tmp_path, "s", iter(documents), 70_000) == (2, 4)
    store = open_store(tmp_path, "s")
    assert (store.tokens.dtype, store.targets.dtype, store.offsets.dtype) == (np.uint32, np.uint8, np.int64)
    assert store.tokens.tolist() == [1, 2, 3, 4]
    assert store.targets.tolist() == [0, 1, 1, 0]
    assert store.lengths.tolist() == [3, 1]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_store(tmp_path, "s", iter([(np.array([1, 2, 3]), None)]), 10)
    np.save(store_paths(tmp_path, "s")[1], np.array([0, 2]))
    with pytest.raises(ValueError, match="3 tokens, offsets end at 2"):
        open_store(tmp_path, "s")


def test_ids_without_a_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source 's' holds the token id 10, but the model's embedding has 10 rows"):
        write_store(tmp_path, "s", iter([(np.array([1, 10]), None)]), 10)


def test_a_tokenizer_must_be_fast_and_know_an_end(tokenizer):
    class Slow:
        eos_token_id = 1

    with pytest.raises(ValueError, match="fast"):
        list(encode_all(Slow(), ["x"], Encoding()))
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="eos_token"):
        list(encode_all(endless, ["x"], Encoding()))
