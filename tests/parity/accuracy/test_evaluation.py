"""Judged slices: verdicts, the correction for their number, and the rows that they need."""

import numpy as np
import pytest
from scipy.stats import binom

import pytest_modelserve as ms
from pytest_modelserve import stats

N = 2000
ROWS = np.arange(N, dtype=np.float32)[:, None]
LABELS = np.arange(N) % 2
SITE = np.where(np.arange(N) < 400, "north", "south")


def judged(voting, lost, whole=0.02, **rules):
    slices = ms.Slices(**({"columns": {"site": SITE}, "max_drop": 0.05, "min_rows": 100} | rules))
    return ms.measure_accuracy_parity(voting(LABELS, lost), voting(LABELS), ROWS, LABELS, max_drop=whole, slices=slices)


def test_plain_mapping_names_the_worst_slice(voting):
    evidence = ms.measure_accuracy(voting(LABELS, range(20)), ROWS, LABELS, min_value=0.9, slices={"site": SITE})
    assert evidence.findings == ("worst slice site=north: 95.0 % of 400 rows",)
    assert len(evidence.quantities) == 1


def test_slice_without_a_value_is_not_named(level):
    """One class only in the north: no area, or no recall, there."""
    score = np.stack([1 - LABELS, LABELS + np.linspace(0, 2, N)], axis=1)
    for metric, north in (("roc_auc", 1), ("recall", 0)):
        labels = np.where(SITE == "north", north, LABELS)
        evidence = level(score, labels, metric=metric, min_value=0.1, slices={"site": SITE})
        assert evidence.findings[0].startswith("worst slice site=south")


def test_slices_pass_when_all_of_them_do(voting):
    evidence = judged(voting, range(4))
    assert evidence.verdict is ms.Verdict.PASS
    assert [q.name for q in evidence.quantities if q.budget] == ["drop", "drop site=north", "drop site=south"]
    assert evidence.quantities[3].value == 4 / 400


def test_slice_that_fails_fails_the_gate_and_one_that_is_undecided_leaves_it_open(voting):
    failed, undecided = judged(voting, range(60), whole=0.05), judged(voting, range(16))
    assert failed.quantities[0].verdict is ms.Verdict.PASS
    assert (failed.verdict, undecided.verdict) == ("FAIL", "INCONCLUSIVE")
    assert failed.summary == "a slice is outside its budget: drop site=north"
    assert undecided.summary == "not enough rows to decide on a slice: drop site=north"


def test_failure_text_shows_the_failing_slice_and_cuts_passing_ones(voting):
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(
            voting(LABELS, range(200), "model"),
            ROWS,
            LABELS,
            min_value=0.85,
            slices=ms.Slices({"site": SITE}, min_value=0.8, min_rows=100),
        )
    assert (
        str(failure.value)
        == """\
accuracy: a slice is outside its budget: accuracy site=north

  accuracy   90.00 %
  interval   [88.83, 92.08]  low at 95 %, high at 99.95 %, exact binomial bounds, n = 2000 rows
  budget     at least 85.00 % (min_value=0.85)
  verdict    PASS: the whole interval lies inside the budget

  accuracy site=north 50.00 %
  interval   [45.77, 58.56]  low at 95 %, high at 99.9667 %, exact binomial bounds, n = 2000 rows
  budget     at least 80.00 % (Slices(min_value=0.8))
  verdict    FAIL: the whole interval lies below the budget

  worst slice site=north: 50.0 % of 400 rows
  the rest   more quantities: 1; --modelserve-html=PATH and --modelserve-json=PATH write all
  candidate  model
  next       look at the rows of this slice first"""
    )


@pytest.mark.parametrize("metric", ["balanced_accuracy", "recall", "f1", "log_loss", "roc_auc"])
def test_slices_of_every_metric_are_judged(change, metric):
    logits = 2 * np.stack([-LABELS, LABELS], axis=1) + np.random.default_rng(0).standard_normal((N, 2))
    bad = np.where(np.arange(N)[:, None] < 160, -logits, logits)
    how = {"max_rise": 1.0} if metric == "log_loss" else {"max_drop": 0.2}
    slices = ms.Slices({"first": np.arange(N) < 200}, min_rows=50, **how)
    how |= {"scores": "logits"} if metric == "log_loss" else {}
    for new, verdict in ((logits + 1e-3, ms.Verdict.PASS), (bad, ms.Verdict.FAIL)):
        evidence = change(new, logits, LABELS, metric=metric, slices=slices, **how)
        quantities = {q.name.split()[-1]: q.verdict for q in evidence.quantities if q.budget}
        assert (quantities["first=True"], quantities["first=False"]) == (verdict, ms.Verdict.PASS)


