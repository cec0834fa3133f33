"""The accuracy gates: verdicts, failure texts in full, and invalid arguments."""

import numpy as np
import pytest

import pytest_modelserve as ms

N = 2000
LABELS = np.arange(N) % 2
ROWS = np.zeros((N, 1), np.float32)
TARGETS = np.random.default_rng(0).standard_normal(N)


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(100, ms.Verdict.PASS), (200, ms.Verdict.INCONCLUSIVE), (600, ms.Verdict.FAIL)]
)
def test_accuracy_has_three_verdicts(voting, wrong, verdict):
    evidence = ms.measure_accuracy(voting(LABELS, range(wrong)), ROWS, LABELS, min_value=0.9)
    assert evidence.verdict is verdict
    assert (evidence.gate, evidence.quantities[0].value, evidence.n) == ("accuracy", 1 - wrong / N, N)
    assert ("rows_needed" in evidence.details) is (verdict is ms.Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("lost", "verdict"), [(5, ms.Verdict.PASS), (20, ms.Verdict.INCONCLUSIVE), (70, ms.Verdict.FAIL)]
)
def test_accuracy_parity_has_three_verdicts(voting, lost, verdict):
    evidence = ms.measure_accuracy_parity(voting(LABELS, range(lost)), voting(LABELS), ROWS, LABELS, max_drop=0.01)
    assert evidence.verdict is verdict
    assert evidence.quantities[0].value == lost / N
    assert ("rows_needed" in evidence.details) is (verdict is ms.Verdict.INCONCLUSIVE)


def test_assertion_returns_or_raises(voting):
    assert ms.assert_accuracy(voting(LABELS), ROWS, LABELS, min_value=0.9).verdict is ms.Verdict.PASS
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(voting(LABELS, range(600)), ROWS, LABELS, min_value=0.9)
    assert failure.value.evidence.verdict is ms.Verdict.FAIL
    with pytest.raises(ms.GateInconclusive):
        ms.assert_accuracy(voting(LABELS, range(200)), ROWS, LABELS, min_value=0.9)


