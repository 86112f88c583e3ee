"""TRACE's metrics against numbers that the packages it imports gave for the same texts."""

import pytest

from pipeline.evaluation.trace.metrics import code_of, edit_similarity, exact_match, rouge_l, sari

# PyPI rouge 1.0.1, Rouge(metrics=["rouge-l"]).get_scores(first, second)[0]["rouge-l"]["f"]
ROUGE = [
    ("The council met. It voted to approve the bill.", "It met and the council approved the bill. The vote was close.",
     0.4999999950500001),
    ("a b c d e f", "f e d c b a", 0.16666666166666683),
    ("one two one two", "one two", 0.999999995),
    ("of bill. vote committee committee committee committee of moved approve",
     "approve passed. vote the in of committee the approve a", 0.5714285665306124),
    ("approve passed. vote the in of committee the approve a",
     "of bill. vote committee committee committee committee of moved approve", 0.4285714236734694),
    ("... . ", "a. b", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "reference", "score"), ROUGE)
def test_rouge_l_is_that_of_the_package(prediction, reference, score):
    assert rouge_l(prediction, reference) == score


def test_rouge_l_of_nothing_is_nothing():
    assert rouge_l("", "a b") == rouge_l("a b", "") == rouge_l("....", "a b") == 0.0


# fuzzywuzzy 0.18.0 without python-Levenshtein, fuzz.ratio(first, second)
@pytest.mark.parametrize(
    ("first", "second", "percent"),
    [
        ("self . x = <EOL>", "self . y = 1 <EOL>", 88),
        ("x" * 250 + "yz", "x" * 200 + "zy", 89),
        ("abc", "abd", 67),
        ("same", "same", 100),
        ("", "abc", 0),
        ("abc", "", 0),
    ],
)
def test_edit_similarity_is_that_of_the_package(first, second, percent):
    assert edit_similarity(first, second, rounded=True) == percent / 100


def test_edit_similarity_need_not_be_rounded_nor_skip_frequent_characters():
    assert edit_similarity("abc", "abd", rounded=False) == pytest.approx(2 / 3)
    text = "ab" * 200
    assert edit_similarity("c" + text, text + "d", rounded=False) == pytest.approx(800 / 802)
    assert edit_similarity("c" + text, text + "d", rounded=True) == 0.0  # each character of the reference is frequent


# huggingface/evaluate metrics/sari: its own example, and one with commas and a capital
@pytest.mark.parametrize(
    ("texts", "score"),
    [
        (
            (
                "About 95 species are currently accepted .",
                "About 95 you now get in .",
                [
                    "About 95 species are currently known .",
                    "About 95 species are now accepted .",
                    "95 species are now accepted .",
                ],
            ),
            0.26953601953601954,
        ),
        (
            (
                "Der Hund, der gestern bellte, ist heute krank.",
                "Der Hund ist krank.",
                ["Der Hund ist heute krank."],
            ),
            0.553766835016835,
        ),
    ],
)
def test_sari_is_that_of_the_package(texts, score):
    assert sari(*texts) == pytest.approx(score, abs=1e-12)


def test_sari_of_a_text_that_is_its_reference_and_its_source_is_whole():
    assert sari("a b c d e", "a b c d e", ["a b c d e"]) == 1.0


def test_code_has_its_literals_written_out():
    assert code_of("x = <NUM_LIT> + <NUM_LIT:5> ; s = <STR_LIT:a b> <STR_LIT> <CHAR_LIT:c><CHAR_LIT>") == (
        "x = 0 + 5 ; s = a b  c"
    )


def test_exact_match_is_letter_by_letter():
    assert exact_match("A", "A") == 1.0
    assert exact_match("A ", "A") == exact_match("a", "A") == exact_match("", "") == 0.0
