"""Mean ranks and serial dependence against scipy and simulation."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import rankdata

from pytest_modelserve.stats import SerialDependence, serial_dependence
from pytest_modelserve.stats.autocorrelation import centered_ranks


@pytest.mark.parametrize("decimals", [0, 6], ids=["ties", "no ties"])
def test_centered_ranks_are_mean_ranks_less_their_mean(decimals):
    values = np.round(np.random.default_rng(9).normal(size=500), decimals)
    np.testing.assert_allclose(centered_ranks(values), rankdata(values) - 250.5)


def autoregression(rng, n, coefficient):
    return lfilter([1.0], [1.0, -coefficient], rng.standard_normal(n + 200))[200:]


def share_found(draw, *, repeats=800, seed=3):
    rng = np.random.default_rng(seed)
    return np.mean([serial_dependence(draw(rng)) is not None for _ in range(repeats)])


def test_ratio_is_the_variance_of_sums_over_that_of_independent_ones():
    values = autoregression(np.random.default_rng(0), 300, 0.8)
    found = serial_dependence(values)
    assert found is not None
    sums = [values[i : i + found.span].sum() - found.span * values.mean() for i in range(len(values) - found.span + 1)]
    independent = found.span * (1 - found.span / 300) * values.var(ddof=1)
    assert found.variance_ratio == pytest.approx(np.mean(np.square(sums)) / independent)


@pytest.mark.parametrize(("n", "span"), [(15, 2), (16, 4), (300, 16)])
def test_spans_go_up_to_the_root_of_the_number_of_values(n, span):
    assert serial_dependence(np.arange(n, dtype=float)).span == span  # a trend shows most in the longest span


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal(100),
        lambda rng: np.abs(rng.standard_normal(600)),
        lambda rng: rng.standard_t(5, 300) ** 2,
    ],
    ids=["normal", "absolute errors", "heavy tails"],
)
def test_independent_values_are_rarely_taken_for_dependent(draw):
    assert share_found(draw) <= 0.03


def test_short_memory_is_found():
    assert share_found(lambda rng: autoregression(rng, 200, 0.5), repeats=200) >= 0.98
    assert share_found(lambda rng: autoregression(rng, 50, 0.5), repeats=200) >= 0.65


def test_slow_drift_below_noise_is_found_although_neighbors_hardly_agree():
    rng = np.random.default_rng(5)
    drift = autoregression(rng, 1000, 0.97) * np.sqrt(1 - 0.97**2)
    values = np.sqrt(0.15) * drift + np.sqrt(0.85) * rng.standard_normal(1000)
    assert np.corrcoef(values[1:], values[:-1])[0, 1] < 0.2
    found = serial_dependence(values)
    assert found is not None
    assert found.span == 16
    assert found.variance_ratio > 1.5


def test_values_that_alternate_make_intervals_too_long_and_are_no_finding():
    assert serial_dependence(np.tile([0.0, 1.0], 100)) is None


def test_order_is_what_counts():
    values = autoregression(np.random.default_rng(2), 400, 0.8)
    assert serial_dependence(values) is not None
    assert serial_dependence(np.random.default_rng(2).permutation(values)) is None


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_ratio_has_no_unit(scale):
    values = autoregression(np.random.default_rng(0), 300, 0.8)
    one, other = serial_dependence(values), serial_dependence(scale * values)
    assert one is not None
    assert other == SerialDependence(one.span, pytest.approx(one.variance_ratio))


@pytest.mark.parametrize("values", [[], [1.0], np.arange(7.0), np.full(50, 0.1)], ids=["none", "one", "seven", "equal"])
def test_values_that_say_nothing_show_nothing(values):
    assert serial_dependence(values) is None
