"""Rates of faulty rows: p-values, bounds, error rates and messages."""

import numpy as np
import pytest
from scipy.stats import beta, fisher_exact

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.duplicates import RepeatedRows
from pytest_modelserve.monitoring.profiler import backward_rows
from pytest_modelserve.monitoring.quality.rates import (
    CountedCategories,
    disorder_rate,
    duplicate_rate,
    is_ordered,
    lost_category_rate,
    new_category_rate,
    repeated_value_rate,
    sample_rows,
)
from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.monitoring.window import read_window

INDEPENDENT = Blocks()


def text(counts):
    return np.repeat([f"c{index}" for index in range(len(counts))], counts)


def counted(then, now, *, as_profile=False):
    profile = reference_profile({"x": then})
    data = reference_profile({"x": now}, like=profile) if as_profile else {"x": now}
    ((column, reference),) = read_window(data, profile).pairs[:1]
    return CountedCategories.of(column, reference)


def lost(then, now, *, alpha=0.001, blocks=INDEPENDENT, **options):
    return lost_category_rate(counted(then, now, **options), blocks, alpha=alpha)


@pytest.mark.parametrize("as_profile", [False, True])
def test_a_lost_category_is_reported_with_its_rate_in_the_profile(as_profile):
    rate = lost(text([5000, 3000, 1500, 500]), text([1000, 600, 300]), as_profile=as_profile)
    assert (rate.distance, rate.fault) == (0.05, "lost category")
    assert rate.p_value < 1e-20
    assert rate.upper == pytest.approx(beta.ppf(0.95, 501, 9500))
    assert rate.detail == "'x' lost categories with 5.0 % of the profile's rows: 'c3' (500)"


def test_many_lost_categories_are_reported_together():
    rate = lost(text([9200, *[20] * 40]), text([2000]))
    assert rate.distance == 0.08
    assert rate.detail == (
        "'x' lost categories with 8.0 % of the profile's rows: "
        "'c1' (20), 'c10' (20), 'c11' (20), 'c12' (20), 'c13' (20) and 35 more"
    )


def test_rare_categories_that_miss_a_small_window_by_chance_are_bounded_by_the_largest():
    rate = lost(text([9970, 12, 10, 8]), text([300]))
    assert rate.p_value > 0.05
    assert rate.distance == 0.0012
    assert rate.upper == pytest.approx(beta.ppf(0.95, 13, 9988))


def test_nothing_lost_is_bounded_by_nothing():
    rate = lost(text([50, 50]), text([99, 1]))
    assert (rate.distance, rate.p_value, rate.upper) == (0, 1, 0)


def test_the_p_value_of_lost_categories_is_not_below_that_of_permutations():
    then, now = np.array([200, 60, 25, 9, 4, 2]), np.array([90, 20, 0, 0, 0, 0])
    p_value = lost(text(then), text(now)).p_value
    rng, rows, as_many = np.random.default_rng(0), text(then + now), 0
    for _ in range(8_000):
        drawn = rng.permutation(rows)[: now.sum()]
        gone = np.isin(rows, drawn, invert=True).sum()
        as_many += gone >= 40
    assert as_many / 8_000 < p_value < 1e-3


