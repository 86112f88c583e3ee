"""The paper's numbers: they fit together where the notes do not say otherwise, and each names what measures it here."""

from pathlib import Path

import pytest

from pipeline.reporting.paper.plan import paper_lines
from pipeline.reporting.paper.tables import check_asked, paper_tables

CONF = Path(__file__).parents[3] / "conf"
TABLES = paper_tables()
INCONSISTENT = {("mint", "LLaMA2-7B-Chat", "Avg")}


def means():
    for table in TABLES.values():
        for column in table.columns:
            for row, values in table.rows.items():
                parts = [values[name] for name in column.mean]
                if parts and None not in parts:
                    yield table.name, row, column.name, values[column.name], sum(parts) / len(parts)


def test_every_mean_is_that_of_its_columns_but_for_the_one_that_a_note_tells():
    found = {(table, row, column): (printed, mean) for table, row, column, printed, mean in means()}
    wrong = {key for key, (printed, mean) in found.items() if abs(printed - mean) > 0.0101}
    assert wrong == INCONSISTENT and len(found) == 13 + 2 * 11 + 5
    assert any("5.15, not 5.77" in note for note in TABLES["mint"].notes)


def test_the_scatter_is_computed_from_the_main_table():
    main = TABLES["main"].rows
    for row, found in TABLES["pareto"].rows.items():
        code = (main[row]["HumanEval"] + main[row]["MBPP"]) / 2
        tasks = ("ARC", "HellaSwag", "MMLU", "TruthfulQA", "WinoGrande", "GSM8K")
        assert found["Code"] == pytest.approx(code, abs=0.0101)
        assert found["Language"] == pytest.approx(sum(main[row][task] for task in tasks) / 6, abs=0.0101)


def test_the_claims_of_its_text_follow_from_the_tables():
    main, law = TABLES["main"].rows, TABLES["law"].rows
    assert main["LLaMA Pro 8B - Instruct"]["Avg"] - main["LLaMA2-7B-Chat"]["Avg"] == pytest.approx(13.81)
    assert main["LLaMA Pro 8B - Instruct"]["Avg"] - main["CodeLLaMA-7B-Instruct"]["Avg"] == pytest.approx(14.50)
    assert max(law, key=lambda row: law[row]["Avg"]) == "Add 8 blocks"


def test_every_column_names_benchmarks_that_there_are():
    known = {path.stem for path in (CONF / "benchmark").glob("*.yaml")}
    for table in TABLES.values():
        names = {name for column in table.columns for name in (column.benchmark, column.twin) if name}
        assert names <= known, table.name
        assert {name for column in table.columns for name in column.mean} <= {column.name for column in table.columns}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"maim": {}}, "report.paper names the table 'maim'; did you mean 'main'"),
        ({"tables": {}}, "names the table 'tables'; there are main, law"),
        (
            {"main": {"base": "LLaMA2-7b"}},
            "report.paper.main.base='LLaMA2-7b' is no row of it; did you mean 'LLaMA2-7B'",
        ),
        ({"main": "LLaMA2-7B"}, "must map models of the run to rows"),
        ("main", "report.paper='main' must map tables"),
    ],
)
def test_what_is_not_in_the_paper_is_refused(asked, told):
    with pytest.raises(ValueError, match=told):
        check_asked(asked)


def test_a_plan_shows_the_numbers_that_a_run_will_stand_beside():
    lines = paper_lines(
        {"law": {"a": "Add 8 blocks", "b": None}, "same_sft": {"c": "LLaMA Pro 8B"}, "main": {"d": None}}
    )
    text = "\n".join(lines)
    assert lines[0] == "paper: The law ablation (Table 7 of v1, Table 5 of v2), %"
    assert lines[1].split() == ["ARC", "HellaSwag", "MMLU", "TruthfulQA", "WinoGrande", "General", "Unfair-ToS", "Avg"]
    assert lines[2].split() == [
        "a:",
        "Add",
        "8",
        "blocks",
        "52.90",
        "76.63",
        "41.74",
        "39.83",
        "72.38",
        "56.70",
        "75.11",
        "65.91",
    ]
    assert "note: The paper has no row of the untouched LLaMA2-7B" in text and "Main results" not in text
    assert "c: LLaMA Pro 8B  64.67  21.20      47.56  41.40" in text and "not measured here: MATH" in text
