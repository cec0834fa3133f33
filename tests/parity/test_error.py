"""MAE and RMSE of one predictor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.signal import lfilter

import pytest_modelserve as ms

N = 400
RNG = np.random.default_rng(0)
TARGETS = RNG.uniform(300, 400, N)
ERRORS = RNG.standard_normal(N)
ROWS = np.zeros((N, 1), np.float32)


def dependent_errors(n: int) -> NDArray[np.float64]:
    """Errors whose size swells and ebbs over some ten rows."""
    size = np.exp(lfilter([1.0], [1.0, -0.9], np.random.default_rng(1).standard_normal(n + 100))[100:] / 4)
    return np.asarray(size * np.sign(np.random.default_rng(2).standard_normal(n)))


@pytest.mark.parametrize(
    ("metric", "value"), [("mae", np.abs(ERRORS).mean()), ("rmse", math.sqrt(np.square(ERRORS).mean()))]
)
@pytest.mark.parametrize(
    ("room", "verdict"), [(1.2, ms.Verdict.PASS), (1.0, ms.Verdict.INCONCLUSIVE), (0.7, ms.Verdict.FAIL)]
)
def test_error_has_three_verdicts(answering: Any, metric: Any, value: float, room: float, verdict: ms.Verdict) -> None:
    evidence = ms.measure_accuracy(
        answering(TARGETS + ERRORS), ROWS, TARGETS, metric=metric, max_value=room * value * 1.001
    )
    assert evidence.verdict is verdict
    assert evidence.gate == metric.upper()
    assert evidence.quantities[0].value == pytest.approx(value)
    assert evidence.alpha == 0.001
    assert evidence.details["blocks"] == N


def test_interval_of_the_mae_is_that_of_the_mean_absolute_error(answering: Any) -> None:
    evidence = ms.measure_accuracy(answering(TARGETS + ERRORS), ROWS, TARGETS, metric="mae", max_value=1)
    interval, losses = evidence.quantities[0].interval, np.abs(ERRORS)
    assert interval is not None
    student = losses.mean() - scipy_stats.t.ppf(0.999, N - 1) * scipy_stats.sem(losses)
    assert interval.low == pytest.approx(student)
    assert interval.high >= losses.mean() + scipy_stats.t.ppf(0.95, N - 1) * scipy_stats.sem(losses)


def test_interval_of_the_rmse_is_the_root_of_that_of_the_mean_square(answering: Any) -> None:
    evidence = ms.measure_accuracy(answering(TARGETS + ERRORS), ROWS, TARGETS, metric="rmse", max_value=1)
    interval, losses = evidence.quantities[0].interval, np.square(ERRORS)
    assert interval is not None
    student = losses.mean() - scipy_stats.t.ppf(0.999, N - 1) * scipy_stats.sem(losses)
    assert interval.low == pytest.approx(math.sqrt(student))


def test_failure_text_in_full(answering: Any) -> None:
    """Errors of 1 and 2 in turn, and a hundred rows that are worse by 1."""
    predictions = TARGETS + 1 + np.arange(N) % 2 + (np.arange(N) // 20 % 4 == 0)
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(
            answering(predictions, "gru"),
            ROWS,
            TARGETS,
            metric="mae",
            max_value=1.2,
            sampling=ms.Sampling(block=20),
            slices={"shift": np.arange(N) // 20 % 4},
        )
    assert (
        str(failure.value)
        == """\
