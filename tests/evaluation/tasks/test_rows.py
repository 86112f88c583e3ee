import pytest

from pipeline.data.sources.rows import Row
from pipeline.evaluation.tasks.rows import QuestionAndSolution, _readable, as_they_are, olmes_choice, olmes_lambada


def choice_requests():
    docs = [("Mercury_1", "Which?", ["a", "b", "c"], 2), ("Mercury_2", "Why?\nThink.", ["x", "y"], 0)]
    rows = []
    for offset in (0, 1_000_000):
        for number, (identity, question, choices, gold) in enumerate(docs):
            doc = {"id": identity, "query": f"Question: {question}\nAnswer:", "choices": choices, "gold": gold}
            rows += [{"doc_id": offset + number, "doc": doc, "idx": i} for i in range(len(choices))]
    return rows


def test_every_question_comes_back_once_with_the_hubs_columns():
    first, second = olmes_choice(choice_requests())
    assert first == {
        "id": "Mercury_1",
        "question": "Which?",
        "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }
    assert (second["question"], second["answerKey"]) == ("Why?\nThink.", "A")


def test_rows_of_another_form_are_refused():
    rows = choice_requests()
    rows[0]["doc"]["query"] = "Which?"
    with pytest.raises(ValueError, match="Mercury_1: expected 'Question: '"):
        olmes_choice(rows)


def test_a_passage_ends_with_its_last_word():
    doc = {"query": "I don't care about", "answers_text": ["signs"]}
    assert olmes_lambada([{"doc_id": 0, "doc": doc}]) == [{"text": "I don't care about signs"}]


def test_rows_with_the_hubs_columns_stay_as_they_are():
    assert as_they_are([{"goal": "g"}]) == [{"goal": "g"}]


def test_a_question_and_its_solution_are_a_chat():
    doc = {"id": 7, "question": " How many? ", "answer": "<<1+1=2>>2", "choices": ["1 + 1 = 2. So the answer is 2."]}
    chat = QuestionAndSolution("question").chat(Row("f#7", {"doc": doc}))
    assert chat.id == "7"
    assert [m["content"] for m in chat.messages] == ["How many?", "1 + 1 = 2. So the answer is 2."]


@pytest.mark.parametrize("fields", [{"q": "a\ud800"}, {"choices": [{"text": "\udfff"}]}, {"\ud83d": 1}])
def test_a_row_with_half_a_character_is_named(fields):
    with pytest.raises(ValueError, match="benchmark row 7 holds half of a surrogate pair"):
        list(_readable([Row("6", {"q": "a\U0001f600é"}), Row("7", fields)]))
