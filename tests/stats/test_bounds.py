from __future__ import annotations

import math

import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import Bounds


def test_an_end_that_the_data_cannot_bound_may_be_infinite():
    bounds = Bounds(estimate=1.0, low=-math.inf, high=math.inf, low_level=0.999, high_level=0.95)
    assert bounds.low < bounds.estimate < bounds.high


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.1), (math.nan, 1.0), (0.0, math.nan), (0.6, 0.9)])
def test_ends_that_do_not_hold_the_estimate_are_refused(low, high):
    with pytest.raises(UsageError) as caught:
        Bounds(estimate=0.5, low=low, high=high, low_level=0.95, high_level=0.95)
    assert str(caught.value) == f"bounds hold their estimate, unlike {low} <= 0.5 <= {high}"


@pytest.mark.parametrize("level", [0.5, 0.05, 1.0, 95, math.nan])
@pytest.mark.parametrize("end", ["low_level", "high_level"])
def test_a_level_that_could_swap_the_ends_is_refused(end, level):
    with pytest.raises(UsageError) as caught:
        Bounds(estimate=0.5, low=0.4, high=0.6, **{"low_level": 0.95, "high_level": 0.95, end: level})
    assert str(caught.value) == f"{end} is a probability above 0.5 and below 1 (0.95, say), not {level}"
