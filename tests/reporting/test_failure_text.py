"""Failure texts and the formats of values, intervals and budgets."""

import math

import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity, Subject
from pytest_modelserve.evidence.failure_text import (
    failure_message,
    failure_text,
    format_budget,
    format_interval,
    format_probability,
    format_value,
    verdict_reason,
)


def test_failure_says_what_against_what_how_sure_where_and_what_next(record_of):
    record = record_of(
        0.0142,
        0.0333,
        findings=("70 rows changed correctness: 61 lost, 9 gained; worst slice digit=8: 5.9 points",),
        advice="keep the last layer in fp32",
    )
    assert (
        failure_text(record.evidence)
        == """\
accuracy parity: int8-static loses more accuracy than its budget

  drop       2.38 points   (reference 94.20 % → candidate 91.60 %)
  interval   [1.42, 3.33]  low at 99.9 %, high at 95 %, Tango paired score, n = 2000 rows
  budget     at most 1.00 points
  verdict    FAIL: the whole interval lies above the budget

  70 rows changed correctness: 61 lost, 9 gained; worst slice digit=8: 5.9 points
  candidate  digits_cnn / int8-static  sha256 9f2c41000000…
  reference  digits_cnn / fp32  sha256 77aa01000000…
  next       keep the last layer in fp32"""
    )


def test_every_judged_quantity_is_told(record_of):
    quantities = (
        Quantity("SQNR", 12.0, "dB", budget=Budget("at_least", 25)),
        Quantity("cosine", 0.999, "cosine", budget=Budget("at_least", 0.99)),
    )
    text = failure_text(record_of(quantities=quantities, reference=None).evidence)
    assert (
        "  SQNR       12.0 dB\n  method     Tango paired score, n = 2000 rows\n  budget     at least 25.0 dB\n" in text
    )
    assert "verdict    FAIL: the value lies below the budget" in text
    assert "verdict    PASS: the value lies inside the budget" in text
    assert "reference" not in text


def test_names_from_a_model_file_cannot_command_the_terminal(record_of):
    text = failure_text(record_of(subject=Subject("evil\x1b[2J", "a\nb\x00")).evidence)
    assert "\x1b" not in text
    assert "evil\\x1b[2J / a\\nb\\x00" in text


def test_budget_names_the_argument_that_gave_it(record_of):
    quantities = (Quantity("peak", 3000.0, "bytes", budget=Budget.of("max_kib", 2, unit=1024)),)
    assert "\n  budget     at most 2.0 KiB (max_kib=2)\n" in failure_text(record_of(quantities=quantities).evidence)
    assert Budget.of("min_value", 0.1 + 0.2) == Budget("at_least", 0.1 + 0.2)
    assert Budget.of("min_value", 0.1 + 0.2).argument == "min_value=0.3"
    assert Budget.of("max_bytes", 1_234_567).argument == "max_bytes=1234567"


def test_long_message_is_cut_and_says_where_the_rest_is(record_of):
    findings = tuple(f"finding {number}" for number in range(40))
    evidence = record_of(0.0142, 0.0333, findings=findings, advice="look").evidence
    lines = failure_message(evidence).splitlines()
    assert len(lines) == 18
    assert lines[7:15] == [
        *(f"  finding {number}" for number in range(7)),
        "  the rest   more findings: 33; --modelserve-html=PATH and --modelserve-json=PATH write all",
    ]
    assert lines[-1] == "  next       look"
    assert failure_text(evidence).count("finding ") == str(evidence).count("finding ") == 40


def test_cut_message_keeps_the_failing_quantity_wherever_it_stands(record_of):
    passing = [Quantity(f"good {n}", 1.0, "", budget=Budget("at_least", 0)) for n in range(5)]
    failing = Quantity("bad", -1.0, "", budget=Budget("at_least", 0))
    text = failure_message(record_of(quantities=(*passing, failing), findings=("why",)).evidence)
    assert text.count("verdict  ") == 2
    assert "verdict    FAIL" in text
    assert "the rest   more quantities: 4; " in text
    assert text.count("\n") < 18


def test_message_of_up_to_eighteen_lines_is_the_whole_text(record_of):
    evidence = record_of(0.0142, 0.0333, findings=tuple("abcdefgh")).evidence
    assert failure_message(evidence) == failure_text(evidence)
    assert failure_text(evidence).count("\n") == 16


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.942, "proportion", "94.20 %"),
        (0.026, "proportion_difference", "2.60 pt"),
        (0.83, "ratio", "× 0.83"),
        (38.21, "dB", "38.2 dB"),
        (math.inf, "dB", "∞ dB"),
        (0.2134, "ms", "0.213 ms"),
        (12.3456, "ms", "12.3 ms"),
        (1234.5, "ms", "1234 ms"),
        (0, "ms", "0 ms"),
        (0.00601, "ms", "6.01 µs"),
        (512, "bytes", "512 B"),
        (68_000, "bytes", "66.4 KiB"),
        (0.02, "tolerance", "0.0200 × tolerance"),
        (math.inf, "tolerance", "∞ × tolerance"),
        (0.99987, "cosine", "0.99987"),
        (3, "count", "3"),
        (math.nan, "proportion", "NaN %"),
    ],
)
def test_value_is_told_in_its_unit(value, unit, text):
    assert format_value(value, unit) == text


def test_interval_with_an_open_end():
    assert format_interval(Interval(-math.inf, 0.02, 0.9, 0.9), "proportion") == "[-∞, 2.00]"


def test_budget_shows_its_direction():
    assert format_budget(Budget("at_most", 0.01), "proportion_difference") == "≤ 1.00 pt"
    assert format_budget(Budget("at_least", 25), "dB") == "≥ 25.0 dB"


@pytest.mark.parametrize(
    ("probability", "text"), [(0.034, "3.4 %"), (0.001, "0.1 %"), (0.999, "99.9 %"), (0.9998, "99.98 %"), (0, "0 %")]
)
def test_percentage_keeps_the_digits_that_matter(probability, text):
    assert format_probability(probability) == text


def test_reason_names_the_side():
    above = Quantity("q", 2, "", budget=Budget("at_most", 1))
    below = Quantity("q", 0, "", Interval(-1, 0.5, 0.9, 0.9), Budget("at_least", 1))
    assert verdict_reason(above) == "the value lies above the budget"
    assert verdict_reason(below) == "the whole interval lies below the budget"
