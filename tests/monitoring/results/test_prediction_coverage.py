"""The coverage gate for prediction intervals and sets."""

import numpy as np
import pytest
from scipy.stats import binomtest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_prediction_coverage


def intervals(rows, width):
    return np.column_stack([np.full(rows, -width), np.full(rows, width)])


def series(rows, seed, memory):
    """A stationary autoregression of variance 1."""
    noise = np.random.default_rng(seed).normal(size=rows)
    values = np.empty(rows)
    values[0] = noise[0]
    for i in range(1, rows):
        values[i] = memory * values[i - 1] + np.sqrt(1 - memory**2) * noise[i]
    return values


def test_bounds_are_the_exact_binomial_ones():
    labels = np.random.default_rng(0).normal(size=2000)
    evidence = measure_prediction_coverage(intervals(2000, 1.645), labels, min_coverage=0.88)
    assert evidence.verdict is Verdict.PASS
    inside = int((np.abs(labels) <= 1.645).sum())
    exact = binomtest(inside, 2000).proportion_ci(0.9, method="exact")
    assert evidence.interval.low == pytest.approx(exact.low)
    assert evidence.quantities[-1].name == "mean width"
    assert evidence.quantities[-1].value == pytest.approx(3.29)


def test_intervals_that_are_too_narrow_or_too_wide_fail():
    labels = np.random.default_rng(1).normal(size=3000)
    narrow = measure_prediction_coverage(intervals(3000, 1.2), labels, min_coverage=0.88)
    assert narrow.verdict is Verdict.FAIL
    wide = measure_prediction_coverage(intervals(3000, 3), labels, min_coverage=0.88, max_coverage=0.95)
    assert wide.verdict is Verdict.FAIL
    assert wide.budget.argument == "max_coverage=0.95"


def test_few_rows_are_inconclusive_with_the_rows_that_decide():
    labels = np.random.default_rng(2).normal(size=100)
    evidence = measure_prediction_coverage(intervals(100, 1.645), labels, min_coverage=0.88)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "labeled rows" in evidence.advice


def test_series_counts_as_fewer_rows_by_an_estimate_or_by_the_given_block():
    labels = series(3000, 3, 0.9)
    estimated = measure_prediction_coverage(intervals(3000, 1.645), labels, min_coverage=0.85)
    assert estimated.details["effective_rows"] < 1500
    assert "misses depend on their neighbors" in estimated.findings[1]
    given = measure_prediction_coverage(intervals(3000, 1.645), labels, min_coverage=0.85, block=30)
    assert given.details["effective_rows"] == 100
    assert given.interval.low < estimated.interval.low


def test_series_at_its_budget_rarely_passes():
    passed = sum(
        measure_prediction_coverage(intervals(1000, 1.645), series(1000, seed, 0.8), min_coverage=0.9).passed
        for seed in range(100)
    )
    assert passed <= 12  # nominal 5 %; independent rows would pass in about 15 %


def test_sets_contain_the_column_of_the_label():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 1000)
    sets = np.eye(3, dtype=bool)[labels]
    sets[np.arange(1000), (labels + 1) % 3] = True
    sets[:100] = np.roll(np.eye(3, dtype=bool)[labels[:100]], 1, axis=1)
    evidence = measure_prediction_coverage(sets, labels, min_coverage=0.85)
    assert evidence.value == 0.9
    assert [(q.name, q.value) for q in evidence.quantities[1:]] == [("mean set size", 1.9)]


def test_columns_low_and_high_of_a_file_are_intervals(tmp_path):
    labels = np.random.default_rng(5).normal(size=500)
    np.savez(tmp_path / "intervals.npz", low=np.full(500, -3.0), high=np.full(500, 3.0), id=np.arange(500))
    assert measure_prediction_coverage(tmp_path / "intervals.npz", labels, min_coverage=0.9).passed


def test_crossed_ends_and_other_shapes_are_refused():
    with pytest.raises(ms.InputError, match=r"the low end is above the high end in 2 of 2 rows, first in row 0"):
        measure_prediction_coverage(intervals(2, -1), [0.0, 0.0], min_coverage=0.9)
    with pytest.raises(ms.InputError, match=r"intervals \(rows, 2\) of numbers, or sets"):
        measure_prediction_coverage(np.zeros((2, 3)), [0.0, 0.0], min_coverage=0.9)
    with pytest.raises(ms.InputError, match=r"labels hold NaN or infinities, first in row 1"):
        measure_prediction_coverage(intervals(2, 1), [0.0, np.nan], min_coverage=0.9)
    with pytest.raises(ms.UsageError, match="0 < min_coverage < max_coverage <= 1"):
        measure_prediction_coverage(intervals(2, 1), [0.0, 0.0], min_coverage=0.95, max_coverage=0.9)
