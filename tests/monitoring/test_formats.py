"""The format of values and differences in messages."""

import pytest

from pytest_modelserve.monitoring.formats import format_difference, format_value


@pytest.mark.parametrize(
    ("kind", "number", "text"),
    [
        ("float", 1234567.0, "1.23457e+06"),
        ("integer", 12, "12"),
        ("datetime", 0.0, "1970-01-01"),
        ("datetime", 1_795_046_400.0, "2026-11-19"),
        ("datetime", -86_400.0, "1969-12-31"),
        ("datetime", 86_401.9, "1970-01-02 00:00:01"),
        ("datetime", float("inf"), "inf"),
    ],
)
def test_values_are_formatted_by_kind(kind, number, text):
    assert format_value(kind, number) == text


@pytest.mark.parametrize(
    ("kind", "difference", "text"),
    [
        ("float", 0.123456, "+0.123"),
        ("datetime", 3.25 * 86_400, "+3.25 days"),
        ("datetime", -40.0, "-40 seconds"),
        ("datetime", 90.0 * 60, "+90 minutes"),
        ("datetime", -5 * 3600.0, "-5 hours"),
        ("datetime", 86_400 * 3652.0, "+3,652 days"),
    ],
)
def test_a_difference_of_dates_is_a_duration(kind, difference, text):
    assert format_difference(kind, difference) == text
