"""Rows that depend on their neighbours: no verdict without a block, and what a block does."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.columns import as_column
from pytest_modelserve.monitoring.drift.gate import strongly_dependent
from pytest_modelserve.monitoring.profiler import autocorrelation
from pytest_modelserve.stats.autocorrelation import LagOne


def autoregressive(rng, worlds, rows, coefficient):
    """(worlds, rows) of a chain with standard normal values."""
    values = np.empty((worlds, rows))
    values[:, 0] = rng.normal(size=worlds)
    for row in range(1, rows):
        values[:, row] = coefficient * values[:, row - 1] + np.sqrt(1 - coefficient**2) * rng.normal(size=worlds)
    return values


@pytest.fixture
def chains():
    return autoregressive(np.random.default_rng(0), 2, 6000, 0.6)


def test_dependent_rows_without_a_block_decide_nothing(chains):
    evidence = measure_drift({"x": chains[1] + 3}, reference_profile({"x": chains[0]}), max_distance=0.1, name="night")
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert (evidence.quantities[0].interval.low, evidence.quantities[0].interval.high) == (0, 1)
    assert evidence.summary == "neighboring rows depend on each other, so drift was not decided"
    estimate = max(autocorrelation(as_column("x", chain)).estimate for chain in chains)
    where = "night" if autocorrelation(as_column("x", chains[1])).estimate == estimate else "the profile"
    assert evidence.findings[0] == (
        f"neighboring rows depend on each other: autocorrelation {estimate:.2f} at lag one in column 'x' of {where} and in "
        "1 more; the effective number of rows is unknown"
    )
    assert evidence.findings[1].startswith("observed, but not decided: 'x' distance 0.8")
    assert evidence.advice == (
        "pass block= the number of neighboring rows that depend on each other (52 for a year of weekly rows), or block=1 if "
        "the order of the rows has no meaning"
    )


def test_a_block_decides_with_the_rows_that_it_leaves(chains):
    profile = reference_profile({"x": chains[0]})
    moved = measure_drift({"x": chains[1] + 3}, profile, max_distance=0.1, block=20)
    assert moved.verdict is Verdict.FAIL
    assert "blocks of 20 (profile: 20)" in moved.method.assumptions
    unmoved = measure_drift({"x": chains[1]}, profile, max_distance=0.2, block=20)
    assert unmoved.quantities[0].interval.high == pytest.approx(unmoved.quantities[0].value + 1.36 / np.sqrt(150))


def test_the_block_of_the_profile_holds_for_both_and_that_of_the_call_for_the_data(chains):
    profile = reference_profile({"x": chains[0]}, block=20)
    assert "blocks of 20 (profile: 20)" in measure_drift({"x": chains[1]}, profile, max_distance=0.2).method.assumptions
    given = measure_drift({"x": chains[1]}, profile, max_distance=0.2, block=10)
    assert "blocks of 10 (profile: 20)" in given.method.assumptions


def test_a_block_of_one_says_that_the_order_means_nothing():
    values = np.sort(np.random.default_rng(1).normal(size=5000))
    shuffled = {"x": np.random.default_rng(2).permutation(values)}
    profile = reference_profile({"x": values})
    assert measure_drift(shuffled, profile, max_distance=0.1).verdict is Verdict.INCONCLUSIVE
    assert measure_drift(shuffled, profile, max_distance=0.1, block=1).verdict is Verdict.PASS


@pytest.mark.parametrize("kind", ["text", "boolean", "integer"])
def test_dependence_shows_in_every_kind_of_column(chains, kind):
    high = chains[1] > 0.5
    values = {"text": np.where(high, "day", "night"), "boolean": high, "integer": np.floor(chains[1]).astype(int)}[kind]
    assert strongly_dependent(autocorrelation(as_column("x", values)), columns=20)
    shuffled = np.random.default_rng(3).permutation(values)
    assert not strongly_dependent(autocorrelation(as_column("x", shuffled)), columns=20)


def test_independent_rows_are_rarely_taken_for_dependent_ones():
    rng = np.random.default_rng(4)
    for rows in (5, 20, 100, 1000):
        found = [
            strongly_dependent(autocorrelation(as_column("x", rng.normal(size=rows))), columns=1) for _ in range(500)
        ]
        assert sum(found) <= 3  # 0.5 are expected at zero autocorrelation with the line at zero


def test_a_dependence_at_the_line_is_let_through_and_one_well_above_it_is_not():
    rng = np.random.default_rng(5)
    for coefficient, fewest, most in ((0.1, 0, 5), (0.3, 195, 200)):
        chains = autoregressive(rng, 200, 2048, coefficient)
        found = sum(strongly_dependent(autocorrelation(as_column("x", chain)), columns=1) for chain in chains)
        assert fewest <= found <= most


def test_the_sample_of_stretches_reaches_the_end_of_a_long_column():
    values = np.zeros(100_000)
    values[-300:] = np.arange(300)
    assert autocorrelation(as_column("x", values)).estimate > 0.9
    assert autocorrelation(as_column("x", np.zeros(100_000))) == LagOne(0.0, 0)


def test_negative_dependence_is_let_through():
    assert not strongly_dependent(LagOne(-0.9, 1000), columns=1)


def test_with_the_right_block_a_chain_fails_no_more_often_than_alpha():
    # A chain of 0.6 forgets within 10 rows: sums over 600 of its rows vary as those of 150 independent ones do.
    rng, failed, unaware = np.random.default_rng(6), 0, 0
    then, now = autoregressive(rng, 80, 600, 0.6), autoregressive(rng, 80, 600, 0.6)
    for first, second in zip(then, now, strict=True):
        profile = reference_profile({"x": first})
        failed += measure_drift({"x": second}, profile, max_distance=1e-6, alpha=0.05, block=10).verdict is Verdict.FAIL
        unaware += measure_drift({"x": second}, profile, max_distance=1e-6, alpha=0.05, block=1).verdict is Verdict.FAIL
    assert failed <= 0.05 * 80
    assert unaware > 0.2 * 80
