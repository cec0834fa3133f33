from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, pearsonr

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import holm
from pytest_modelserve.stats.two_sample_tests import POWERS, correlation_change, correlations_of


def sums_of(rows):
    """Brute force: the fifteen sums of each pair of columns of `rows` (n, columns)."""
    first, second = np.triu_indices(rows.shape[1], 1)
    return np.array(
        [[(rows[:, i] ** a * rows[:, j] ** b).sum() for a, b in POWERS] for i, j in zip(first, second, strict=True)]
    )


def drawn(rng, rows, columns, *, rho=0.5, copula="normal"):
    shared = np.sqrt(rho) * rng.normal(size=(rows, 1)) + np.sqrt(1 - rho) * rng.normal(size=(rows, columns))
    return shared if copula == "normal" else shared / np.sqrt(rng.chisquare(3, size=(rows, 1)) / 3)


def test_estimate_is_that_of_scipy():
    rows = 3 + drawn(np.random.default_rng(0), 200, 3)
    expected = [pearsonr(rows[:, i], rows[:, j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert correlations_of(sums_of(rows)).estimates == pytest.approx(expected, rel=1e-9)


def test_variance_is_that_of_the_influence_function():
    rows = 3 + drawn(np.random.default_rng(1), 500, 2, copula="t3")
    x, y = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).T
    r = np.mean(x * y)
    influence = x * y - r * (x**2 + y**2) / 2
    assert correlations_of(sums_of(rows)).variances == pytest.approx([np.mean(influence**2)], rel=1e-6)


def test_variance_of_normal_columns_is_that_of_fisher():
    rows = drawn(np.random.default_rng(2), 400_000, 2, rho=0.6)
    assert correlations_of(sums_of(rows)).variances == pytest.approx([(1 - 0.36) ** 2], rel=0.02)


def test_variance_is_that_of_repeated_samples_with_heavy_tails():
    rng = np.random.default_rng(3)
    rows = np.clip(drawn(rng, 400_000, 2, rho=0.0, copula="t3"), -4, 4)
    found = correlations_of(sums_of(rows))
    repeated = [np.corrcoef(part.T)[0, 1] for part in rows.reshape(1000, 400, 2)]
    assert 400 * np.var(repeated) == pytest.approx(found.variances[0], rel=0.12)
    assert found.variances[0] > 1.4  # where Fisher's is 1


def scored(reference, *others):
    """Normal scores by the reference's quantiles, cut at two."""
    from scipy.special import ndtri

    result = []
    for rows in (reference, *others):
        ranks = [
            np.searchsorted(np.sort(then), now, side="right") for then, now in zip(reference.T, rows.T, strict=True)
        ]
        shares = (np.column_stack(ranks) + 0.5) / (len(reference) + 1)
        result.append(np.round(10 * np.clip(ndtri(np.clip(shares, 1e-3, 1 - 1e-3)), -2, 2)))
    return result


def family_alarms(rng, *, copula, rho, rows, repeats):
    ours = fisher = 0
    for _ in range(repeats):
        then, now = scored(
            drawn(rng, rows[0], 8, rho=rho, copula=copula), drawn(rng, rows[1], 8, rho=rho, copula=copula)
        )
        before, after = correlations_of(sums_of(then)), correlations_of(sums_of(now))
        ours += (holm(correlation_change(before, after).p_values) <= 0.05).any()
        apart = np.abs(np.arctanh(before.estimates) - np.arctanh(after.estimates))
        fisher += (apart / np.sqrt(1 / (rows[0] - 3) + 1 / (rows[1] - 3))).max() > 3.12  # 0.05 / 28, two-sided
    return ours / repeats, fisher / repeats


def test_tails_that_go_together_do_not_alarm_though_fisher_does():
    ours, fisher = family_alarms(np.random.default_rng(4), copula="t3", rho=0.0, rows=(1000, 400), repeats=150)
    assert fisher > 0.15
    assert ours <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize(("rho", "rows"), [(0.0, (300, 60)), (0.9, (300, 60)), (0.9, (100, 1000))])
def test_few_normal_rows_do_not_alarm_more_often_than_alpha(rho, rows):
    ours, _ = family_alarms(np.random.default_rng(5), copula="normal", rho=rho, rows=rows, repeats=150)
    assert ours <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


def test_p_values_of_unchanged_pairs_are_about_uniform():
    rng = np.random.default_rng(6)
    chances = [
        correlation_change(
            correlations_of(sums_of(drawn(rng, 2000, 2, rho=0.3))),
            correlations_of(sums_of(drawn(rng, 800, 2, rho=0.3))),
        ).p_values[0]
        for _ in range(300)
    ]
    assert kstest(chances, "uniform").pvalue > 0.01


def test_bound_covers_the_true_change_in_nineteen_of_twenty():
    rng, missed = np.random.default_rng(7), 0
    for _ in range(300):
        then, now = drawn(rng, 1000, 2, rho=0.5), drawn(rng, 300, 2, rho=0.3)
        missed += correlation_change(correlations_of(sums_of(then)), correlations_of(sums_of(now))).highs[0] < 0.2
    assert missed / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_copies_that_stay_copies_have_not_changed_and_some_that_differ_have():
    rng = np.random.default_rng(8)
    then, now = (np.repeat(rng.normal(size=(rows, 1)), 2, axis=1) for rows in (5000, 2000))
    same = correlation_change(correlations_of(sums_of(then)), correlations_of(sums_of(now)))
    assert (same.changes[0], same.p_values[0]) == (pytest.approx(0), pytest.approx(1))
    now[:100, 1] = rng.normal(size=100)
    assert correlation_change(correlations_of(sums_of(then)), correlations_of(sums_of(now))).p_values[0] < 1e-6


def test_blocks_count_rows_by_their_number():
    rng = np.random.default_rng(9)
    then, now = correlations_of(sums_of(drawn(rng, 1000, 2))), correlations_of(sums_of(drawn(rng, 1000, 2, rho=0.3)))
    plain, blocked = correlation_change(then, now), correlation_change(then, now, reference_block=10, current_block=10)
    assert plain.changes == blocked.changes
    assert plain.p_values[0] < 1e-3 < 0.05 < blocked.p_values[0]
    assert plain.highs[0] < blocked.highs[0]


def test_what_does_not_vary_is_unknown():
    then = correlations_of(sums_of(drawn(np.random.default_rng(10), 100, 2)))
    constant = correlations_of(sums_of(np.ones((100, 2))))
    change = correlation_change(then, constant)
    assert np.isnan(constant.estimates[0])
    assert (change.changes[0], change.p_values[0], change.highs[0]) == (0, 1, 2)


def test_sums_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"^sums have the shape \(pairs, 15\), not \(3, 6\)$"):
        correlations_of(np.ones((3, 6)))
