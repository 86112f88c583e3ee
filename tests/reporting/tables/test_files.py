"""Tables as CSV and LaTeX: every number with its interval, what is special escaped, bold only what holds."""

from __future__ import annotations

import csv
import io
import re

from pipeline.reporting.tables.files import csv_text, latex, table_files
from pipeline.reporting.tables.table import Column, Entry, Table

TABLE = Table(
    "Gains & losses [95 % confidence interval]",
    (Column("Domain", "Held_out #1", "bits/byte ↓", 40), Column("Domain", "Scores"), Column("", "Least")),
    (
        ("a_{b} · lr=1e-4", (Entry("−0.0512", "better", "[−0.0700, −0.0310]", True), Entry("52.3 ± 1.5"), Entry("–"))),
        ("[x]", (Entry("+0.0010", "within", "[−0.0100, +0.0120]"), Entry("–"), Entry("+0.05 (LoRA)"))),
    ),
)


def test_a_csv_has_a_column_for_every_number():
    head, *rows = csv.reader(io.StringIO(csv_text(TABLE)))
    name = "Domain: Held_out #1 (bits/byte ↓, n=40)"
    assert head == [
        "Model", name, f"{name} low", f"{name} high", f"{name} mark", "Domain: Scores", "Domain: Scores error",
        "Least", "Least note",
    ]  # fmt: skip
    assert rows[0] == ["a_{b} · lr=1e-4", "-0.0512", "-0.0700", "-0.0310", "better", "52.3", "1.5", "", ""]
    assert rows[1] == ["[x]", "+0.0010", "-0.0100", "+0.0120", "within", "", "", "+0.05", "LoRA"]
    assert float(rows[0][1]) < 0


def test_latex_is_escaped_and_has_as_many_cells_in_each_row():
    text = latex(TABLE, "01-gains")
    assert r"\caption{Gains \& losses [95 \% confidence interval]}" in text and r"\label{tab:01-gains}" in text
    assert r"Held\_out \#1" in text and r"a\_\{b\} $\cdot$ lr=1e-4" in text and r"\begin{tabular}{lrrr}" in text
    assert r"\textbf{$-$0.0512} {\scriptsize [$-$0.0700, $-$0.0310]}" in text and text.count(r"\textbf") == 1
    assert r"\multicolumn{2}{c}{Domain}" in text and r"\cmidrule(lr){2-3}" in text and text.count("cmidrule") == 1
    assert "\n{}[x] &" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    cells = [len(re.split(r"(?<!\\)&", row)) for row in rows if "multicolumn" not in row]
    assert cells == [4] * 4
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}") and text.isascii()


def test_a_wide_table_becomes_several():
    columns = tuple(Column("", f"c{i}") for i in range(9))
    wide = Table("Wide", columns, (("m", tuple(Entry(str(i)) for i in range(9))),))
    text = latex(wide, "w")
    assert text.count(r"\begin{tabular}{lrrrrr}") == 1 and text.count(r"\label{tab:w-") == 2
    assert [f" {i} " in text or f" {i}\n" in text for i in range(9)] == [True] * 9


def test_files_are_numbered_and_empty_tables_have_none():
    files = table_files([("Gains & losses [95 %]", TABLE), ("Empty", Table("", (), ())), ("Wide: a", TABLE)])
    assert list(files) == ["01-gains-losses.csv", "01-gains-losses.tex", "02-wide-a.csv", "02-wide-a.tex"]
