import numpy as np
import pytest
from scipy import integrate, stats

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.e_process import (
    SHIFT_SCALE,
    Starts,
    block_starts,
    mean_log_e,
    mixture_log_e,
    rate_limits,
    rate_log_e,
    start_probabilities,
)

EFFECT = stats.norm(scale=SHIFT_SCALE)


def _mean_e(totals, rows, *, reference_rows, tolerated=0.0, side=0):
    arrays = np.array(totals, float)[:, np.newaxis], np.array(rows, float)[:, np.newaxis]
    found = mean_log_e(*arrays, reference_rows=[reference_rows], tolerated=[tolerated], side=[side])
    return np.exp(found[:, 0])


def test_mean_of_any_shift_is_the_integrated_likelihood_ratio_of_the_difference():
    totals, rows, n0 = [3.0, -20.0, 60.0], [200, 300, 500], 1_000
    found = _mean_e(totals, rows, reference_rows=n0)
    for block in range(3):
        before, after = n0 + sum(rows[:block]), sum(rows[block:])
        difference = sum(totals[block:]) / after - sum(totals[:block]) / before
        of_difference = stats.norm(scale=np.sqrt(1 / before + 1 / after))
        expected, _ = integrate.quad(
            lambda t, d=difference, law=of_difference: law.pdf(d - t) / law.pdf(d) * EFFECT.pdf(t), -1, 1, epsabs=1e-12
        )
        assert found[block] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize("total", [60.0, -60.0, 10.0])
def test_mean_beyond_a_tolerance_is_the_ratio_to_a_shift_of_exactly_the_tolerance(side, total):
    rows, n0, tolerated = 700, 2_000, 0.03
    found = _mean_e([total], [rows], reference_rows=n0, tolerated=tolerated, side=side)
    law, difference = stats.norm(scale=np.sqrt(1 / n0 + 1 / rows)), total / rows
    expected = 0.0
    for direction in (1, -1) if side == 0 else (side,):
        ratio, _ = integrate.quad(
            lambda t, s=direction: (
                law.pdf(difference - s * (tolerated + t)) / law.pdf(difference - s * tolerated) * 2 * EFFECT.pdf(t)
            ),
            0,
            1,
            epsabs=1e-12,
        )
        expected += ratio / (2 if side == 0 else 1)
    assert found[0] == pytest.approx(expected, rel=1e-8)


def test_rate_is_a_mixture_of_binomial_likelihood_ratios():
    events, rows, limit = 30, 1_000, 0.01
    rates = limit + (1 - limit) * 0.5 ** np.arange(1, 11)
    expected = np.mean(stats.binom.pmf(events, rows, rates) / stats.binom.pmf(events, rows, limit))
    found = rate_log_e([[float(events)]], [[float(rows)]], limit=[limit])
    assert np.exp(found[0, 0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("limit", [0.001, 0.3, 0.97])
def test_rate_expects_at_most_one_for_every_rate_up_to_the_limit(rows, limit):
    events = np.arange(rows + 1.0)
    log_e = rate_log_e(events[np.newaxis], np.full((1, rows + 1), float(rows)), limit=np.full(rows + 1, limit))[0]
    for rate in (limit, limit / 2, limit / 20):
        assert np.exp(stats.binom.logpmf(events, rows, rate) + log_e).sum() <= 1 + 1e-9


def test_limits_of_rates_are_those_of_clopper_and_pearson():
    low, high = rate_limits([0, 7, 50], [50, 50, 50], alpha=0.01)
    for place, events in enumerate((0, 7, 50)):
        expected = binomial_bounds(events, 50, low_level=0.99, high_level=0.99)
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high))


def test_streams_without_rows_have_no_evidence():
    assert _mean_e([0.0, 0.0], [0, 0], reference_rows=100).tolist() == [1.0, 1.0]
    assert np.exp(rate_log_e([[0.0]], [[0.0]], limit=[0.1])).tolist() == [[0.0]]


def test_blocks_never_split_and_cover_all_slots():
    earlier = block_starts(0)
    for latest in range(1, 1_100):
        starts = block_starts(latest)
        assert set(starts) <= {*earlier.tolist(), latest}
        assert starts[0] == 0
        assert starts[-1] == latest
        earlier = starts
    assert block_starts(1_000).size == 64


def test_weights_of_all_starts_add_up_to_one():
    starts = Starts.of(10, life=365)
    assert starts.weights.sum() + starts.future == pytest.approx(1.0)
    assert Starts.of(500, life=365).future == 0.0
    assert starts.block_of([0, 3, 10]).tolist() == [0, 3, 10]


def test_start_of_a_change_is_found():
    totals = np.zeros((12, 1))
    totals[7:] = 200.0
    log_e = mean_log_e(totals, np.full((12, 1), 1_000.0), reference_rows=[10_000], tolerated=[0.0], side=[0])
    starts = Starts.of(11, life=365)
    assert start_probabilities(log_e[:, 0], starts).argmax() == 7
    assert mixture_log_e(log_e, starts)[0] > np.log(20)


@pytest.mark.parametrize("tolerated", [0.0, 0.05])
def test_lives_at_the_tolerated_shift_alarm_in_at_most_their_error_rate(tolerated):
    """400 lives of 60 nights with one stream, looked at every night; the mean of the reference is itself uncertain."""
    rng, lives, nights, rows, n0 = np.random.default_rng(0), 400, 60, 50, 1_000
    true = tolerated + rng.normal(scale=n0**-0.5, size=lives)
    totals = rng.normal(rows * true, rows**0.5, size=(nights, lives))
    alarmed = np.zeros(lives, dtype=bool)
    reference = {"reference_rows": np.full(lives, n0), "tolerated": np.full(lives, tolerated), "side": np.zeros(lives)}
    for night in range(nights):
        starts = Starts.of(night, life=100)
        blocks = starts.block_of(np.arange(night + 1))
        pooled = np.zeros((starts.slots.size, lives))
        np.add.at(pooled, blocks, totals[: night + 1])
        n = np.bincount(blocks)[:, np.newaxis] * np.full(lives, float(rows))
        alarmed |= mixture_log_e(mean_log_e(pooled, n, **reference), starts) >= np.log(20)
    assert alarmed.mean() <= 0.05


def test_negative_tolerance_is_refused():
    with pytest.raises(UsageError, match="tolerated must be at least 0, got -1"):
        mean_log_e([[1.0]], [[1.0]], reference_rows=[10], tolerated=[-1.0], side=[0])
