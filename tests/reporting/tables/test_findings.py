from __future__ import annotations

from pipeline.reporting.tables.findings import Finding, grouped

EXACT = "All 40 items of 2 measures have exactly the same value."


def exact(name, text=EXACT, answer="yes"):
    return Finding(f"Does the {name} model equal the base exactly?", answer, text, name)


def test_equal_findings_are_told_once_where_the_first_stood():
    kept = Finding("Did the a model keep what the base could do?", "yes", "None is worse.", "a")
    found = grouped([exact("blocks_1"), kept, exact("blocks_2", "Other."), exact("blocks_16"), exact("blocks_32")])
    assert [(one.question, one.text) for one in found] == [
        ("Do the blocks_1, blocks_16 and blocks_32 models equal the base exactly?", EXACT),
        (kept.question, kept.text),
        ("Does the blocks_2 model equal the base exactly?", "Other."),
    ]


def test_other_answers_or_sources_stay_apart():
    other = Finding("Does the b model equal the donor exactly?", "yes", EXACT, "b")
    found = [
        exact("a"),
        exact("b", answer="no"),
        other,
        Finding("Of none?", "absent", "No."),
        Finding("Q?", "no", "No"),
    ]
    assert grouped(found) == found


def test_sentences_are_about_several_and_names_are_no_patterns():
    nothing = "No general or retention measure was evaluated on both this model and the base."
    names = ("a.b", "the (c)", "keep")
    found = grouped(
        [Finding(f"Did the {n} model keep what the base could do?", "unknown", nothing, n) for n in names]
        + [Finding(f"Does the {n} model equal the base exactly?", "yes", f"The {n} model and the base share.", n)
           for n in names]
    )  # fmt: skip
    assert [(one.question, one.text) for one in found] == [
        (
            "Did the a.b, the (c) and keep models keep what the base could do?",
            "No general or retention measure was evaluated on both one of these models and the base.",
        ),
        ("Do the a.b, the (c) and keep models equal the base exactly?", "Each of the models and the base share."),
    ]