def test_groups_and_weights_are_those_of_the_slice(level):
    evidence = level(
        np.where(np.arange(N) < 40, 1 - LABELS, LABELS),
        LABELS,
        decode="labels",
        min_value=0.5,
        groups=np.arange(N) // 20,
        sample_weight=np.where(np.arange(N) < 20, 3.0, 1.0),
        slices=ms.Slices({"site": SITE}, min_value=0.5, min_rows=10),
    )
    north = next(q for q in evidence.quantities if q.name == "accuracy site=north")
    assert north.value == pytest.approx(360 / 440)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_drop": float("nan")}, "Slices: max_drop must be above -1 and below 1, got nan"),
        ({"max_drop": 5}, "Slices: max_drop must be above -1 and below 1, got 5"),
        (
            {"max_drop": None, "max_rise": 0.1},
            "Slices: max_rise= does not go with max_drop=: give Slices(..., max_drop",
        ),
        ({"min_rows": 401}, "slice site=north has 400 rows, fewer than min_rows=401: label more of it, merge it with"),
    ],
)
def test_rules_that_do_not_fit_are_one_clear_error(voting, rules, message):
    with pytest.raises(ms.UsageError) as caught:
        judged(voting, range(10), **rules)
    assert str(caught.value).startswith(message)


def test_error_of_a_slice_that_is_too_small_says_how_many_rows_it_needs(voting):
    needed = stats.rows_needed(discordance=10.5 / 2001, margin=0.005, confidence=0.95)
    with pytest.raises(ms.InputError, match=f"against max_drop=0.005 about {needed:,} rows of it are needed"):
        judged(voting, range(10), min_rows=500, max_drop=0.005)


def test_recall_counts_the_positive_rows_of_a_slice(level, change):
    labels = np.where(SITE == "north", (np.arange(N) % 40 == 0).astype(int), LABELS)
    how, site = {"metric": "recall", "decode": "labels"}, {"site": SITE}
    by_level, by_drop = (ms.Slices(site, min_rows=50, **budget) for budget in ({"min_value": 0.5}, {"max_drop": 0.6}))
    with pytest.raises(ms.InputError, match=r"^slice site=north has 10 rows, fewer than min_rows=50: "):
        level(labels, labels, min_value=0.5, slices=by_level, **how)
    with pytest.raises(ms.InputError, match=r"^slice site=north has 10 rows, fewer than min_rows=50: "):
        change(labels, labels, labels, max_drop=0.5, slices=by_drop, **how)


def test_slice_over_which_the_metric_has_no_value_cannot_be_judged(level):
    slices = ms.Slices({"site": SITE}, min_value=0.5, min_rows=50)
    labels = np.where(SITE == "north", 1, LABELS)
    with pytest.raises(ms.InputError, match=r"^slice site=north cannot be tested: "):
        level(np.linspace(0, 1, N), labels, metric="roc_auc", min_value=0.5, slices=slices)


def holm_by_hand(p_values, alpha):
    """Which hypotheses Holm's procedure rejects, smallest p-value first."""
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - step):
            break
        rejected.add(index)
    return rejected


def test_fail_over_slices_takes_holms_correction(voting):
    """A part fails alone where P(as few right rows | its budget) <= alpha: Holm's procedure over those p-values."""
    rng, failed = np.random.default_rng(0), 0
    slices = ms.Slices({"x": np.arange(N) // 400}, min_value=0.85, min_rows=50)
    for _ in range(40):
        wrong = np.flatnonzero(rng.random(N) < np.repeat(rng.uniform(0.05, 0.3, 5), 400))
        evidence = ms.measure_accuracy(voting(LABELS, wrong), ROWS, LABELS, min_value=0.85, alpha=0.01, slices=slices)
        right = 400 - np.bincount(wrong // 400, minlength=5)
        p_values = [binom.cdf(right.sum(), N, 0.85), *binom.cdf(right, 400, 0.85)]
        found = {int(q.name[-1]) + 1 for q in evidence.quantities[1:] if q.verdict is ms.Verdict.FAIL}
        found |= {0} if evidence.quantities[0].verdict is ms.Verdict.FAIL else set()
        assert found == holm_by_hand(p_values, 0.01)
        failed += len(found)
    assert failed > 40


def test_many_slices_still_fit_into_the_evidence(level):
    wrong = np.where(np.arange(N) < 60, 1 - LABELS, LABELS)
    slices = ms.Slices({"x": np.arange(N) % 40}, min_value=0.5, min_rows=10)
    evidence = level(wrong, LABELS, decode="labels", min_value=0.9, slices=slices)
    assert len([q for q in evidence.quantities if q.budget]) == 31
    assert evidence.findings[-1] == "40 slices tested; the 10 best are not shown"
    assert len(evidence.to_json().encode()) <= 16 * 1024
