"""A metric of the user's own: the bootstrap, in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms

N = 120
RNG = np.random.default_rng(0)
ROWS = np.zeros((N, 1), np.float32)
TARGETS = RNG.standard_normal(N)
OLD = TARGETS + RNG.standard_normal(N)
NEW = OLD + 0.1 * RNG.standard_normal(N)
FEW = {"alpha": 0.02, "confidence": 0.95}  # 500 resamples: what is tested here is not the size of alpha


def mean_error(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    return float(np.abs(labels - predictions).mean())


def agreement(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    return float(1 - np.abs(labels - predictions).mean() / 10)


def test_budget_says_whether_higher_is_better(answering: Any) -> None:
    new, old = answering(3 * NEW), answering(OLD)
    rise = ms.measure_accuracy_parity(new, old, ROWS, TARGETS, metric=mean_error, max_rise=0.5, **FEW)
    drop = ms.measure_accuracy_parity(new, old, ROWS, TARGETS, metric=agreement, max_drop=0.05, **FEW)
    assert rise.quantities[0].name == "rise"
    assert drop.quantities[0].name == "drop"
    assert rise.quantities[0].value == pytest.approx(10 * drop.quantities[0].value)
    assert rise.verdict is drop.verdict is ms.Verdict.FAIL
    assert rise.gate == "mean_error parity"


def test_interval_is_near_students_for_a_mean(answering: Any) -> None:
    own = ms.measure_accuracy_parity(
        answering(NEW), answering(OLD), ROWS, TARGETS, metric=mean_error, max_rise=0.05, confidence=0.95, alpha=0.05
    )
    mae = ms.measure_accuracy_parity(
        answering(NEW), answering(OLD), ROWS, TARGETS, metric="mae", max_rise=0.05, confidence=0.95, alpha=0.05
    )
    ours, theirs = own.quantities[0].interval, mae.quantities[0].interval
    assert ours is not None
    assert theirs is not None
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=0.15 * width),
        pytest.approx(theirs.high, abs=0.15 * width),
    )


def test_level_of_a_metric_by_itself_has_three_verdicts(answering: Any) -> None:
    for max_value, verdict in ((2.0, "PASS"), (0.8, "INCONCLUSIVE"), (0.3, "FAIL")):
        evidence = ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=mean_error, max_value=max_value, **FEW)
        assert evidence.verdict == verdict
        assert evidence.gate == "mean_error"
    assert evidence.details == {"resamples": 500, "seed": 0}
    assert evidence.method.name == "BCa bootstrap, 500 resamples"


def test_default_alpha_takes_ten_thousand_resamples(answering: Any) -> None:
    calls = []

    def metric(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
        calls.append(len(labels))
        return 0.5

    ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=metric, min_value=0.4)
    assert sum(length == N for length in calls) >= 10_000


def test_metric_is_given_outputs_or_with_decode_labels(answering: Any) -> None:
    scores, labels = RNG.standard_normal((N, 3)), np.arange(N) % 3
    shapes: list[tuple[int, ...]] = []

    def seen(truth: NDArray[Any], predictions: NDArray[Any]) -> float:
        shapes.append(predictions.shape[1:])
        return float(len(truth) > 0)

    ms.measure_accuracy(answering(scores), ROWS, labels, metric=seen, min_value=0.5, **FEW)
    assert set(shapes) == {(3,)}
    shapes.clear()
    ms.measure_accuracy(
        answering(scores), ROWS, labels, metric=seen, min_value=0.5, output=ms.Output(decode="argmax"), **FEW
    )
    assert set(shapes) == {()}


def test_groups_are_resampled_whole(answering: Any) -> None:
    groups = np.arange(N) // 10
    errors = np.repeat(RNG.standard_normal(12), 10)
    alone = ms.measure_accuracy(answering(TARGETS + errors), ROWS, TARGETS, metric=mean_error, max_value=1, **FEW)
    together = ms.measure_accuracy(
        answering(TARGETS + errors),
        ROWS,
        TARGETS,
        metric=mean_error,
        max_value=1,
        sampling=ms.Sampling(groups=groups),
        **FEW,
    )
    widths = [q.interval.high - q.interval.low for q in (alone.quantities[0], together.quantities[0]) if q.interval]
    assert widths[1] > 1.8 * widths[0]
    assert together.method.name == "BCa bootstrap, 500 resamples over 12 groups"


def test_slices_inform_and_are_not_judged(answering: Any) -> None:
    side = {"side": np.arange(N) % 2}
    errors = np.where(np.arange(N) % 2, 3.0, 1.0)
    evidence = ms.measure_accuracy(
        answering(TARGETS + errors), ROWS, TARGETS, metric=mean_error, max_value=5, slices=side, **FEW
    )
    assert evidence.findings == ("worst slice side=1: 3 over 60 rows",)
    with pytest.raises(ms.UsageError, match="Slices: max_value= is not supported for a callable as metric="):
        ms.measure_accuracy(
            answering(OLD),
            ROWS,
            TARGETS,
            metric=mean_error,
            max_value=5,
            slices=ms.Slices(side, max_value=5, min_rows=10),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {},
            "metric=mean_error needs one budget: min_value= if higher is better, max_value= if lower is",
        ),
        (
            {"min_value": 1, "max_value": 2},
            "metric=mean_error needs one budget: min_value= if higher is better, max_value= if lower is",
        ),
        ({"max_value": float("inf")}, "max_value must be a finite number, got inf"),
        (
            {"max_value": 1, "sampling": ms.Sampling(sample_weight=np.ones(N))},
            "sample_weight is not supported by a callable as metric=: remove it",
        ),
        (
            {"max_value": 1, "output": ms.Output(scores="logits")},
            "scores is not supported by a callable as metric=: remove it",
        ),
    ],
)
def test_arguments_that_a_callable_does_not_take(answering: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as caught:
        ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=mean_error, **arguments)
    assert str(caught.value) == message


def test_metric_that_is_no_number_is_refused(answering: Any) -> None:
    with pytest.raises(ms.InputError, match="metric is nan over all 120 rows of the candidate; it must be finite"):
        ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=lambda labels, answers: np.nan, max_value=1)
    with pytest.raises(ms.UsageError, match="metric must return one number, got str"):
        ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=lambda labels, answers: "high", max_value=1)  # type: ignore[arg-type,return-value]
    with pytest.raises(ms.InputError, match="there are 119 labels for 120 rows of outputs"):
        ms.measure_accuracy(answering(OLD), ROWS, TARGETS[:-1], metric=mean_error, max_value=1)


def test_errors_of_the_metric_pass_through(answering: Any) -> None:
    def broken(labels: NDArray[Any], predictions: NDArray[Any]) -> float:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        ms.measure_accuracy(answering(OLD), ROWS, TARGETS, metric=broken, max_value=1)


def test_answers_that_are_nan_fail_or_cannot_judge(answering: Any) -> None:
    bad = OLD.copy()
    bad[3] = np.nan
    evidence = ms.measure_accuracy_parity(
        answering(bad), answering(OLD), ROWS, TARGETS, metric=mean_error, max_rise=1, **FEW
    )
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings == (
        "output 'output' of candidate holds NaN in 1 of 120 rows, first in row 3 (0 rows of the inputs hold NaN)",
    )
    with pytest.raises(ms.InputError, match="a reference that answers NaN cannot judge"):
        ms.measure_accuracy_parity(answering(OLD), answering(bad), ROWS, TARGETS, metric=mean_error, max_rise=1, **FEW)
