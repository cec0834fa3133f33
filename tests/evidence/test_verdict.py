"""Where PASS, FAIL and INCONCLUSIVE begin and end."""

from __future__ import annotations

import math

import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Interval, Verdict, check_error_rates, levels_for


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, 0.999, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.9, Verdict.PASS),
        (0.1, 1.0, Verdict.PASS),  # the limit is inside
        (0.9, 1.1, Verdict.INCONCLUSIVE),
        (1.0, 1.1, Verdict.INCONCLUSIVE),
        (1.1, 1.2, Verdict.FAIL),
        (-math.inf, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_interval_is_judged_against_at_most_and_mirrored_against_at_least(
    low: float, high: float, verdict: Verdict
) -> None:
    assert Budget("at_most", 1.0).verdict(0.0, interval(low, high)) is verdict
    assert Budget("at_least", -1.0).verdict(0.0, interval(-high, -low)) is verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.0, Verdict.PASS), (1.1, Verdict.FAIL), (math.nan, Verdict.FAIL)])
def test_exact_value_never_is_inconclusive(value: float, verdict: Verdict) -> None:
    assert Budget("at_most", 1.0).verdict(value) is verdict


def test_pass_rests_on_confidence_and_fail_on_alpha() -> None:
    assert levels_for(Budget("at_most", 0), confidence=0.95, alpha=0.001) == (0.999, 0.95)
    assert levels_for(Budget("at_least", 0), confidence=0.95, alpha=0.001) == (0.95, 0.999)


def test_severity_orders_verdicts() -> None:
    assert sorted(Verdict, key=lambda v: v.severity) == [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]


@pytest.mark.parametrize("ends", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_interval_refuses_ends_that_are_none(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not an interval"):
        interval(*ends)


@pytest.mark.parametrize("limit", [math.nan, math.inf])
def test_budget_is_finite(limit: float) -> None:
    with pytest.raises(UsageError, match="a budget is a finite number"):
        Budget("at_most", limit)


@pytest.mark.parametrize(("confidence", "alpha"), [(0.5, 0.001), (1.0, 0.001), (0.95, 0.0), (0.95, 0.5)])
def test_error_rates_leave_room_for_a_verdict(confidence: float, alpha: float) -> None:
    with pytest.raises(UsageError):
        check_error_rates(confidence=confidence, alpha=alpha)
