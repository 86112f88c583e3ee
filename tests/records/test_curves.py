"""Training curves as a stage writes them and a report reads them."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.records.curves import METRICS_FILE, StepRecord, ValidationRecord, read_curve


def step(number: int, loss: float, **changes) -> StepRecord:
    rest = {"samples": number, "labels": 8, "lr": 1e-4, "grad_norm": 0.5, "skipped": None, "tokens_per_s": 12.5}
    rest["penalties"] = {}
    return StepRecord(step=number, tokens=10 * number, loss=loss, **{**rest, **changes})


def write(directory, *records) -> str:
    text = "".join(json.dumps(record.to_json(), allow_nan=False) + "\n" for record in records)
    (directory / METRICS_FILE).write_text(text)
    return text


def test_a_line_has_what_is_known_and_finite():
    assert list(step(1, 2.5).to_json().items()) == [
        ("step", 1), ("tokens", 10), ("samples", 1), ("labels", 8), ("loss", 2.5), ("lr", 1e-4), ("grad_norm", 0.5),
        ("tokens_per_s", 12.5),
    ]  # fmt: skip
    penalised = step(1, 2.5, penalties={"kl": 0.25, "none_counted": math.nan}).to_json()
    assert penalised["penalty/kl"] == 0.25 and "penalty/none_counted" not in penalised and "penalties" not in penalised
    skipped = step(2, math.nan, grad_norm=math.inf, skipped="its loss is not finite").to_json()
    assert skipped["skipped"] == "its loss is not finite" and not {"loss", "grad_norm"} & set(skipped)
    record = ValidationRecord(4, 40, {"own": 2.0, "other": 3.0}, 2.5)
    assert (
        json.dumps(record.to_json()) == '{"step": 4, "tokens": 40, "val/own": 2.0, "val/other": 3.0, "val_loss": 2.5}'
    )


def test_a_step_logged_twice_counts_once(tmp_path):
    lines = [step(1, 3.0), step(2, 2.5), step(2, 2.4), step(3, 2.2), ValidationRecord(3, 30, {"own": 2.0}, 2.0)]
    text = write(tmp_path, ValidationRecord(0, 0, {"own": 4.0}, 4.0), *lines, step(4, math.nan, skipped="far out"))
    curve = read_curve(tmp_path)
    assert curve.tokens.tolist() == [10, 20, 30] and curve.loss.tolist() == [3.0, 2.4, 2.2]
    assert curve.val_tokens.tolist() == [0, 30] and curve.val_loss.tolist() == [4.0, 2.0]
    (tmp_path / METRICS_FILE).write_text(text + "{torn")
    with pytest.raises(ValueError, match="line 8 is not a record"):
        read_curve(tmp_path)


def test_a_file_that_is_not_there_or_has_no_losses(tmp_path):
    with pytest.raises(ValueError, match=f"has no {METRICS_FILE}; rerun"):
        read_curve(tmp_path)
    (tmp_path / METRICS_FILE).write_text("\n[1]\n")
    with pytest.raises(ValueError, match="line 2 is not a record"):
        read_curve(tmp_path)
    (tmp_path / METRICS_FILE).write_text("\n")
    assert read_curve(tmp_path).loss.size == 0