MAE: higher than allowed

  MAE        1.75
  interval   [1.39, 1.96]  low at 99.9 %, high at 95 %, Student t and Hall over 20 blocks of 20 rows, n = 400 rows
  budget     at most 1.20
  verdict    FAIL: the whole interval lies above the budget

  worst slice shift=0: 2.5 over 100 rows
  candidate  gru
  next       retrain, or look at the rows with the largest errors"""
    )


def test_dependent_losses_without_a_block_are_never_judged(answering: Any) -> None:
    """However far the budget is: an interval that is too short would pass, or fail, where it must not."""
    errors = dependent_errors(N)
    for max_value in (0.01, 100.0):
        evidence = ms.measure_accuracy(answering(TARGETS + errors), ROWS, TARGETS, metric="mae", max_value=max_value)
        assert evidence.verdict is ms.Verdict.INCONCLUSIVE
        interval = evidence.quantities[0].interval
        assert interval is not None
        assert (interval.low, interval.high) == (0, math.inf)
    assert evidence.findings == (
        "neighboring rows depend on each other: sums of losses over 16 of them vary 10.6 times as much as those of "
        "independent ones, so no interval is given",
    )
    assert evidence.advice.startswith("give sampling=ms.Sampling(block=...)")
    judged = ms.measure_accuracy(
        answering(TARGETS + errors), ROWS, TARGETS, metric="mae", max_value=100, sampling=ms.Sampling(block=40)
    )
    assert judged.verdict is ms.Verdict.PASS


def test_blocks_that_still_depend_on_each_other_are_not_judged_either(answering: Any) -> None:
    errors = dependent_errors(2000)
    evidence = ms.measure_accuracy(
        answering(errors),
        np.zeros((2000, 1), np.float32),
        np.zeros(2000),
        metric="mae",
        max_value=100,
        sampling=ms.Sampling(block=3),
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings[0].startswith("neighboring blocks of 3 rows depend on each other")
    assert evidence.advice == "give a larger block than 3, and more rows if few blocks remain"


def test_too_few_rows_for_two_blocks_say_so(answering: Any) -> None:
    evidence = ms.measure_accuracy(
        answering(TARGETS + ERRORS), ROWS, TARGETS, metric="rmse", max_value=100, sampling=ms.Sampling(block=250)
    )
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.findings == ("400 rows make one block of 250, and an interval needs at least two",)
    assert evidence.advice == "give rows for several blocks, 2,500 say"


def test_inconclusive_says_how_many_rows_would_decide(answering: Any) -> None:
    for metric, max_value in (("mae", 0.84), ("rmse", 1.02)):
        evidence = ms.measure_accuracy(answering(TARGETS + ERRORS), ROWS, TARGETS, metric=metric, max_value=max_value)
        assert evidence.verdict is ms.Verdict.INCONCLUSIVE
        needed = evidence.details["rows_needed"]
        assert evidence.advice == f"give about {needed:,} labeled rows, or a larger max_value"
        # The same errors again and again, as often as was said to be enough, decide.
        more = np.tile(ERRORS, math.ceil(needed / N))
        decided = ms.measure_accuracy(
            answering(more), np.zeros((len(more), 1)), np.zeros(len(more)), metric=metric, max_value=max_value
        )
        assert decided.verdict is ms.Verdict.PASS


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_prediction_that_is_no_number_fails_in_a_sentence(answering: Any, broken: float) -> None:
    predictions = TARGETS.copy()
    predictions[[7, 9]] = broken
    evidence = ms.measure_accuracy(answering(predictions), ROWS, TARGETS, metric="mae", max_value=100)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.summary == "some outputs are NaN or infinite"
    assert evidence.findings == (
        "output 'output' of candidate holds NaN or infinities in 2 of 400 rows, first in row 7 "
        "(0 rows of the inputs hold NaN)",
    )
    assert (evidence.quantities[0].value, evidence.alpha) == (2, 0)


def test_perfect_model_passes(answering: Any) -> None:
    evidence = ms.measure_accuracy(answering(TARGETS), ROWS, TARGETS, metric="rmse", max_value=1e-9)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == 0


def test_slices_name_the_worst_and_details_the_worst_rows(answering: Any) -> None:
    predictions = TARGETS.copy()
    predictions[:100] += 2
    predictions[42] += 1
    site = {"site": np.where(np.arange(N) < 100, "north", "south")}
    evidence = ms.measure_accuracy(
        answering(predictions), ROWS, TARGETS, metric="rmse", max_value=3, sampling=ms.Sampling(block=100), slices=site
    )
    assert evidence.findings == ("worst slice site=north: 2.01 over 100 rows",)
    assert evidence.details["worst_rows"][0] == 42


def test_output_of_several_numbers_a_row_is_judged_whole(answering: Any) -> None:
    targets = TARGETS.reshape(200, 2)
    evidence = ms.measure_accuracy(
        answering(targets + np.array([0.0, 2.0])), ROWS[:200], targets, metric="mae", max_value=1.5
    )
    assert evidence.quantities[0].value == pytest.approx(1)
    assert evidence.n == 200


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TARGETS.reshape(N, 1), r"targets have shape \(400, 1\) where the predictions have \(400,\)"),
        (
            np.where(np.arange(N) == 7, np.nan, TARGETS),
            "targets hold NaN or infinities in 1 of 400 rows, first in row 7",
        ),
        (TARGETS.astype(str), "targets have dtype <U.*: an error is taken of numbers"),
    ],
)
def test_targets_that_cannot_judge_are_one_clear_error(answering: Any, targets: Any, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.measure_accuracy(answering(TARGETS), ROWS, targets, metric="mae", max_value=1)
