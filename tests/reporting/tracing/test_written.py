"""A number as a report writes it is read back to the values that it may stand for."""

import pytest

from pipeline.reporting.tables import wording
from pipeline.reporting.tracing.written import numbers_in, read, shown


@pytest.mark.parametrize(
    ("value", "text", "is_so"),
    [
        (0.05441, "0.0544", True), (0.05441, "+0.0544", True), (-0.05441, "+0.0544", False),
        (-0.05441, "-0.0544", True), (-0.05441, "0.0544", True), (0.05441, "0.054", True), (0.05441, "0.0545", False),
        (24576, "24,576", True), (24576, "24576", True), (33.4, "33", False), (2e-4, "2e-4", True), (0.0, "0.00", True),
    ],
)  # fmt: skip
def test_a_value_is_found_as_a_report_writes_it(value, text, is_so):
    assert shown(value, text) is is_so


@pytest.mark.parametrize(
    ("value", "write"),
    [
        (134_515_008, wording.count), (380_832, wording.count), (16_900_000_000_000, wording.count),
        (20.6, wording.duration), (425.0, wording.duration), (7512.0, wording.duration),
        (9_999, wording.count), (525_254_656, wording.memory), (0.194942, wording.percent), (0.0345, wording.percent),
        (-0.0345, lambda v: "−3.45 points"), (40, lambda v: "n=40"),
        (17.6e12, lambda v: "17.6 TFLOP"), (0.0004, lambda v: "p=0.0004"), (0.0693, lambda v: "± 6.93"),
        (0.05441, lambda v: "+0.0544 bits per byte"),
    ],
)  # fmt: skip
def test_what_is_written_with_a_unit_is_read_back(value, write):
    text = write(value)
    assert read(text).may_be(value), text
    assert not read(text).may_be(value * 1.3 + 1), text


def test_an_interval_is_two_numbers():
    found = read("[−0.0089, +0.0051]")
    assert found.may_be(-0.00891) and found.may_end(0.00512) and not found.may_end(0.0061)


@pytest.mark.parametrize("text", ["nothing-like-that", "", "[0.1]", "base-", "4f3a", "1.2.3"])
def test_what_is_no_number(text):
    assert read(text) is None


def test_the_numbers_of_a_sentence():
    assert list(numbers_in("from −0.0187 to +0.1728 (add_32), n=40 of 1,024; v2")) == [
        "-0.0187", "+0.1728", "40", "1,024",
    ]  # fmt: skip
