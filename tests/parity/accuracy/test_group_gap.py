"""The largest difference of a metric between groups."""

import numpy as np
import pytest
from scipy.stats import beta, binom

import pytest_modelserve as ms
from pytest_modelserve.stats import proportion_difference_bounds

N = 3000
LABELS = np.arange(N) % 2
SITE = np.repeat(["Bern", "Graz", "Linz"], 1000)


def gap(errors, *, max_gap=0.05, groups=SITE, **options):
    """The evidence on predictions with so many errors in each site."""
    wrong = np.zeros(N, dtype=bool)
    for site, number in zip(("Bern", "Graz", "Linz"), errors, strict=True):
        wrong[np.flatnonzero(site == SITE)[:number]] = True
    predicted = np.where(wrong, 1 - LABELS, LABELS)
    return ms.measure_group_gap(predicted, labels=LABELS, groups=groups, max_gap=max_gap, **options)


@pytest.mark.parametrize(
    ("errors", "verdict"), [((50, 60, 55), "PASS"), ((50, 60, 90), "INCONCLUSIVE"), ((50, 60, 250), "FAIL")]
)
def test_verdict_is_that_of_the_largest_difference(errors, verdict):
    evidence = gap(errors)
    assert evidence.verdict == verdict
    assert evidence.value == pytest.approx((max(errors) - min(errors)) / 1000)


def test_best_and_worst_group_are_named():
    evidence = gap((50, 60, 250), groups={"site": SITE})
    assert [q.name for q in evidence.quantities] == ["gap", "lowest site=Linz", "highest site=Bern"]
    assert evidence.details["groups"][0] == {"group": "site=Bern", "rows": 1000, "value": 0.95}


def test_small_group_leaves_the_gate_open_and_is_named_with_the_rows_that_decide():
    groups = np.where(np.arange(N) < 20, "rare", "common")
    evidence = gap((0, 60, 55), groups=groups)
    assert evidence.verdict == "INCONCLUSIVE"
    assert evidence.findings == ("the difference of group=rare (20 rows) and group=common (2980) is undecided",)
    assert evidence.advice.startswith("label about ")


def test_groups_below_min_rows_are_left_out_and_named():
    groups = np.where(np.arange(N) < 20, "rare", SITE)
    evidence = gap((50, 60, 55), groups=groups, min_rows=100)
    assert evidence.verdict == "PASS"
    assert evidence.findings == ("left out, fewer than min_rows=100: group=rare (20 rows)",)


def test_several_columns_are_tested_within_one_error_rate():
    evidence = gap((50, 60, 250), groups={"site": SITE, "odd": lambda x: np.arange(N) // 2 % 2 == 1})
    assert [q.name for q in evidence.quantities if q.budget] == ["gap site", "gap odd"]
    assert evidence.quantities[0].verdict == "FAIL"


@pytest.mark.parametrize("metric", ["f1", "roc_auc", "mae"])
def test_other_metrics_take_the_delta_method(metric):
    rng = np.random.default_rng(0)
    spread = np.where(SITE == "Linz", 3.0, 0.5)
    scores = LABELS + spread * rng.normal(size=N)
    outputs = (scores > 0.5).astype(int) if metric == "f1" else scores
    labels = LABELS.astype(float) if metric == "mae" else LABELS
    evidence = ms.measure_group_gap(outputs, labels=labels, groups=SITE, metric=metric, max_gap=0.1)
    assert evidence.verdict == "FAIL"
    assert "pairs of groups" in evidence.method.name


def test_interval_covers_the_true_gap_of_dependent_rows_by_the_delta_method():
    """Families of five rows err together; the high end at 95 % and the low one at 99.9 % hold."""
    rng, truth, families = np.random.default_rng(0), (0.9, 0.8), np.arange(2000) // 5
    site, high, low = np.arange(2000) // 1000, 0, 0
    for _ in range(300):
        right = (rng.random(400) < np.repeat(truth, 200))[families]
        labels = np.arange(2000) % 2
        evidence = ms.measure_group_gap(
            np.where(right, labels, 1 - labels),
            labels=labels,
            groups=site,
            max_gap=0.1,
            sampling=ms.Sampling(groups=families),
        )
        high += evidence.interval.high < 0.1
        low += evidence.interval.low > 0.1
    assert high <= 27  # 5 % of 300, and three standard errors
    assert low <= 2


@pytest.mark.parametrize(("n", "other"), [(20, 20), (50, 300), (300, 50)])
def test_ends_of_a_difference_of_proportions_miss_as_rarely_as_they_say(n, other):
    """By enumeration of all tables, for differences of a tenth."""
    levels = {"low_level": 0.999, "high_level": 0.95}
    tables = [[proportion_difference_bounds(s, n, r, other, **levels) for r in range(other + 1)] for s in range(n + 1)]
    low = np.array([[bounds.low for bounds in row] for row in tables])
    high = np.array([[bounds.high for bounds in row] for row in tables])
    for p in (0.15, 0.5, 0.95):
        chance = np.outer(binom.pmf(range(n + 1), n, p), binom.pmf(range(other + 1), other, p - 0.1))
        assert chance[high < 0.1 - 1e-12].sum() <= 0.05
        assert chance[low > 0.1 + 1e-12].sum() <= 0.0013


def test_difference_of_proportions_is_newcombes_with_exact_bounds():
    found = proportion_difference_bounds(56, 70, 48, 80, low_level=0.95, high_level=0.95)
    upper, lower = beta.ppf(0.95, 57, 14), beta.ppf(0.05, 48, 33)
    assert found.estimate == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + np.hypot(upper - 0.8, 0.6 - lower))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": np.repeat("all", N)}, "needs two groups"),
        ({"groups": {}}, "must not be empty"),
        ({"groups": SITE[:10]}, "it needs one value for each"),
        ({"metric": lambda labels, outputs: 1.0}, "metric is a callable"),
        ({"max_gap": 0.0}, "max_gap"),
        ({"min_rows": 0}, "min_rows"),
        ({"metric": "recall", "groups": LABELS}, "group group=0 .* cannot be compared"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ms.UsageError, match=message):
        gap((1, 2, 3), **options)
