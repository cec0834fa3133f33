"""Lost rows: right in the reference and wrong in the candidate."""

import numpy as np
import pytest
from scipy.stats import beta, binom

import pytest_modelserve as ms

N = 2000
ROWS = np.arange(N, dtype=np.float32)[:, None]
LABELS = np.arange(N) % 2


def lost(voting, rows, *, wrong=range(1000, 1100), max_lost=0.01, **options):
    """The evidence on a candidate that is wrong in `rows` and a reference that is wrong in others."""
    return ms.measure_lost_rows(voting(LABELS, rows), voting(LABELS, wrong), ROWS, LABELS, max_lost=max_lost, **options)


def test_equal_accuracy_with_other_mistakes_fails(voting):
    evidence = lost(voting, range(100))
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[0] == "100 rows lost, 100 gained"
    assert [q.value for q in evidence.quantities[1:3]] == [0.95, 0.95]
    assert evidence.details["lost_rows"] == list(range(50))


@pytest.mark.parametrize(("rows", "verdict"), [(5, "PASS"), (15, "INCONCLUSIVE"), (60, "FAIL")])
def test_verdict_is_that_of_the_exact_binomial_interval(voting, rows, verdict):
    evidence = lost(voting, range(rows))
    low, high = beta.ppf(0.001, rows, N - rows + 1), beta.ppf(0.95, rows + 1, N - rows)
    assert (evidence.interval.low, evidence.interval.high) == pytest.approx((low, high))
    assert evidence.verdict == verdict


def test_rows_that_both_models_have_wrong_are_not_lost(voting):
    assert lost(voting, range(1000, 1100)).value == 0


def test_planned_rows_decide_nine_times_in_ten(voting):
    rows = lost(voting, range(15)).details["rows_needed"]
    passing = beta.ppf(0.95, np.arange(400) + 1, rows - np.arange(400)) <= 0.01
    assert binom.pmf(np.arange(400), rows, 15 / N)[passing].sum() == pytest.approx(0.9, abs=0.03)


def test_groups_weights_and_tested_slices_apply(voting):
    groups = ms.Sampling(groups=np.arange(N) // 10)
    weights = ms.Sampling(sample_weight=np.where(np.arange(N) < 1000, 1.0, 0.0))
    assert "200 groups" in lost(voting, range(0, N, 100), sampling=groups).method.name
    assert lost(voting, range(100), sampling=weights).value == pytest.approx(0.1)
    site = ms.Slices({"site": np.where(np.arange(N) < 1000, "a", "b")}, max_lost=0.02, min_rows=100)
    assert lost(voting, range(100), max_lost=0.2, slices=site).decisive.name == "lost rows site=a"


def test_nan_of_the_candidate_counts_as_lost_and_of_the_reference_is_refused():
    scores, broken = np.eye(2)[LABELS], np.eye(2)[LABELS]
    broken[:200] = np.nan
    assert ms.measure_lost_rows(broken, scores, labels=LABELS, max_lost=0.05).value == 0.1
    with pytest.raises(ms.InputError, match="a reference needs valid outputs"):
        ms.measure_lost_rows(scores, broken, labels=LABELS, max_lost=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"metric": "f1"}, "no right and wrong rows"), ({"max_lost": 0}, "max_lost"), ({"max_lost": 1.5}, "max_lost")],
)
def test_other_metrics_and_budgets_are_refused(options, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_lost_rows(LABELS, LABELS, labels=LABELS, **{"max_lost": 0.1} | options)
