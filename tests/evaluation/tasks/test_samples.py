"""What people read of a document that lm-evaluation-harness scored."""

from __future__ import annotations

from pipeline.evaluation.tasks.samples import sample_texts


def sample(arguments, responses, target):
    return {"arguments": arguments, "filtered_resps": responses, "target": target}


def test_the_answer_is_the_option_that_the_metric_takes():
    options = [("Q?\nAnswer:", " no"), ("Q?\nAnswer:", " a longer one")]
    found = sample(options, [(-4.0, False), (-6.0, False)], 1)
    assert sample_texts(found, "acc") == ("Q?\nAnswer:", " no", " a longer one")
    assert sample_texts(found, "acc_norm") == ("Q?\nAnswer:", " a longer one", " a longer one")


def test_options_may_stand_in_the_context():
    sentences = [("The cup did not fit, for the cup", " was big."), ("The cup did not fit, for the bag", " was big.")]
    _, answer, gold = sample_texts(sample(sentences, [(-3.0, False), (-2.0, False)], 0), "acc")
    assert (answer, gold) == (sentences[1][0], sentences[0][0])


def test_a_text_to_be_predicted_and_one_to_be_written():
    assert sample_texts(sample([("He said", " so")], [(-1.0, True)], " so"), "acc") == ("He said", " so", " so")
    assert sample_texts(sample([("He said", " so")], [(-1.0, False)], " so"), "acc")[1] == "(something else)"
    written = sample([("1+1=", {"until": ["\n"]})], ["2"], "2")
    assert sample_texts(written, "exact_match") == ("1+1=", "2", "2")


def test_responses_of_several_runs_are_read_too():
    assert sample_texts(sample([("He said", " so")], [[(-1.0, True)]], " so"), "acc")[1] == " so"