def test_failure_text_of_the_example_in_the_documents(voting):
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
  budget     at most 1.00 points (max_drop=0.01)
  verdict    FAIL: the whole interval lies above the budget

  70 rows changed correctness: 61 lost, 9 gained; worst slice half=0: 5.2 points
  candidate  int8-static
  reference  fp32
  next       look at the lost rows, keep the layers at fault in full precision, or retrain"""
    )


def test_inconclusive_parity_says_what_would_decide(voting):
    evidence = ms.measure_accuracy_parity(
        voting(LABELS, range(10)), voting(LABELS, range(10, 20)), ROWS, LABELS, max_drop=0.002
    )
    assert evidence.summary == "not enough rows to decide whether the drop of accuracy exceeds max_drop"
    assert evidence.findings[-1] == (
        "a model equal to its reference would be INCONCLUSIVE with these 2000 rows in 79% of samples; with about "
        "22,377 rows it passes 9 times in 10"
    )
    assert evidence.advice == (
        "give about 22,377 labeled rows, with which a model equal to its reference passes 9 times in 10, or a larger "
        "max_drop"
    )


def test_details_name_the_rows_that_changed(voting):
    evidence = ms.measure_accuracy_parity(voting(LABELS, [3, 5]), voting(LABELS, [7]), ROWS, LABELS, max_drop=0.01)
    assert (evidence.details["lost_rows"], evidence.details["gained_rows"]) == ([3, 5], [7])


def test_row_with_nan_scores_is_wrong_in_a_candidate_and_refused_in_a_reference(voting, answering):
    rows, scores = ROWS.copy(), np.eye(2, dtype=np.float32)[LABELS]
    scores[:300] = rows[4] = np.nan
    evidence = ms.measure_accuracy_parity(answering(scores), voting(LABELS), rows, LABELS, max_drop=0.01)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].value == 300 / N
    assert evidence.findings[0] == (
        "output 'output' of candidate holds NaN in 300 of 2000 rows, first in row 0 (1 rows of the inputs hold NaN): "
        "counted as wrong"
    )
    with pytest.raises(
        ms.InputError, match=r"^output 'output' of fp32 holds NaN in 300 of .*: a reference needs valid outputs"
    ):
        ms.measure_accuracy_parity(voting(LABELS), answering(scores, "fp32"), rows, LABELS, max_drop=0.01)


def test_one_of_several_outputs_has_to_be_named(answering):
    several = answering({"logits": np.eye(2, dtype=np.float32)[LABELS], "embedding": ROWS})
    with pytest.raises(ms.UsageError, match="'logits', 'embedding'"):
        ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9)
    with pytest.raises(ms.UsageError, match="unknown output 'logit': did you mean 'logits'"):
        ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9, output="logit")
    with pytest.raises(ms.UsageError, match=r"^output is a name or ms\.Output\(name, \.\.\.\), got int$"):
        ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9, output=0)
    for output in ("logits", ms.Output("logits")):
        assert ms.measure_accuracy(several, ROWS, LABELS, min_value=0.9, output=output).quantities[0].value == 1


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (ROWS[:0], LABELS[:0], "inputs are empty"),
        (ROWS, LABELS[:-1], "there are 1999 labels for 2000 rows"),
        (ROWS, np.where(np.arange(N) == 7, np.nan, LABELS), "labels .*NaN"),
        (ROWS, np.zeros(N, int), "all 2000 labels are 0"),
        (np.float32(1), LABELS, "'inputs' is a scalar"),
        ({"a": ROWS, "b": ROWS[1:]}, LABELS, r"different numbers of rows: \{'a': 2000, 'b': 1999\}"),
    ],
)
def test_invalid_data_are_one_clear_error(voting, rows, labels, message):
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy(voting(LABELS), rows, labels, min_value=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "mae", "min_value": 0.9}, "metric='mae' is an error: give max_value= instead of min_value="),
        ({"max_value": 0.1}, "metric='accuracy' is a score: give min_value= instead of max_value="),
        ({"metric": "rmse", "min_value": 0.9, "max_value": 1.0}, "metric='rmse' is an error: give max_value="),
        ({}, "metric='accuracy' needs a budget: give min_value="),
        ({"metric": "rmse"}, "metric='rmse' needs a budget: give max_value="),
        ({"min_value": 0}, "min_value must be above 0 and below 1, got 0"),
        ({"min_value": float("nan")}, "min_value must be above 0 and below 1, got nan"),
        ({"metric": "r2", "min_value": 1}, "min_value must be below 1, got 1"),
        ({"metric": "mae", "max_value": float("nan")}, "max_value must be above 0 and finite in the units of the targ"),
        ({"metric": "mae", "max_value": 0}, "max_value must be above 0 and finite in the units of the target, got 0"),
        ({"metric": "mae", "max_value": 1, "decode": "threshold"}, "decode is not supported by metric='mae': remove"),
        ({"metric": "roc_auc", "min_value": 0.5, "scores": "logits"}, "scores is not supported by metric='roc_auc'"),
        ({"min_value": 0.5, "pos_label": 1}, "pos_label is not supported by metric='accuracy': remove it"),
        ({"metric": "f1_macro", "min_value": 0.5, "pos_label": 1}, "pos_label is not supported by metric='f1_macro'"),
        ({"metric": "log_loss", "max_value": 1}, "metric='log_loss' reads probabilities: give output=ms.Output(scores"),
        ({"metric": "mae", "max_value": 1, "block": 0}, "block must be an integer of at least 1, got 0"),
        ({"metric": "mae", "max_value": 1, "confidence": 95}, "confidence must be above 0.5 and below 1"),
        (
            {"metric": "rsme", "max_value": 1},
            "unknown metric 'rsme': did you mean 'rmse'? Known: 'accuracy', 'balanced_accuracy', 'top_5_accuracy', "
            "'precision', 'recall', 'f1', 'precision_macro', 'recall_macro', 'f1_macro', 'roc_auc', 'log_loss', "
            "'brier_score', 'mae', 'rmse', 'r2', or a callable of labels and predictions",
        ),
    ],
)
def test_invalid_arguments_of_a_level_are_one_clear_error(level, arguments, message):
    with pytest.raises(ms.UsageError) as caught:
        level(TARGETS, TARGETS, **arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "mae", "max_drop": 0.1}, "metric='mae' is an error: give max_rise= instead of max_drop="),
        ({"max_rise": 0.1}, "metric='accuracy' is a score: give max_drop= instead of max_rise="),
        ({"metric": "mae"}, "metric='mae' needs a budget: give max_rise="),
        ({"max_drop": 0}, "max_drop must be above 0 and below 1, got 0"),
        ({"metric": "f1", "max_drop": 5}, "max_drop must be above -1 and below 1, got 5"),
        ({"metric": "mae", "max_rise": float("inf")}, "max_rise must be a finite number in the units of the target, g"),
    ],
)
def test_invalid_arguments_of_a_change_are_one_clear_error(change, arguments, message):
    with pytest.raises(ms.UsageError) as caught:
        change(TARGETS, TARGETS, TARGETS, **arguments)
    assert str(caught.value).startswith(message)
