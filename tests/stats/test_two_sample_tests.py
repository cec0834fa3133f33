"""Two-sample tests against scipy and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp, pearsonr

from pytest_modelserve.stats import holm
from pytest_modelserve.stats.two_sample_tests import (
    POWERS,
    correlation_change,
    correlations_of,
    discriminant,
    distance_bound,
    distribution_distance,
    effective_rows,
    effective_rows_for_distance,
    feature_blocks,
    held_out_scores,
    kolmogorov_p_value,
    one_sided_distance,
    passable_distance,
    permutation_p_value,
    rows_for_distance,
)


def counted(values, edges):
    return np.histogram(values, bins=[-np.inf, *edges, np.inf])[0]


def test_effective_rows_are_half_of_equal_samples_and_at_most_the_smaller_one():
    assert effective_rows(100, 100) == 50
    assert effective_rows(1e12, 100) == pytest.approx(100)
    assert effective_rows(100, 0) == 0


def test_distance_with_an_edge_at_every_value_is_that_of_scipy():
    rng = np.random.default_rng(0)
    then, now = rng.poisson(5, 300), rng.poisson(6, 200)
    edges = np.arange(0, 25) + 0.5
    expected = ks_2samp(then, now).statistic
    assert distribution_distance(counted(then, edges), counted(now, edges)) == pytest.approx(expected, abs=1e-12)


def test_fewer_edges_never_make_a_distance_larger():
    rng = np.random.default_rng(1)
    for _ in range(50):
        then, now = rng.normal(size=80), rng.normal(0.3, 1.2, size=60)
        edges = np.sort(rng.normal(size=rng.integers(1, 20)))
        binned = distribution_distance(counted(then, edges), counted(now, edges))
        assert binned <= ks_2samp(then, now).statistic + 1e-12


@pytest.mark.parametrize(("n", "m"), [(8, 6), (10, 30), (40, 25), (100, 100), (500, 60)])
def test_p_value_is_at_most_three_per_cent_below_the_exact_one(n, m):
    rng = np.random.default_rng(2)
    for shift in np.linspace(0, 1, 40):
        exact = ks_2samp(rng.normal(size=n), rng.normal(shift, size=m), method="exact")
        ours = kolmogorov_p_value(exact.statistic, effective_rows(n, m))
        assert ours >= min(exact.pvalue, 0.2) / 1.03


@pytest.mark.parametrize("ties", [False, True], ids=["continuous", "ties"])
def test_binned_p_values_of_unchanged_samples_are_rarely_small(ties):
    # 2,000 worlds: 5 % and 1 % within 3 standard errors at most; binning and ties only make them fewer.
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(2000):
        then, now = rng.normal(size=150), rng.normal(size=100)
        if ties:
            then, now = np.round(then), np.round(now)
        edges = np.quantile(then, np.arange(1, 16) / 16)
        counts = counted(then, np.unique(edges)), counted(now, np.unique(edges))
        p_values.append(kolmogorov_p_value(distribution_distance(*counts), effective_rows(150, 100)))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.065
    assert np.mean(np.array(p_values) <= 0.01) <= 0.017


@pytest.mark.parametrize(("standard", "p_value"), [(1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)])
def test_p_value_has_the_published_critical_values(standard, p_value):
    # Smirnov (1948), Annals of Mathematical Statistics 19, 279–281: the table of the limit.
    assert kolmogorov_p_value(standard / 20, 400) == pytest.approx(p_value, rel=2e-3)


def test_bound_misses_a_true_distance_in_fewer_than_five_per_cent_of_samples():
    # A uniform sample against one shifted by 0.2: the true distance is 0.2 at every point between 0.2 and 1.
    rng, edges = np.random.default_rng(4), np.arange(1, 120) / 100
    missed = 0
    for _ in range(2000):
        counts = counted(rng.random(80), edges), counted(rng.random(60) + 0.2, edges)
        missed += distance_bound(distribution_distance(*counts), effective_rows(80, 60)) < 0.2
    assert missed / 2000 < 0.05


def test_bound_without_rows_is_one():
    assert distance_bound(0.0, 0) == 1
    assert distance_bound(0.5, 1) == 1
    assert kolmogorov_p_value(1.0, 0) == 1
    assert passable_distance(0) == 1


def test_rows_for_the_example_of_the_design():
    assert rows_for_distance(0.10, reference=10_000, tests=20) == 1132


@pytest.mark.parametrize(("distance", "tests"), [(0.1, 1), (0.1, 20), (0.05, 5)])
def test_rows_for_distance_are_the_fewest_for_which_it_is_passable(distance, tests):
    rows = rows_for_distance(distance, reference=8000, tests=tests)
    assert passable_distance(effective_rows(8000, rows), tests=tests) <= distance
    assert passable_distance(effective_rows(8000, rows - 1), tests=tests) > distance


def test_unchanged_samples_of_the_rows_asked_for_pass_nineteen_times_in_twenty():
    rng, tests, distance = np.random.default_rng(5), 5, 0.2
    rows = rows_for_distance(distance, reference=1000, tests=tests)
    shares = np.full(64, 1 / 64)
    passed = 0
    for _ in range(1000):
        seen = [
            distribution_distance(rng.multinomial(1000, shares), rng.multinomial(rows, shares)) for _ in range(tests)
        ]
        passed += max(distance_bound(value, effective_rows(1000, rows)) for value in seen) <= distance
    assert 0.94 < passed / 1000 < 0.995


def test_too_small_a_reference_passes_with_no_number_of_rows():
    needed = effective_rows_for_distance(0.1, tests=20)
    assert rows_for_distance(0.1, reference=math.floor(needed), tests=20) is None
    assert rows_for_distance(0.1, reference=math.ceil(needed) + 1, tests=20) > 100_000


def sums_of(rows):
    """The fifteen sums of each pair of columns of `rows` (n, columns), in the order of POWERS."""
    raised = [rows**power for power in range(5)]
    return np.array([(raised[a].T @ raised[b])[np.triu_indices(rows.shape[1], 1)] for a, b in POWERS]).T


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
        differences = np.abs(np.arctanh(before.estimates) - np.arctanh(after.estimates))
        fisher += (differences / np.sqrt(1 / (rows[0] - 3) + 1 / (rows[1] - 3))).max() > 3.12  # 0.05 / 28, two-sided
    return ours / repeats, fisher / repeats


def test_tail_dependence_raises_no_false_alarm_where_fishers_variance_does():
    ours, fisher = family_alarms(np.random.default_rng(4), copula="t3", rho=0.0, rows=(1000, 400), repeats=150)
    assert fisher > 0.15
    assert ours <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize(("rho", "rows"), [(0.0, (300, 60)), (0.9, (300, 60)), (0.9, (100, 1000))])
def test_few_normal_rows_do_not_alarm_more_often_than_alpha(rho, rows):
    ours, _ = family_alarms(np.random.default_rng(5), copula="normal", rho=rho, rows=rows, repeats=150)
    assert ours <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)


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


def test_correlation_with_a_constant_column_is_unknown():
    then = correlations_of(sums_of(drawn(np.random.default_rng(10), 100, 2)))
    constant = correlations_of(sums_of(np.ones((100, 2))))
    change = correlation_change(then, constant)
    assert np.isnan(constant.estimates[0])
    assert (change.changes[0], change.p_values[0], change.highs[0]) == (0, 1, 2)


def labeled(then, now, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.concatenate((then, now))
    return feature_blocks(rows, rng=rng), np.arange(len(rows)) >= len(then), rng


def p_value(then, now, *, seed=0, most=199):
    blocks, current, rng = labeled(then, now, seed)
    return permutation_p_value(blocks, current, most=most, rng=rng)


def test_axes_are_those_of_the_covariance():
    rows = np.random.default_rng(0).normal(size=(60, 4)) * [3, 2, 1, 0]
    block = feature_blocks(rows, rng=np.random.default_rng(1))[0]
    expected = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1][:3]
    assert block.variances == pytest.approx(expected)
    assert block.axes.T @ block.axes / 60 == pytest.approx(np.diag(expected), abs=1e-9)


def test_cosines_approximate_the_gaussian_kernel():
    rows = np.random.default_rng(2).normal(size=(40, 3))
    blocks = feature_blocks(rows, rng=np.random.default_rng(3))
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / 2 / np.median(squares[squares > 0]))
    center = np.eye(40) - 1 / 40
    found = blocks[2].axes @ blocks[2].axes.T * 2 / 256
    assert np.abs(found - center @ kernel @ center).max() < 0.35
    assert np.corrcoef(found.ravel(), (center @ kernel @ center).ravel())[0, 1] > 0.95


def test_statistic_is_the_ridge_mahalanobis_distance_of_the_means():
    # One linear block: constant rows but one column have no kernels of use, so its own statistic is compared.
    rng = np.random.default_rng(4)
    rows, current = rng.normal(size=(50, 3)), np.arange(50) >= 30
    block = feature_blocks(rows, rng=rng)[:1]
    centered = rows - rows.mean(axis=0)
    covariance = centered.T @ centered / 50
    largest = np.linalg.eigvalsh(covariance)[-1]
    difference = rows[current].mean(axis=0) - rows[~current].mean(axis=0)
    expected = []
    for ridge in (0.1, 0.3):
        inverse = np.linalg.inv(covariance + ridge * largest * np.eye(3))
        shares = np.linalg.eigvals(covariance @ inverse).real
        freedom = shares.sum() ** 2 / (shares**2).sum()
        ratio = difference @ inverse @ difference / ((1 / 30 + 1 / 20) * 50 / 49 * shares.sum())
        expected.append((np.cbrt(ratio) - 1 + 2 / (9 * freedom)) / np.sqrt(2 / (9 * freedom)))
    assert discriminant(block, current) == pytest.approx([max(expected)])


def test_p_values_of_unchanged_rows_keep_their_error_rates():
    rng, p_values = np.random.default_rng(5), []
    for seed in range(60):
        then, now = (np.clip(rng.standard_cauchy(size=(rows, 3)), -5, 5) for rows in (30, 20))
        p_values.append(p_value(then, now, seed=seed, most=59))
    for level in (0.05, 0.1, 0.3):
        assert np.mean(np.array(p_values) <= level) <= level + 2.5 * np.sqrt(level * (1 - level) / 60)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + 0.4,
        lambda rows: rows * 1.6,
        lambda rows: np.column_stack((rows[:, 0], rows[:, 0] * np.sign(rows[:, 1]), *rows.T[2:])),
        lambda rows: np.where(np.abs(rows[:, :1]) < 0.7, rows + np.array([2, 0, 0, 0]), rows),
    ],
    ids=["moved", "wider", "dependent", "a hole"],
)
def test_changes_of_many_kinds_are_found(change):
    rng = np.random.default_rng(6)
    assert p_value(rng.normal(size=(400, 4)), change(rng.normal(size=(300, 4))), most=199) <= 0.01


def test_equal_rows_have_not_changed():
    assert p_value(np.ones((30, 2)), np.ones((20, 2))) == 1


def test_a_value_beyond_all_labelings_is_one_in_as_many():
    rng = np.random.default_rng(7)
    assert p_value(rng.normal(size=(30, 2)), rng.normal(5, 1, size=(30, 2)), most=99) == 1 / 100


def test_one_sided_distance_is_that_of_scipy():
    rng = np.random.default_rng(8)
    then, now = rng.integers(0, 9, 70).astype(float), rng.integers(2, 11, 50).astype(float)
    assert one_sided_distance(then, now) == pytest.approx(ks_2samp(then, now, alternative="greater").statistic)
    assert one_sided_distance(now + 20, then) == 0


def test_held_out_distance_estimates_the_total_variation_distance():
    rng = np.random.default_rng(9)
    blocks, current, own = labeled(rng.normal(size=(800, 5)), rng.normal(size=(800, 5)))
    assert held_out_scores(blocks, current, rng=own).distance < 1.36 / np.sqrt(400)
    blocks, current, own = labeled(rng.normal(size=(800, 5)), rng.normal([1, 0, 0, 0, 0], 1, size=(800, 5)))
    # Two normal distributions one deviation apart differ by 2Φ(½) − 1 = 0.383.
    assert held_out_scores(blocks, current, rng=own).distance == pytest.approx(0.383, abs=0.04)


def test_rows_of_a_new_kind_score_highest():
    rng = np.random.default_rng(10)
    now = rng.normal(size=(300, 3))
    now[:30] += 6
    blocks, current, own = labeled(rng.normal(size=(600, 3)), now)
    scores = held_out_scores(blocks, current, rng=own).scores[current]
    assert set(np.argsort(-scores)[:20]) <= set(range(30))