def test_unchanged_data_lose_categories_significantly_no_more_often_than_alpha():
    shares = 1 / np.arange(1, 60) ** 1.2
    rng, p_values = np.random.default_rng(1), []
    for _ in range(150):
        then, now = (rng.multinomial(rows, shares / shares.sum()) for rows in (2000, 400))
        p_values.append(lost(text(then), text(now)).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05


def test_dependent_rows_lose_less_significantly():
    then, now = text([9900, 100]), text([600])
    assert lost(then, now, blocks=Blocks(50, 50)).p_value > 0.5 > 0.01 > lost(then, now).p_value


def test_new_categories_of_hashed_data_are_at_least_those_of_empty_buckets():
    counts = counted(text([900, 100]), text([500, *[1] * 150]), as_profile=True)
    assert not counts.named
    rate = new_category_rate(counts, Blocks())
    assert 100 / 650 < rate.distance <= 150 / 650
    assert (rate.upper, rate.detail) == (
        1.0,
        f"'x' has a new category in at least {round(650 * rate.distance)} of 650 rows",
    )


def pairs(copies, rows):
    """Rows of which `copies` are the second of two."""
    return RepeatedRows.of_counts({2: copies, 1: rows - 2 * copies})


def duplicates(now, then):
    """The rate of two data sets, each given as its different rows' numbers."""
    return duplicate_rate(now, now.total, then, then.total, Blocks())


def test_copies_are_held_against_those_of_the_profile_by_fishers_test():
    rate = duplicates(pairs(30, 10_000), pairs(10, 10_000))
    assert rate.distance == pytest.approx(0.002)
    expected = fisher_exact([[30, 9970], [10, 9990]], alternative="greater").pvalue
    assert rate.p_value == pytest.approx(expected, rel=1e-6)
    assert (rate.where, rate.key) == ("duplicate rows", "duplicate rows")
    assert rate.detail == "30 of 10,000 rows equal an earlier one, 0.1 % → 0.3 % (+0.2 points)"


def test_fewer_rows_than_the_profile_has_are_expected_to_have_fewer_copies():
    rate = duplicates(pairs(30, 2000), pairs(500, 10_000))  # a fifth of the rows has a twenty-fifth of the pairs
    assert rate.base == pytest.approx(500 * 0.2**2 / 2000, rel=0.02)
    assert rate.distance == pytest.approx(0.015 - rate.base)


def test_more_rows_than_the_profile_has_are_expected_to_have_more_copies():
    kinds = np.random.default_rng(0).integers(0, 625, 40_500)
    then, now = (RepeatedRows.of(np.bincount(rows)) for rows in (kinds[:500], kinds[500:]))
    rate = duplicates(now, then)
    assert then.rows / 500 < 0.4
    assert rate.base > 0.98
    assert abs(rate.distance) < 0.005
    assert rate.upper < 0.02
    assert rate.p_value > 0.01
    assert duplicates(pairs(4000, 40_000), pairs(0, 10_000)).p_value < 1e-9


@pytest.mark.parametrize(("rows", "profile_rows"), [(300, 1000), (3000, 1000)])
@pytest.mark.parametrize("cells", [30, 1000, 30_000])
def test_unchanged_rows_of_few_or_many_kinds_alarm_no_more_often_than_alpha(rows, profile_rows, cells):
    rng = np.random.default_rng(0)

    def copies(size):
        return RepeatedRows.of(np.unique(rng.integers(0, cells, size), return_counts=True)[1])

    p_values = [duplicates(copies(rows), copies(profile_rows)).p_value for _ in range(200)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05


@pytest.mark.parametrize(("rows", "profile_rows"), [(300, 1000), (1000, 1000), (3000, 1000)])
@pytest.mark.parametrize("cells", [30, 1000, 30_000])
def test_the_bound_of_the_increase_of_copies_is_below_the_truth_in_few_samples(rows, profile_rows, cells):
    rng = np.random.default_rng(3)

    def copies(size):
        return RepeatedRows.of(np.bincount(rng.integers(0, cells, size)))

    uppers = [duplicates(copies(rows), copies(profile_rows)).upper for _ in range(200)]
    assert np.mean(np.array(uppers) < -1e-9) <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5
    if cells == 30:
        assert max(uppers) < 0.02


def test_duplicates_of_merged_shards_count_as_rows_of_one_shard():
    kinds = np.random.default_rng(1).integers(0, 20_000, 3000)
    one, two, now = (RepeatedRows.of(np.bincount(rows)) for rows in np.split(kinds, 3))
    merged = one.merged(two)
    assert merged == two.merged(one)
    rate = duplicate_rate(now, 1000, merged, 2000, Blocks())
    assert rate.base == pytest.approx((one.rows + two.rows) / 2000, abs=0.002)


def test_times_earlier_than_the_one_before_are_counted_and_null_left_out():
    assert backward_rows(np.array([1.0, 2.0, 2.0, 1.5, np.nan, 3.0, np.nan, 2.9, np.nan])) == 2
    assert backward_rows(np.array([np.nan])) == 0


@pytest.mark.parametrize(("backward", "keeps"), [(0, True), (250, True), (251, False)])
def test_times_keep_an_order_while_a_quarter_at_most_run_backwards(backward, keeps):
    assert is_ordered(backward, 1000) is keeps


def test_disorder_is_held_against_that_of_the_profile_by_fishers_test():
    rate = disorder_rate("seen", 60, 2000, 100, 10_000, Blocks())
    assert rate.distance == pytest.approx(0.02)
    expected = fisher_exact([[60, 1940], [100, 9900]], alternative="greater").pvalue
    assert rate.p_value == pytest.approx(expected, rel=1e-6)
    assert rate.detail == "'seen' earlier than the row before in 1.0 % → 3.0 % (+2.0 points)"


@pytest.mark.parametrize("jitter", [0.05, 1.0])
def test_logs_as_jittery_as_the_profile_alarm_no_more_often_than_alpha(jitter):
    rng = np.random.default_rng(2)

    def log(rows):
        return backward_rows(np.cumsum(rng.exponential(size=rows)) + rng.normal(0, jitter, rows)), rows

    p_values = [disorder_rate("seen", *log(300), *log(1000), Blocks()).p_value for _ in range(200)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05


INDEPENDENT = Blocks()


def rate_of(now, then, *, max_rate=0.003, alpha=0.001, blocks=INDEPENDENT):
    reference = reference_profile({"x": then}).column("x")
    column, sample = read_table({"x": now}).columns[0], sample_rows(len(now))
    return repeated_value_rate(column, sample, reference, max_rate=max_rate, alpha=alpha, blocks=blocks)


def filled(seed, share, *, rows=2000, value=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(rows) < share, value, rng.normal(size=rows))


NORMAL = np.random.default_rng(0).normal(size=10_000)


def test_a_repeated_value_has_the_p_value_of_the_growth_of_its_bin():
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


def test_a_frequent_value_that_grows_is_found():
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


def test_long_columns_are_sampled_and_reported_over_all_rows():
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
