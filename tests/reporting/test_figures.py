"""Each unit as people read it."""

from __future__ import annotations

import math

import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity, Unit
from pytest_modelserve.evidence.failure_text import (
    format_budget,
    format_interval,
    format_probability,
    format_value,
    verdict_reason,
)


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
def test_value_is_told_in_its_unit(value: float, unit: Unit, text: str) -> None:
    assert format_value(value, unit) == text


def test_interval_with_an_open_end() -> None:
    assert format_interval(Interval(-math.inf, 0.02, 0.9, 0.9), "proportion") == "[-∞, 2.00]"


def test_budget_shows_its_direction() -> None:
    assert format_budget(Budget("at_most", 0.01), "proportion_difference") == "≤ 1.00 pt"
    assert format_budget(Budget("at_least", 25), "dB") == "≥ 25.0 dB"


@pytest.mark.parametrize(
    ("probability", "text"), [(0.034, "3.4 %"), (0.001, "0.1 %"), (0.999, "99.9 %"), (0.9998, "99.98 %"), (0, "0 %")]
)
def test_percentage_keeps_the_digits_that_matter(probability: float, text: str) -> None:
    assert format_probability(probability) == text


def test_reason_names_the_side() -> None:
    above = Quantity("q", 2, "", budget=Budget("at_most", 1))
    below = Quantity("q", 0, "", Interval(-1, 0.5, 0.9, 0.9), Budget("at_least", 1))
    assert verdict_reason(above) == "the value lies above the budget"
    assert verdict_reason(below) == "the whole interval lies below the budget"
