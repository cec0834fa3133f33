"""Accuracy by itself and against a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms

N = 2000
LABELS = np.arange(N) % 2
ROWS = np.zeros((N, 1), np.float32)


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(100, ms.Verdict.PASS), (200, ms.Verdict.INCONCLUSIVE), (600, ms.Verdict.FAIL)]
)
def test_accuracy_has_three_verdicts(voting: Any, wrong: int, verdict: ms.Verdict) -> None:
    evidence = ms.measure_accuracy(voting(LABELS, range(wrong)), ROWS, LABELS, min_value=0.9)
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == 1 - wrong / N
    assert evidence.n == N


@pytest.mark.parametrize(
    ("lost", "verdict"), [(5, ms.Verdict.PASS), (20, ms.Verdict.INCONCLUSIVE), (70, ms.Verdict.FAIL)]
)
def test_accuracy_parity_has_three_verdicts(voting: Any, lost: int, verdict: ms.Verdict) -> None:
    evidence = ms.measure_accuracy_parity(voting(LABELS, range(lost)), voting(LABELS), ROWS, LABELS, max_drop=0.01)
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == lost / N


def test_asserting_twins_return_raise_or_withhold_judgement(voting: Any) -> None:
    assert ms.assert_accuracy(voting(LABELS), ROWS, LABELS, min_value=0.9).verdict is ms.Verdict.PASS
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(voting(LABELS, range(600)), ROWS, LABELS, min_value=0.9)
    assert failure.value.evidence.verdict is ms.Verdict.FAIL
    with pytest.raises(ms.GateInconclusive):
        ms.assert_accuracy(voting(LABELS, range(200)), ROWS, LABELS, min_value=0.9)


def test_failure_text_of_the_example_in_the_documents(voting: Any) -> None:
    """61 rows lost and 9 gained of 2,000, a drop of 2.60 points: the example that the design was drawn with."""
    candidate = voting(LABELS, range(61), "int8-static")
    reference = voting(LABELS, range(61, 70), "fp32")
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy_parity(
            candidate, reference, ROWS, LABELS, max_drop=0.01, slices={"half": np.arange(N) // 1000}
        )
    assert (
        str(failure.value)
        == """\
accuracy parity: the candidate loses more accuracy than its budget

  drop       2.60 points   (reference 99.55 % → candidate 96.95 %)
  interval   [1.36, 3.33]  low at 99.9 %, high at 95 %, Tango paired score, n = 2000 rows
  budget     at most 1.00 points
  verdict    FAIL: the whole interval lies above the budget

  70 rows changed correctness: 61 lost, 9 gained; worst slice half=0: 5.2 points
  candidate  int8-static
  reference  fp32
  next       look at the lost rows, keep the layers at fault in full precision, or retrain"""
    )


def test_inconclusive_says_what_would_decide(voting: Any) -> None:
    evidence = ms.measure_accuracy_parity(
        voting(LABELS, range(10)), voting(LABELS, range(10, 20)), ROWS, LABELS, max_drop=0.002
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings[-1] == (
        "a model equal to its reference would be INCONCLUSIVE with these 2000 rows in 79% of samples; with about "
        "22,377 rows it passes 9 times in 10"
    )
    assert evidence.advice == "give about 22,377 labeled rows, or a larger max_drop"


def test_details_name_the_rows(voting: Any) -> None:
    evidence = ms.measure_accuracy_parity(voting(LABELS, [3, 5]), voting(LABELS, [7]), ROWS, LABELS, max_drop=0.01)
    assert evidence.details["lost_rows"] == [3, 5]
    assert evidence.details["gained_rows"] == [7]


def test_slices_name_the_worst(voting: Any) -> None:
    slices = {"site": np.where(np.arange(N) < 100, "north", "south")}
    evidence = ms.measure_accuracy(voting(LABELS, range(50)), ROWS, LABELS, min_value=0.9, slices=slices)
    assert evidence.findings == ("worst slice site=north: 50.0 % of 100 rows",)


def test_candidate_that_answers_nan_is_wrong_and_told(voting: Any, answering: Any) -> None:
    scores = np.eye(2, dtype=np.float32)[LABELS]
    scores[:300] = np.nan
    evidence = ms.measure_accuracy_parity(answering(scores), voting(LABELS), ROWS, LABELS, max_drop=0.01)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == 300 / N
    assert evidence.findings[0] == (
        "output 'output' of candidate holds NaN in 300 of 2000 rows, first in row 0 (0 rows of the inputs hold NaN): "
        "counted as wrong"
    )


def test_reference_that_answers_nan_cannot_judge(voting: Any, answering: Any) -> None:
    rows = ROWS.copy()
    rows[4] = np.nan
    scores = np.eye(2, dtype=np.float32)[LABELS]
    scores[4] = np.nan
    with pytest.raises(ms.InputError) as error:
        ms.measure_accuracy_parity(voting(LABELS), answering(scores, "fp32"), rows, LABELS, max_drop=0.01)
    assert str(error.value) == (
        "output 'output' of fp32 holds NaN in 1 of 2000 rows, first in row 4 (1 rows of the inputs hold NaN): "
        "a reference that answers NaN cannot judge; clean the inputs or mend the reference"
    )


def test_one_of_several_outputs_has_to_be_named(answering: Any) -> None:
    scores = np.eye(2, dtype=np.float32)[LABELS]
    several = answering({"logits": scores, "embedding": ROWS})
    with pytest.raises(ms.UsageError, match=r"several outputs: say which one by output=.*'logits', 'embedding'"):
        ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9)
    with pytest.raises(ms.UsageError, match="unknown output 'logit': did you mean 'logits'"):
        ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9, output="logit")
    assert ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9, output="logits").quantities[0].value == 1


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (ROWS[:0], LABELS[:0], "inputs are empty: at least one row is needed"),
        (ROWS, LABELS[:-1], "there are 1999 labels for 2000 rows"),
        (ROWS, np.where(np.arange(N) == 7, np.nan, LABELS), "labels .*NaN"),
        (ROWS, np.zeros(N, int), "all 2000 labels are 0"),
        (np.float32(1), LABELS, "'inputs' is a scalar: it has no rows"),
    ],
)
def test_data_that_cannot_judge_are_one_clear_error(voting: Any, rows: Any, labels: Any, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy(voting(LABELS), rows, labels, min_value=0.9)


def test_inputs_of_different_lengths_are_refused(voting: Any) -> None:
    with pytest.raises(ms.InputError, match=r"different numbers of rows: \{'a': 2000, 'b': 1999\}"):
        ms.measure_accuracy(voting(LABELS), {"a": ROWS, "b": ROWS[1:]}, LABELS, min_value=0.9)


def test_slice_of_another_length_is_refused(voting: Any) -> None:
    with pytest.raises(ms.InputError, match=r"slice 'site' has shape \(3,\); it needs one value for each of the 2000"):
        ms.measure_accuracy(voting(LABELS), ROWS, LABELS, min_value=0.9, slices={"site": np.zeros(3)})


@pytest.mark.parametrize("budget", [0, 1, -0.1, float("nan")])
def test_budget_out_of_range_is_refused(voting: Any, budget: float) -> None:
    with pytest.raises(ms.UsageError, match="min_value must be above 0 and below 1"):
        ms.measure_accuracy(voting(LABELS), ROWS, LABELS, min_value=budget)
    with pytest.raises(ms.UsageError, match="max_drop must be above 0 and below 1"):
        ms.measure_accuracy_parity(voting(LABELS), voting(LABELS), ROWS, LABELS, max_drop=budget)
