"""MAE and RMSE of a candidate beside its reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

import pytest_modelserve as ms

N = 600
RNG = np.random.default_rng(0)
TARGETS = RNG.uniform(300, 400, N)
OLD = RNG.standard_normal(N)
NEW = OLD + 0.1 * RNG.standard_normal(N)
ROWS = np.zeros((N, 1), np.float32)


def rise(metric: str, new: Any, old: Any) -> float:
    if metric == "mae":
        return float(np.abs(new).mean() - np.abs(old).mean())
    return math.sqrt(np.square(new).mean()) - math.sqrt(np.square(old).mean())


@pytest.mark.parametrize("metric", ["mae", "rmse"])
@pytest.mark.parametrize(
    ("worse", "max_rise", "verdict"),
    [
        (1.0, 0.05, ms.Verdict.PASS),
        (1.06, 0.05, ms.Verdict.INCONCLUSIVE),
        (1.3, 0.05, ms.Verdict.FAIL),
        (0.8, 0.0, ms.Verdict.PASS),
        (0.8, -0.1, ms.Verdict.PASS),
        (1.0, -0.1, ms.Verdict.FAIL),
        (1.0, 0.0, ms.Verdict.INCONCLUSIVE),
    ],
)
def test_rise_has_three_verdicts(answering: Any, metric: Any, worse: float, max_rise: float, verdict: Any) -> None:
    evidence = ms.measure_accuracy_parity(
        answering(TARGETS + worse * NEW),
        answering(TARGETS + OLD),
        ROWS,
        TARGETS,
        metric=metric,
        max_rise=max_rise,
    )
    assert evidence.verdict is verdict
    assert evidence.gate == f"{metric.upper()} parity"
    headline, reference, candidate = evidence.quantities
    assert headline.value == pytest.approx(rise(metric, worse * NEW, OLD))
    assert candidate.value - reference.value == pytest.approx(headline.value)


def test_interval_is_that_of_the_differences_row_by_row(answering: Any) -> None:
    evidence = ms.measure_accuracy_parity(
        answering(TARGETS + NEW), answering(TARGETS + OLD), ROWS, TARGETS, metric="mae", max_rise=0.05
    )
    differences = np.abs(NEW) - np.abs(OLD)
    t = scipy_stats.t(df=N - 1, loc=differences.mean(), scale=scipy_stats.sem(differences))
    interval = evidence.quantities[0].interval
    assert interval is not None
    width = scipy_stats.sem(differences)
    assert interval.low == pytest.approx(t.ppf(0.001), abs=0.3 * width)
    assert interval.high == pytest.approx(t.ppf(0.95), abs=0.3 * width)
    assert interval.low <= t.ppf(0.001) + 1e-12
    assert interval.high >= t.ppf(0.95) - 1e-12


def test_failure_text_in_full(answering: Any) -> None:
    signs = np.where(np.arange(N) % 2, 1.0, -1.0)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy_parity(
            answering(TARGETS + (1.3 + 0.1 * signs), "int8"),
            answering(TARGETS + 1.0, "fp32"),
            ROWS,
            TARGETS,
            metric="rmse",
            max_rise=0.1,
            slices={"parity": np.arange(N) % 2},
        )
    assert (
        str(failure.value)
        == """\
