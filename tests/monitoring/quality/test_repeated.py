"""One value in too many rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.quality.rates import repeated_value_rate, sample_rows
from pytest_modelserve.monitoring.readers import read_table

INDEPENDENT = Blocks()


def rate_of(now, then, *, max_rate=0.003, alpha=0.001, blocks=INDEPENDENT):
    reference = reference_profile({"x": then}).column("x")
    column, sample = read_table({"x": now}).columns[0], sample_rows(len(now))
    return repeated_value_rate(column, sample, reference, max_rate=max_rate, alpha=alpha, blocks=blocks)


def filled(seed, share, *, rows=2000, value=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(rows) < share, value, rng.normal(size=rows))


NORMAL = np.random.default_rng(0).normal(size=10_000)


def test_a_value_that_was_filled_in_is_found_with_the_chance_that_its_bin_grew():
    now = filled(1, 0.02)
    rate = rate_of(now, NORMAL)
    reference = reference_profile({"x": NORMAL}).column("x")
    bin_ = int(np.searchsorted(reference.edges, 0.0, side="right"))
    in_bin = int((np.searchsorted(reference.edges, now, side="right") == bin_).sum())
    table = [[in_bin, 2000 - in_bin], [reference.counts[bin_], 10_000 - reference.counts[bin_]]]
    expected = fisher_exact(table, alternative="greater").pvalue * len(reference.counts)
    assert rate.p_value == pytest.approx(expected, rel=1e-6)
    zeros = int((now == 0).sum())
    assert rate.distance == pytest.approx(zeros / 2000 - reference.counts[bin_] / 10_000)
    assert rate.upper > rate.distance
    assert rate.detail == (
        f"'x' is 0 in {zeros / 20:.1f} % of the rows, in the profile in at most {reference.counts[bin_] / 100:.1f} %"
    )


def test_two_per_cent_filled_in_are_nearly_always_found_and_one_per_cent_more_often_than_not():
    found = {
        share: [rate_of(filled(seed, share), NORMAL).distance > 0.003 for seed in range(20)] for share in (0.01, 0.02)
    }
    assert np.mean(found[0.02]) == 1
    assert 0.5 < np.mean(found[0.01]) <= 1


def test_unchanged_data_repeat_a_value_significantly_no_more_often_than_alpha():
    # Numbers rounded to one digit repeat, and their bins hold a few values each.
    rng, found = np.random.default_rng(2), 0
    for _ in range(120):
        then, now = (np.round(np.exp(rng.normal(3, 1, rows)), 1) for rows in (2000, 500))
        found += rate_of(now, then, max_rate=1e-9, alpha=0.05).p_value <= 0.05
    assert found <= 0.05 * 120


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (lambda rng, n: rng.poisson(4, n).astype(float), lambda rng, n: rng.poisson(5, n).astype(float)),
        (lambda rng, n: rng.normal(size=n), lambda rng, n: rng.normal(1, 0.3, n)),
        (lambda rng, n: rng.normal(size=n), lambda rng, n: np.where(rng.random(n) < 0.02, 999.0, rng.normal(size=n))),
        (lambda rng, n: np.zeros(n), lambda rng, n: rng.normal(size=n)),
    ],
    ids=["few values", "a shift", "out of range", "constant before"],
)
def test_other_changes_are_not_called_a_repeated_value(then, now):
    rng = np.random.default_rng(3)
    rate = rate_of(now(rng, 2000), then(rng, 10_000))
    assert (rate.distance, rate.p_value, rate.upper) == (0, 1, 0)


def test_a_heavy_value_that_grows_is_found_beside_others():
    rng = np.random.default_rng(4)

    def draw(rows, zeros):
        return np.where(rng.random(rows) < zeros, 0.0, rng.lognormal(0, 1, rows))

    assert rate_of(draw(2000, 0.3), draw(10_000, 0.2)).distance == pytest.approx(0.1, abs=0.04)
    assert rate_of(draw(2000, 0.2), draw(10_000, 0.2)).distance == 0


def test_null_and_infinite_rows_are_no_repeated_value():
    now = filled(5, 0.02)
    now[:100], now[100:120] = np.nan, np.inf
    assert rate_of(now, NORMAL).detail.startswith("'x' is 0 in ")


def test_blocks_make_the_same_rows_say_less():
    now = filled(6, 0.02)
    assert rate_of(now, NORMAL).p_value < 1e-3
    assert rate_of(now, NORMAL, blocks=Blocks(20, 20)).distance == 0


def test_a_fault_within_the_budget_is_not_looked_for():
    assert rate_of(filled(7, 0.02), NORMAL, max_rate=0.05).distance == 0


def test_of_many_rows_a_sample_is_looked_at_and_all_are_told():
    now = filled(8, 0.015, rows=100_000)
    zeros = int((now == 0).sum())
    assert rate_of(now, NORMAL).detail.startswith(f"'x' is 0 in {zeros / 1000:.1f} % of the rows")


@pytest.mark.parametrize("rows", [16_384, 100_000, 1_234_567])
def test_the_sample_meets_every_part_and_every_phase_of_a_rhythm(rows):
    sample = sample_rows(rows)
    assert sample.size == np.unique(sample).size == 8192
    assert 0 <= sample[0] < sample[-1] < rows
    for period in (2, 7, 24, 60, 1440):
        expected = np.bincount(np.arange(rows) % period) / rows
        assert np.abs(np.bincount(sample % period, minlength=period) / sample.size - expected).max() < 0.01
