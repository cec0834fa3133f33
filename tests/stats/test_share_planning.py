from __future__ import annotations

import math

import pytest
from scipy.stats import binom, binomtest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.proportions import rows_for_rate_increase


@pytest.mark.parametrize("limit", [0.5, 0.05, 0.01, 0.0003])
def test_without_a_faulty_row_it_is_the_closed_form(limit):
    rows = rows_for_rate_increase(share=0, limit=limit, confidence=0.95, power=0.9)
    assert rows == math.ceil(math.log(0.05) / math.log1p(-limit))


@pytest.mark.parametrize(("share", "limit"), [(0.001, 0.01), (0.02, 0.03), (0.3, 0.35)])
def test_about_the_power_asked_for_is_met(share, limit):
    rows = rows_for_rate_increase(share=share, limit=limit, confidence=0.95, power=0.9)
    bounds = [binomtest(k, rows, alternative="less").proportion_ci(0.95).high for k in range(int(rows * limit) + 2)]
    passes = sum(binom.pmf(k, rows, share) for k, bound in enumerate(bounds) if bound <= limit)
    assert 0.87 <= passes <= 0.97


def test_a_share_at_its_limit_needs_no_number_of_rows():
    assert rows_for_rate_increase(share=0.05, limit=0.05, confidence=0.95, power=0.9) is None
    assert rows_for_rate_increase(share=0.05, limit=0.0500000001, confidence=0.95, power=0.9) is None


def test_an_uncertain_reference_takes_more_rows_and_too_uncertain_a_one_all_of_them():
    shares = {"share": 0.02, "base": 0.02, "limit": 0.01, "confidence": 0.95, "power": 0.9}
    certain, uncertain = rows_for_rate_increase(**shares), rows_for_rate_increase(**shares, below=0.004)
    assert certain < uncertain < 3 * certain
    assert rows_for_rate_increase(**shares, below=0.01) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": -0.1}, "share lies from 0 to below 1, not -0.1"),
        ({"limit": 1.0}, "limit lies between 0 and 1, not 1.0"),
        ({"power": 0.5}, "power is a probability above 0.5 and below 1 (0.95, say), not 0.5"),
    ],
)
def test_impossible_arguments_are_refused(changed, message):
    with pytest.raises(UsageError) as caught:
        rows_for_rate_increase(**{"share": 0.1, "limit": 0.2, "confidence": 0.95, "power": 0.9, **changed})
    assert str(caught.value) == message
