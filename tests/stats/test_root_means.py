from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import block_means, mean_bounds, root_mean_rise_values

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal(400)
CANDIDATE = 1.2 * REFERENCE + 0.3 * RNG.standard_normal(400)


def rise(candidate, reference):
    return np.sqrt(np.mean(candidate**2)) - np.sqrt(np.mean(reference**2))


def test_mean_of_the_values_is_the_rise():
    values = root_mean_rise_values(CANDIDATE**2, REFERENCE**2)
    assert values.shape == (400,)
    assert values.mean() == pytest.approx(rise(CANDIDATE, REFERENCE))


def test_scatter_of_the_values_is_that_of_the_rise_by_the_jackknife():
    n = len(REFERENCE)
    without = np.array([rise(np.delete(CANDIDATE, i), np.delete(REFERENCE, i)) for i in range(n)])
    jackknife = np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
    values = root_mean_rise_values(CANDIDATE**2, REFERENCE**2)
    assert block_means(values).standard_error == pytest.approx(jackknife, rel=0.02)


def test_interval_misses_the_rise_as_often_as_it_says():
    rng, missed = np.random.default_rng(1), []
    for _ in range(1500):
        reference = rng.standard_normal(200)
        candidate = 1.1 * (0.9 * reference + np.sqrt(0.19) * rng.standard_normal(200))
        values = root_mean_rise_values(candidate**2, reference**2)
        bounds = mean_bounds(values, low_level=0.999, high_level=0.95)
        missed.append((bounds.low > 0.1, bounds.high < 0.1))
    low, high = np.mean(missed, axis=0)
    assert low <= 0.004
    assert 0.03 <= high <= 0.07


def test_equal_errors_rise_by_nothing_in_every_row():
    assert root_mean_rise_values(REFERENCE**2, REFERENCE**2).tolist() == [0.0] * 400


def test_perfect_model_leaves_its_term_out():
    values = root_mean_rise_values(CANDIDATE**2, np.zeros(400))
    assert values.mean() == pytest.approx(np.sqrt(np.mean(CANDIDATE**2)))
    assert root_mean_rise_values(np.zeros(3), np.zeros(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        ([1.0], [1.0, 2.0], "paired values are equally many, not 1 and 2"),
        ([], [], "candidate are squares: finite, at least 0, and at least one"),
        ([1.0], [-1.0], "reference are squares: finite, at least 0, and at least one"),
        ([np.nan], [1.0], "candidate are squares: finite, at least 0, and at least one"),
    ],
)
def test_values_that_are_no_squares_are_refused(candidate, reference, message):
    with pytest.raises(UsageError) as caught:
        root_mean_rise_values(candidate, reference)
    assert str(caught.value) == message