RMSE parity: RMSE of the candidate rises more than its budget

  rise       0.304   (reference 1.00 → candidate 1.30)
  interval   [0.291, 0.311]  low at 99.9 %, high at 95 %, Student t and Hall, n = 600 rows
  budget     at most 0.100
  verdict    FAIL: the whole interval lies above the budget

  the error rose in 600 rows and fell in 0; worst slice parity=1: +0.4
  candidate  int8
  reference  fp32
  next       look at the rows where the error rose most, keep the layers at fault in full precision, or retrain"""
    )


def test_dependent_differences_without_a_block_are_never_judged(answering: Any) -> None:
    drift = np.repeat(RNG.standard_normal(N // 20), 20)
    candidate, reference = answering(TARGETS + 10 + drift), answering(TARGETS + 10)
    for max_rise in (-100.0, 100.0):
        evidence = ms.measure_accuracy_parity(candidate, reference, ROWS, TARGETS, metric="mae", max_rise=max_rise)
        assert evidence.verdict is ms.Verdict.INCONCLUSIVE
        assert evidence.details["equal_model_inconclusive"] == 1
        assert evidence.findings[0].startswith("neighboring rows depend on each other: sums of losses over 16 of them")
        assert evidence.advice.startswith("give sampling=ms.Sampling(block=...)")
    judged = ms.measure_accuracy_parity(
        candidate, reference, ROWS, TARGETS, metric="mae", max_rise=100, sampling=ms.Sampling(block=20)
    )
    assert judged.verdict is ms.Verdict.PASS
    assert judged.method.name == "Student t and Hall over 30 blocks of 20 rows"


def test_inconclusive_says_what_would_decide(answering: Any) -> None:
    evidence = ms.measure_accuracy_parity(
        answering(TARGETS + NEW), answering(TARGETS + OLD), ROWS, TARGETS, metric="mae", max_rise=0.005
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings == (
        "the error rose in 305 rows and fell in 295",
        "a model equal to its reference would be INCONCLUSIVE with these 600 rows in 66% of samples; with about "
        "3,435 rows it passes 9 times in 10",
    )
    assert evidence.advice == f"give about {evidence.details['rows_needed']:,} labeled rows, or a larger max_rise"


def test_the_same_model_passes_without_any_room(answering: Any) -> None:
    for metric in ("mae", "rmse"):
        evidence = ms.measure_accuracy_parity(
            answering(TARGETS + OLD), answering(TARGETS + OLD), ROWS, TARGETS, metric=metric, max_rise=0.0
        )
        assert evidence.verdict is ms.Verdict.PASS
        assert evidence.findings == ("the error rose in 0 rows and fell in 0",)
        assert evidence.details["worst_rows"] == []


def test_details_name_the_rows_where_the_error_rose_most(answering: Any) -> None:
    candidate = TARGETS.copy()
    candidate[[3, 5]] += [1, 2]
    evidence = ms.measure_accuracy_parity(
        answering(candidate), answering(TARGETS), ROWS, TARGETS, metric="mae", max_rise=1
    )
    assert evidence.details["worst_rows"] == [5, 3]


def test_candidate_that_answers_nan_fails_in_a_sentence(answering: Any) -> None:
    predictions = TARGETS.copy()
    predictions[3] = np.nan
    rows = ROWS.copy()
    rows[3] = np.nan
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy_parity(
            answering(predictions, "int8"), answering(TARGETS, "fp32"), rows, TARGETS, metric="rmse", max_rise=100
        )
    assert (
        str(failure.value)
        == """\
RMSE parity: some outputs are NaN or infinite

  invalid rows 1
  method     every row checked, n = 600 rows
  budget     at most 0
  verdict    FAIL: the value lies above the budget

  output 'output' of int8 holds NaN or infinities in 1 of 600 rows, first in row 3 (1 rows of the inputs hold NaN)
  candidate  int8
  reference  fp32
  next       trace the first such row through the model node by node, and impute missing inputs"""
    )


def test_reference_that_answers_nan_cannot_judge(answering: Any) -> None:
    predictions = TARGETS.copy()
    predictions[3] = np.inf
    with pytest.raises(ms.InputError) as error:
        ms.measure_accuracy_parity(
            answering(TARGETS), answering(predictions, "fp32"), ROWS, TARGETS, metric="rmse", max_rise=1
        )
    assert str(error.value) == (
        "output 'output' of fp32 holds NaN or infinities in 1 of 600 rows, first in row 3 (0 rows of the inputs hold "
        "NaN): a reference without an answer cannot judge; clean the inputs or mend the reference"
    )


@pytest.mark.parametrize("truth", [-0.03, 0.0])
def test_false_verdicts_stay_rare_at_the_budget_and_equal_models_pass(answering: Any, truth: float) -> None:
    """300 worlds in which the rise is exactly `truth`: PASS in 1 of 20 at that budget, FAIL in 1 of 1,000."""
    verdicts = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        old = np.abs(rng.standard_normal(200)) + 1
        new = old + truth + 0.2 * rng.standard_normal(200)
        evidence = ms.measure_accuracy_parity(
            answering(new), answering(old), ROWS[:200], np.zeros(200), metric="mae", max_rise=truth
        )
        verdicts.append(evidence.verdict)
    assert 0.02 <= np.mean([verdict is ms.Verdict.PASS for verdict in verdicts]) <= 0.09
    assert np.mean([verdict is ms.Verdict.FAIL for verdict in verdicts]) <= 0.01
