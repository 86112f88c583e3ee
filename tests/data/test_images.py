"""Images with answers: as tokens and pixels on disk, as packed rows, and what is held out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.data.corpus import Workspace, read_sources
from pipeline.data.images import HELD_OUT, HeldOutImages, ImageData, Layout, open_images, pixels_of
from pipeline.data.prepared import open_stream, unused, validation_rows
from pipeline.data.sources.images import Picture
from pipeline.data.tokens.special_tokens import spare_token
from pipeline.data.tokens.store import open_store
from tests.visual import TwoKinds

IGNORED = -100


def data(**changes):
    settings = {"question": "Where?", "num_patches": 4, "image_token": None, "held_out": HeldOutImages(0.25, 0)}
    return ImageData(**{"sources": {"a": TwoKinds(40, 1.0), "b": TwoKinds(12, 2.0)}, **settings, **changes})


def prepare(tokenizer, out, **changes):
    out.mkdir(exist_ok=True)
    place = Workspace(lambda _: out, lambda _: [], out, lambda **_: None)
    return data(**changes).prepare(tokenizer, place)


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    return out, prepare(tokenizer, out)


def test_a_document_is_its_image_the_question_and_the_answer(prepared, tokenizer):
    out, metrics = prepared
    manifest, token = read_sources(out), spare_token(tokenizer, None)
    assert manifest["kind"] == "image" and manifest["image_token_id"] == token and manifest["image_shape"] == [1, 4, 4]
    assert manifest["answers"] == ["above", "below"]
    stores, images = open_store(out, "a"), open_images(out, "a")
    answers = Layout.recorded(manifest, tokenizer)
    for number in range(3):
        ids = stores.tokens[stores.offsets[number] : stores.offsets[number + 1]].tolist()
        marks = stores.targets[stores.offsets[number] : stores.offsets[number + 1]].astype(bool)
        bright = images[number][0].astype(int).sum(1)
        answer = "above" if bright[:2].sum() > bright[2:].sum() else "below"
        assert ids[:7] == [tokenizer.bos_token_id, *[token] * 6]
        assert tokenizer.decode(ids[7:-1]) == f"Where? {answer}"
        assert tokenizer.decode(np.array(ids)[marks][:-1]) == f" {answer}" and ids[-1] == tokenizer.eos_token_id
        assert answers.pair(answer) == (ids[: int((~marks).sum())], np.array(ids)[marks][:-1].tolist())
    assert metrics["documents"] == manifest["sources"]["a"]["documents"] + manifest["sources"]["b"]["documents"]
    assert unused(out)["rejected"] == {"a": {}, "b": {}}


def test_equal_images_are_on_one_side_and_the_split_is_that_of_the_seed(prepared, tokenizer, tmp_path):
    out, metrics = prepared
    manifest = read_sources(out)
    assert manifest["sources"]["a"]["held_out_documents"] in (10, 11) and metrics["near_duplicates"] == 2
    sides = [{one.tobytes() for one in open_images(out, name)} for name in ("a", f"a.{HELD_OUT}")]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 39
    for seed, same in ((0, True), (1, False)):
        prepare(tokenizer, tmp_path / str(seed), held_out=HeldOutImages(0.25, seed))
        again = open_images(tmp_path / str(seed), f"a.{HELD_OUT}")
        assert ({one.tobytes() for one in again} == sides[1]) == same


def test_rows_hold_whole_documents_and_the_images_of_their_tokens(prepared, tokenizer):
    out, _ = prepared
    token = read_sources(out)["image_token_id"]
    stream = open_stream(out, 40, 0, packing="first_fit")
    (held,) = (rows for name, rows in validation_rows(out, tokenizer, 40, 80).items() if name == "a")
    for row in [*stream.batch(6), *held]:
        starts = np.flatnonzero((row["position_ids"] == 0) & (row["segment_ids"] >= 0))
        assert (row["input_ids"] == token).sum() == 6 * len(starts) == 6 * len(row["pixel_values"]) > 0
        assert row["pixel_values"].dtype == np.float32 and 0.75 < row["pixel_values"].max() <= 1
        for start, pixels in zip(starts, row["pixel_values"], strict=True):
            stop = start + int((row["segment_ids"] == row["segment_ids"][start]).sum())
            learned = row["labels"][start:stop]
            shown = "above" if pixels[0, :2].sum() > pixels[0, 2:].sum() else "below"
            assert tokenizer.decode(learned[learned != IGNORED][:-1]) == f" {shown}"
    assert sum(int((row["segment_ids"] >= 0).sum()) for row in held) <= 40


def test_a_stream_resumes_with_the_next_row(prepared):
    out, _ = prepared
    whole, cut = (open_stream(out, 40, 3, packing=None) for _ in range(2))
    whole.batch(3)
    state = whole.state_dict()
    cut.load_state_dict(state)
    for first, second in zip(whole.batch(4), cut.batch(4), strict=True):
        assert all(np.array_equal(first[key], second[key]) for key in first) and first.keys() == second.keys()


def test_stored_pixels_as_a_model_reads_them():
    assert pixels_of(np.array([0, 51, 255], dtype=np.uint8)).tolist() == [0.0, pytest.approx(0.2), 1.0]
    assert pixels_of(np.array([-3.0, 2.5], dtype=np.float32)).tolist() == [-3.0, 2.5]


@dataclasses.dataclass(frozen=True)
class Given:
    pictures: tuple
    weight: float = 1.0

    def read(self, locate, listing):
        return iter(self.pictures)


def picture(number, size=4):
    return Picture(str(number), np.full((1, size, size), number, dtype=np.uint8), "x")


def test_what_cannot_be_prepared_is_refused(tokenizer, tmp_path, prepared):
    with pytest.raises(ValueError, match="2 images, 1 of them different, are too few to hold one out"):
        prepare(tokenizer, tmp_path, sources={"a": Given((picture(1), picture(1)))})
    with pytest.raises(ValueError, match="images of several forms"):
        prepare(tokenizer, tmp_path, sources={"a": Given((picture(1), picture(2), picture(3, size=5)))})
    with pytest.raises(ValueError, match=r"data.question is empty; ask something about the images"):
        data(question=" ")
    with pytest.raises(ValueError, match=r"held_out.fraction=0.0 must be more than 0 and at most 0.5"):
        HeldOutImages(0.0, 0)
    with pytest.raises(ValueError, match="packing=fill cuts a document where a row ends, and images are whole"):
        open_stream(prepared[0], 40, 0, packing="fill")
    with pytest.raises(ValueError, match="this stage trains on chat data, but its data is of kind image"):
        open_stream(prepared[0], 40, 0, overlong="skip")
    with pytest.raises(ValueError, match="seq_len=9 has room for no image: the shortest document has"):
        open_stream(prepared[0], 9, 0)


def test_the_token_of_images_is_one_that_texts_do_not_need(tokenizer):
    assert tokenizer.convert_ids_to_tokens(spare_token(tokenizer, None)) == "<|endoftext|>"
    assert tokenizer.convert_ids_to_tokens(spare_token(tokenizer, "</s>")) == "</s>"
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is none; the tokenizer has '<\|endoftext\|>', '</s>'"):
        spare_token(tokenizer, "<|im_end|>")
