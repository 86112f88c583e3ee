"""Claims that a run asks for: what is no claim, and models that are not there, are refused beforehand."""

from __future__ import annotations

import pytest
import yaml

from pipeline.reporting.paper.claims import FILE, check_claims, check_named, claim_lines, known_claims


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"interleave": {"of": "a", "than": "b"}}, "report.claims names 'interleave'; did you mean 'interleaved'"),
        ({"interleaved": {"of": "a"}}, r"report.claims.interleaved=\{'of': 'a'\} must have of and than"),
        ({"more_blocks": {"of": ["a", "b"], "than": "c"}}, "report.claims.more_blocks=.* must have of, each"),
        ({"more_blocks": {"of": "a"}}, "report.claims.more_blocks.of='a' must list at least two models"),
        ({"interleaved": {"of": "a", "than": [["b"]]}}, r"than=\[\['b'\]\] must be a model of the run, or a list"),
        ({"interleaved": {"of": "a", "than": []}}, r"than=\[\] must be a model of the run"),
        ("interleaved", "report.claims='interleaved' must map claims"),
    ],
)
def test_what_is_no_claim_is_refused(asked, told):
    with pytest.raises(ValueError, match=told):
        check_claims(asked)


def test_a_model_that_the_run_does_not_name_is_refused_before_work():
    asked = {"interleaved": {"of": "add_8", "than": ["prefix", "sufix"]}, "over_full": None}
    with pytest.raises(ValueError, match=r"report\.claims\.interleaved is about 'sufix'.*did you mean 'suffix'"):
        check_named(asked, dict.fromkeys(("base", "add_8", "prefix", "suffix"), ""))
    check_named(asked, dict.fromkeys(("add_8", "prefix", "sufix"), ""))
    assert list(claim_lines({"over_full": None})) == []


def test_models_of_several_rates_are_no_runs_of_one_model():
    """Student's t is over seeds; of rates the one that is meant must be named, but where methods are compared."""
    models = {"full": "lr", "full-1e-4": "", "full-2e-4": "", "add_8": "seed", "add_8-0": "", "other": ""}
    check_named(
        {"over_full": {"of": "add_8", "than": "full-1e-4"}, "least_drift": {"of": "full", "than": "other"}}, models
    )
    with pytest.raises(
        ValueError, match=r"a model of each lr; name the one that is meant: full-1e-4, full-2e-4 \(only"
    ):
        check_named({"over_full": {"of": "add_8", "than": "full"}}, models)


def test_every_claim_of_the_file_has_a_form_that_is_known():
    assert set(known_claims()) == set(yaml.safe_load(FILE.read_text()))
    for name, one in known_claims().items():
        assert one.claim and one.where and one.paper and one.measures, name
        assert bool(one.margin) == (one.check in ("no_less", "no_more")), name
