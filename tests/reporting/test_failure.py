"""The text of a failure, whole."""

from __future__ import annotations

from collections.abc import Callable

from pytest_modelserve.evidence import Budget, Quantity, Record, Subject
from pytest_modelserve.reporting import failure_text

Maker = Callable[..., Record]


def test_failure_says_what_against_what_how_sure_where_and_what_next(record_of: Maker) -> None:
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


def test_every_judged_quantity_is_told(record_of: Maker) -> None:
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


def test_names_from_a_model_file_cannot_command_the_terminal(record_of: Maker) -> None:
    text = failure_text(record_of(subject=Subject("evil\x1b[2J", "a\nb\x00")).evidence)
    assert "\x1b" not in text
    assert "evil\\x1b[2J / a\\nb\\x00" in text
