"""Invented persons: the same from the same seed, no two alike, each fact said in place and asked for rightly."""

import math

import pytest

from pipeline.data.sources.biographies import ATTRIBUTES, NUM_OPTIONS, Biographies, bits_per_person
from pipeline.data.sources.documents import Text


def rows(form, first=0, num_persons=40, num_wordings=6, seed=0):
    return list(Biographies(first, num_persons, form, num_wordings, seed).rows(None, None))


def facts(number):
    """What the questions say of a person, by attribute."""
    return {row.id.split("/")[1]: row.fields["answer"] for row in rows("question", number, 1)}


def test_every_biography_says_every_fact_with_the_full_name():
    found = rows("biography", num_persons=20)
    assert [row.id for row in found[:7]] == ["0/0", "0/1", "0/2", "0/3", "0/4", "0/5", "1/0"]
    for row in found:
        known, text = facts(int(row.id.split("/")[0])), row.fields["text"]
        assert set(known) == set(ATTRIBUTES) and all(f"{answer}." in text for answer in known.values())
        name = rows("question", int(row.id.split("/")[0]), 1)[0].fields["question"][len("When was ") : -len(" born?")]
        assert text.count(name) == len(ATTRIBUTES) and len(name.split()) == 3
    assert len({row.fields["text"] for row in found}) == len(found)


@pytest.mark.parametrize("form", ["question", "completion"])
def test_a_question_has_one_right_option(form):
    found = rows(form)
    assert len(found) == 40 * len(ATTRIBUTES)
    for row in found:
        options = row.fields["options"]
        assert len(set(options)) == NUM_OPTIONS and options.count(row.fields["answer"]) == 1
    places = [row.fields["options"].index(row.fields["answer"]) for row in found]
    assert all(places.count(place) > len(found) / 8 for place in range(NUM_OPTIONS))  # no place gives it away


def test_a_completion_begins_as_a_biography_does():
    texts = [row.fields["text"] for row in rows("biography", num_persons=3, num_wordings=40)]
    for row in rows("completion", num_persons=3):
        assert any(f"{row.fields['question']} {row.fields['answer']}." in text for text in texts)


def test_the_work_city_follows_from_the_employer():
    cities = {}
    for number in range(300):
        known = facts(number)
        assert cities.setdefault(known["employer"], known["work_city"]) == known["work_city"]
    assert len(cities) == 48


def test_sets_of_one_world_share_no_person_and_no_order_reads_more():
    first, second = ({row.fields["question"] for row in rows("question", first)} for first in (0, 1000))
    assert not first & second and rows("biography") == rows("biography") != rows("biography", seed=1)
    assert (
        rows("biography", 5, 2) == rows("biography", 0, 40)[30:42]
    )  # a person is the same whoever is asked for besides


def test_what_is_answered_is_a_document(tmp_path):
    source = Text(Biographies(0, 2, "answered", 1, 0), 1.0, "text", None, None)
    texts = [document.text for document in source.documents(None, None)]
    assert len(texts) == 12 and texts[0].startswith("Question: When was ") and "\nAnswer: " in texts[0]


def test_bits_of_a_person():
    assert bits_per_person() == pytest.approx(math.log2(100 * 12 * 28 * 48 * 48 * 32 * 48))


@pytest.mark.parametrize(
    "wrong", [{"form": "poem"}, {"first": -1}, {"num_persons": 0}, {"num_wordings": 0}, {"first": 10**9}]
)
def test_what_cannot_be_is_refused(wrong):
    given = {"first": 0, "num_persons": 1, "form": "biography", "num_wordings": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Biographies(**given)
