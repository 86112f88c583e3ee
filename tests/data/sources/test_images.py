"""A table of pixels in an archive."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources.images import PictureFiles, PixelTable

ROWS = "0.,8.,16.,4.,1\n16.,16.,0.,0.,0\n"


def table(path, text=ROWS, name="data/tiny.csv.gz", **changes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, gzip.compress(text.encode()) if name.endswith(".gz") else text)
    settings = {"source": {"kind": "local"}, "member": name, "levels": 16, "answers": ["zero", "one"], "weight": 1.0}
    return PixelTable(**{**settings, **changes})


def pictures(path, *args, **changes):
    source = table(path, *args, **changes)
    return list(source.read(lambda _: path, lambda _: []))


@pytest.mark.parametrize("name", ["data/tiny.csv.gz", "tiny.csv"])
def test_a_row_is_an_image_and_the_number_of_its_answer(tmp_path, name):
    first, second = pictures(tmp_path / "a.whl", ROWS, name)
    assert first.pixels.tolist() == [[[0, 128], [255, 64]]] and first.pixels.dtype == np.uint8
    assert (first.answer, second.answer) == ("one", "zero") and first.id == f"{name}:0" != second.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3,0\n", "3 values in .* are no square image"),
        ("1,2,3,17,0\n", r"4 values in \[1.0, 17.0\] are no square image"),
        ("1,2,3,4,2\n", "answer 2.0 is not the number of one of 2 answers"),
        ("1,2,3,4,0.5\n", "answer 0.5 is not the number"),
        ("a,b,c,d,0\n", "tiny.csv.gz is no table of numbers between commas"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        pictures(tmp_path / "a.whl", text)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"weight=0.0 and levels=16 must be more than 0"):
        table(tmp_path / "a.whl", weight=0.0)


def files(root, rows, num_channels=1, size=2):
    (root / "images.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = PictureFiles({"kind": "local"}, "images.jsonl", num_channels, size, 1.0)
    return list(source.read(lambda _: root, lambda _: [path.name for path in root.iterdir()]))


def test_image_files_with_their_answers(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    rows = [{"image": "a.png", "answer": " red "}]
    (colour,), (grey,) = files(tmp_path, rows, 3), files(tmp_path, rows, 1)
    assert colour.pixels[:, 0, 0].tolist() == [255, 0, 0] and colour.pixels.shape == (3, 2, 2)
    assert grey.pixels.shape == (1, 2, 2) and grey.pixels[0, 1, 1] == 9 and colour.answer == "red"


@pytest.mark.parametrize(
    ("row", "size", "message"),
    [
        ({"image": "a.png", "answer": "x"}, 3, "a.png has 2 x 2 pixels, and image_size=3 is asked for"),
        ({"image": "b.png", "answer": "x"}, 2, "image 'b.png' is not among the folder's files"),
        ({"image": "a.png", "answer": " "}, 2, "or its answer is empty"),
        ({"image": "a.png"}, 2, "images.jsonl:1 is no object with image and answer"),
        ({"image": "images.jsonl", "answer": "x"}, 2, "images.jsonl is no image that can be read"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path, row, size, message):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        files(tmp_path, [row], size=size)
