from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import VerdictProbabilities, mean_bounds, mean_power, values_needed

RATES = {"confidence": 0.95, "alpha": 0.001}
PILOT = np.random.default_rng(0).standard_normal(100)


@pytest.mark.parametrize(("truth", "limit"), [(0.0, 0.25), (0.0, 0.0), (0.5, 0.0)])
def test_shares_are_those_of_simulated_samples(truth, limit):
    told = mean_power(PILOT, truth=truth, limit=limit, **RATES)
    rng, scale = np.random.default_rng(1), PILOT.std(ddof=1)
    found = [
        mean_bounds(truth + scale * rng.standard_normal(100), low_level=0.999, high_level=0.95) for _ in range(1500)
    ]
    assert told.passes == pytest.approx(np.mean([b.high <= limit for b in found]), abs=0.04)
    assert told.fails == pytest.approx(np.mean([b.low > limit for b in found]), abs=0.04)
    assert sum(dataclasses.astuple(told)) == pytest.approx(1)


def test_values_needed_give_their_power():
    for truth, limit in ((0.0, 0.1), (0.3, 0.1)):
        n = values_needed(PILOT, truth=truth, limit=limit, **RATES)
        rng = np.random.default_rng(2)
        sample = rng.standard_normal(n)
        sample = (sample - sample.mean()) / sample.std(ddof=1) * PILOT.std(ddof=1)
        shares = mean_power(sample, truth=truth, limit=limit, **RATES)
        assert max(shares.passes, shares.fails) == pytest.approx(0.9, abs=0.02)


def test_half_the_distance_takes_four_times_the_values():
    near, far = (values_needed(PILOT, truth=0.0, limit=limit, **RATES) for limit in (0.05, 0.1))
    assert near == pytest.approx(4 * far, rel=0.01)


def test_dependent_values_take_more_of_them():
    walk = np.cumsum(PILOT) / 5
    by_row, by_block = (values_needed(walk, truth=0.0, limit=0.5, block=block, **RATES) for block in (1, 10))
    assert by_block > 2 * by_row


def test_a_single_block_plans_nothing():
    assert mean_power(PILOT, truth=0.0, limit=1.0, block=100, **RATES) == VerdictProbabilities(0.0, 1.0, 0.0)
    assert values_needed(PILOT, truth=0.0, limit=1.0, block=100, **RATES) is None


def test_values_that_do_not_vary_decide_at_once():
    equal = np.zeros(10)
    assert mean_power(equal, truth=0.0, limit=0.0, **RATES) == VerdictProbabilities(1.0, 0.0, 0.0)
    assert mean_power(equal, truth=0.1, limit=0.0, **RATES) == VerdictProbabilities(0.0, 0.0, 1.0)
    assert values_needed(equal, truth=0.1, limit=0.0, **RATES) == 2


def test_skewed_values_take_more_of_them_where_their_long_side_is_judged():
    skewed = np.random.default_rng(4).standard_normal(60) ** 2
    skewed = (skewed - skewed.mean()) / skewed.std(ddof=1)
    above = values_needed(skewed, truth=0.0, limit=0.3, **RATES)
    below = values_needed(-skewed, truth=0.0, limit=0.3, **RATES)
    assert above > below


def test_few_blocks_do_not_make_the_plan_pay_their_wide_interval_for_ever():
    """Two blocks have a t of 318 at 99.9 %; the twenty that would do have one of 3.6."""
    n = values_needed([0.0, 2.0], truth=1.0, limit=0.0, **RATES)
    assert n < 60


def test_no_number_of_values_decides_on_the_limit_itself():
    assert values_needed(PILOT, truth=0.1, limit=0.1, **RATES) is None
    assert values_needed(PILOT, truth=0.1, limit=0.1 + 1e-12, **RATES) is None
    assert values_needed(PILOT, truth=0.0, limit=5e-324, **RATES) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"confidence": 95}, "confidence is a probability above 0.5 and below 1 (0.95, say), not 95"),
        ({"alpha": 0.0}, "alpha is a probability above 0 and below 0.5 (0.001, say), not 0.0"),
    ],
)
def test_impossible_rates_are_refused(changed, message):
    for plan in (mean_power, values_needed):
        with pytest.raises(UsageError) as caught:
            plan(PILOT, truth=0.0, limit=0.1, **{**RATES, **changed})
        assert str(caught.value) == message
