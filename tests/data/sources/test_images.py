"""A table of pixels in an archive."""

from __future__ import annotations

import gzip
import io
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
        ({"image": "a.png", "answer": None}, 2, "images.jsonl:1 is no object with image and answer"),
        ({"image": None, "answer": "x"}, 2, "a row without an image belongs into data of text"),
        ({"answer": "text alone"}, 2, "a row without an image belongs into data of text"),
        (["a.png", "x"], 2, "images.jsonl:1 is no object with image and answer"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path, row, size, message):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        files(tmp_path, [row], size=size)


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(mode="RGB", size=(2, 2)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 200, (*size, len(mode)), dtype=np.uint8).squeeze(), mode)


BITMAP = encoded(noise(), "BMP")
HUGE = BITMAP[:18] + b"\xff\xff\0\0\xff\xff\0\0" + BITMAP[26:]  # of 65,535 x 65,535 pixels, as its header says


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.png is no image that can be read"),
        (encoded(noise(size=(20, 20)))[:600], "a.png is no image that can be read: image file is truncated"),
        (b"P6\n2 2\n2x5\n" + bytes(12), "a.png is no image that can be read"),  # a decoder's own ValueError
        (HUGE, "a.png is no image that can be read: .*exceeds limit"),
        (encoded(Image.new("I;16", (2, 2), 40000)), "more than 8 bits"),
        (encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 254))), "transparent in places"),
        (encoded(Image.new("P", (2, 2)), transparency=0), "transparent in places"),
        (encoded(noise(), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2))]), "a.png has 2 frames"),
    ],
    ids=["empty", "cut", "garbled", "bomb", "deep", "alpha", "palette", "animated"],
)
def test_files_of_which_a_model_would_not_read_what_is_seen_are_refused(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        files(tmp_path, [{"image": "a.png", "answer": "x"}], 3)


def test_an_image_is_read_as_it_is_seen(tmp_path):
    """Turned as its camera was held, and without an alpha channel that hides nothing."""
    seen = noise()
    turned = seen.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.png", exif=_turned(6))
    opaque = seen.copy()
    opaque.putalpha(255)
    opaque.save(tmp_path / "b.png")
    rows = [{"image": name, "answer": 3} for name in ("a.png", "b.png")]
    for found in files(tmp_path, rows, 3):
        assert np.array_equal(found.pixels, np.asarray(seen).transpose(2, 0, 1)) and found.answer == "3"


def _turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_the_file_of_rows_is_lines_of_json_in_utf_8(tmp_path):
    noise("L").save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "answer": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "images.jsonl").write_text(f"\ufeff{line}\r\n\n{line}", encoding="utf-8")
    source = PictureFiles({"kind": "local"}, "images.jsonl", 1, 2, 1.0)
    found = list(source.read(lambda _: tmp_path, lambda _: ["a.png", "images.jsonl"]))
    assert [(one.id, one.answer) for one in found] == [(f"images.jsonl:{n}", "a\u2028b") for n in (1, 3)]
    (tmp_path / "images.jsonl").write_bytes(line.encode("utf-16"))
    with pytest.raises(ValueError, match=r"images\.jsonl is no UTF-8 text"):
        list(source.read(lambda _: tmp_path, lambda _: ["a.png", "images.jsonl"]))
