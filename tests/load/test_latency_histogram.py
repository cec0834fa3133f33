"""Buckets of durations, and their sum over hosts."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.load.latency_histogram import LatencyHistogram, bucket_limits_ms, bucket_of, merged


def test_every_duration_lies_in_its_bucket_and_buckets_leave_no_gap():
    values = np.unique(np.concatenate([np.arange(3_000), 2 ** np.arange(52), 2 ** np.arange(3, 52) - 1]))
    for value, bucket in zip(values.tolist(), bucket_of(values).tolist(), strict=True):
        low, high = bucket_limits_ms(bucket)
        assert low <= value / 1e6 <= high
        assert (high - low) * 1e6 <= max(0, value / 128)
    buckets = range(5_000)
    assert all(
        round(bucket_limits_ms(bucket + 1)[0] * 1e6) == round(bucket_limits_ms(bucket)[1] * 1e6) + 1
        for bucket in buckets
    )


def test_quantile_lies_between_the_limits():
    values = np.random.default_rng(0).lognormal(1, 2, 5_000)
    histogram = LatencyHistogram.of(values)
    for quantile in (0.001, 0.5, 0.95, 0.999):
        low, high = histogram.quantile_ms(quantile)
        assert low - 1e-6 <= np.quantile(values, quantile, method="inverted_cdf") <= high + 1e-6
        assert high <= low * 1.008


def test_requests_without_an_answer_are_the_slowest():
    histogram = LatencyHistogram.of([1.0, 2.0, math.inf, 3.0])
    assert (histogram.n, histogram.unanswered) == (4, 1)
    assert histogram.quantile_ms(0.75)[0] == pytest.approx(3, rel=0.01)
    assert histogram.quantile_ms(0.76) == (math.inf, math.inf)
    assert histogram.within(2.5) == 2
    assert LatencyHistogram().quantile_ms(0.5)[0] is math.nan


def test_sum_is_the_histogram_of_all_in_any_order():
    rng = np.random.default_rng(1)
    parts = [rng.exponential(5, n) for n in (10, 500, 3)]
    histograms = [LatencyHistogram.of(part) for part in parts]
    whole = LatencyHistogram.of(np.concatenate(parts))
    assert merged(histograms) == merged(histograms[::-1]) == whole


def test_longest_duration_has_the_last_bucket():
    assert set(LatencyHistogram.of([1e12]).counts) == {6015}


def test_nan_is_refused():
    with pytest.raises(InputError, match="must not be NaN, got 1 of 2"):
        LatencyHistogram.of([1.0, math.nan])
