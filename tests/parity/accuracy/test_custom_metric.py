"""A user's own metric: the bootstrap, in pairs."""

import io
import itertools
import re
import time

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.progress import progress_to

N = 120
RNG = np.random.default_rng(0)
TARGETS = RNG.standard_normal(N)
OLD = TARGETS + RNG.standard_normal(N)
NEW = OLD + 0.1 * RNG.standard_normal(N)
FEW = {"alpha": 0.02, "confidence": 0.95}  # 500 resamples: what is tested here is not the size of alpha


def mean_error(labels, predictions):
    return float(np.abs(labels - predictions).mean())


def agreement(labels, predictions):
    return float(1 - np.abs(labels - predictions).mean() / 10)


def test_budget_says_whether_higher_is_better(change):
    rise = change(3 * NEW, OLD, TARGETS, metric=mean_error, max_rise=0.5, **FEW)
    drop = change(3 * NEW, OLD, TARGETS, metric=agreement, max_drop=0.05, **FEW)
    assert (rise.quantities[0].name, drop.quantities[0].name) == ("rise", "drop")
    assert rise.quantities[0].value == pytest.approx(10 * drop.quantities[0].value)
    assert rise.verdict is drop.verdict is ms.Verdict.FAIL
    assert rise.gate == "mean_error parity"


def test_interval_is_near_students_for_a_mean(change):
    own, mae = (
        change(NEW, OLD, TARGETS, metric=metric, max_rise=0.05, alpha=0.05).quantities[0].interval
        for metric in (mean_error, "mae")
    )
    near = 0.15 * (mae.high - mae.low)
    assert (own.low, own.high) == (pytest.approx(mae.low, abs=near), pytest.approx(mae.high, abs=near))


def test_level_has_three_verdicts(level):
    for max_value, verdict in ((2.0, "PASS"), (0.8, "INCONCLUSIVE"), (0.3, "FAIL")):
        evidence = level(OLD, TARGETS, metric=mean_error, max_value=max_value, **FEW)
        assert evidence.verdict == verdict
    assert evidence.details["resamples"] == 200
    assert evidence.method.name == "BCa bootstrap, 200 resamples"


@pytest.mark.parametrize(
    ("max_value", "verdict", "calls"), [(9.0, "PASS", 350), (0.79, "INCONCLUSIVE", 2200), (0.2, "FAIL", 350)]
)
def test_metric_is_called_no_oftener_than_the_budget_needs(level, max_value, verdict, calls):
    evidence = level(OLD, TARGETS, metric=mean_error, max_value=max_value)
    assert evidence.verdict == verdict
    assert evidence.details["metric_calls"] <= calls


def test_failure_near_the_budget_takes_ten_thousand_resamples(level):
    fails = next(
        evidence
        for limit in np.arange(0.8, 0.3, -0.01)
        if (evidence := level(OLD, TARGETS, metric=mean_error, max_value=limit)).verdict is ms.Verdict.FAIL
    )
    assert fails.details["resamples"] == 10_000


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (lambda labels, predictions: np.abs(labels - predictions).sum() / len(labels), "mae"),
        (lambda labels, predictions: np.sqrt(((labels - predictions) ** 2).mean()), "rmse"),
        (lambda labels, predictions: np.quantile(np.abs(labels - predictions), 0.9), None),
        (lambda labels, predictions: 0.5, None),
    ],
)
def test_evidence_names_the_metric_that_a_function_equals(level, metric, name):
    evidence = level(OLD, TARGETS, metric=metric, max_value=9, **FEW)
    found = [finding.partition("metric=")[2].split("'")[1] for finding in evidence.findings]
    assert found == ([] if name is None else [name])


def test_function_of_decoded_labels_is_compared_with_the_metrics_of_labels(level):
    scores, labels = RNG.standard_normal((N, 3)), np.arange(N) % 3
    evidence = level(
        scores, labels, metric=lambda truth, found: np.mean(truth == found), min_value=0.01, decode="argmax", **FEW
    )
    assert "metric='accuracy'" in evidence.findings[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_slow_metric_is_announced_with_its_time_and_shows_a_bar(level, caplog):
    pytest.importorskip("tqdm")
    calls, terminal = itertools.count(), Terminal()

    def slow(labels, predictions):
        time.sleep(0.3 if next(calls) in (0, 1, 2, 150, 151) else 0)
        return mean_error(labels, predictions)

    with caplog.at_level("INFO"), progress_to(terminal):
        level(OLD, TARGETS, metric=slow, max_value=9)
    assert re.search(r"resampling slow: at most 2,000 calls of [\d.]+ ms, \d+ s", caplog.text)
    assert "resampling slow: at most 2,000 calls" in terminal.getvalue()


def test_metric_is_given_outputs_or_with_decode_labels(level):
    scores, labels = RNG.standard_normal((N, 3)), np.arange(N) % 3
    shapes = set()

    def seen(truth, predictions):
        shapes.add(predictions.shape[1:])
        return float(len(truth) > 0)

    for how, shape in (({}, (3,)), ({"decode": "argmax"}, ())):
        shapes.clear()
        level(scores, labels, metric=seen, min_value=0.5, **how, **FEW)
        assert shapes == {shape}


def test_groups_are_resampled_whole(level):
    outputs = TARGETS + np.repeat(RNG.standard_normal(12), 10)
    alone, together = (
        level(outputs, TARGETS, metric=mean_error, max_value=1, groups=groups, **FEW)
        for groups in (None, np.arange(N) // 10)
    )
    widths = [e.quantities[0].interval.high - e.quantities[0].interval.low for e in (alone, together)]
    assert widths[1] > 1.8 * widths[0]
    assert together.method.name.endswith(" resamples over 12 groups")
    one = level(outputs, TARGETS, metric=mean_error, max_value=1, groups=np.zeros(N), **FEW)
    assert (one.verdict, one.quantities[0].interval.high) == ("INCONCLUSIVE", np.inf)


def test_slices_inform_and_are_not_judged(level):
    side = {"side": np.arange(N) % 2}
    outputs = TARGETS + np.where(np.arange(N) % 2, 3.0, 1.0)
    evidence = level(outputs, TARGETS, metric=mean_error, max_value=5, slices=side, **FEW)
    assert evidence.findings == ("worst slice side=1: 3 over 60 rows",)
    with pytest.raises(ms.UsageError, match="Slices: max_value= is not supported for a callable as metric="):
        level(OLD, TARGETS, metric=mean_error, max_value=5, slices=ms.Slices(side, max_value=5, min_rows=10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "metric=mean_error needs one budget: min_value= if higher is better, max_value= if lower is"),
        ({"min_value": 1, "max_value": 2}, "metric=mean_error needs one budget: "),
        ({"max_value": float("inf")}, "max_value must be a finite number, got inf"),
        ({"max_value": 1, "sample_weight": np.ones(N)}, "sample_weight is not supported by a callable as metric="),
        ({"max_value": 1, "scores": "logits"}, "scores is not supported by a callable as metric=: remove it"),
    ],
)
def test_unsupported_arguments_are_one_clear_error(level, arguments, message):
    with pytest.raises(ms.UsageError, match=f"^{message}"):
        level(OLD, TARGETS, metric=mean_error, **arguments)


def test_metric_has_to_return_a_finite_number_for_labels_that_fit(level):
    with pytest.raises(ms.InputError, match="metric is nan over all 120 rows of the candidate; it must be finite"):
        level(OLD, TARGETS, metric=lambda labels, predictions: np.nan, max_value=1)
    with pytest.raises(ms.UsageError, match="metric must return one number, got str"):
        level(OLD, TARGETS, metric=lambda labels, predictions: "high", max_value=1)
    with pytest.raises(ms.InputError, match="there are 119 labels for 120 rows of outputs"):
        level(OLD, TARGETS[:-1], metric=mean_error, max_value=1)
    with pytest.raises(ZeroDivisionError):
        level(OLD, TARGETS, metric=lambda labels, predictions: 1 / 0, max_value=1)


def test_nan_outputs_fail_or_cannot_judge(change):
    bad = np.where(np.arange(N) == 3, np.nan, OLD)
    evidence = change(bad, OLD, TARGETS, metric=mean_error, max_rise=1, **FEW)
    assert evidence.verdict is ms.Verdict.FAIL
    assert "holds NaN in 1 of 120 rows, first in row 3" in evidence.findings[0]
    with pytest.raises(ms.InputError, match="valid outputs in every row"):
        change(OLD, bad, TARGETS, metric=mean_error, max_rise=1, **FEW)


@pytest.mark.parametrize("max_value", [0.8, 0.85, 0.9])
def test_inconclusive_evidence_plans_about_the_rows_that_the_named_metric_plans(level, max_value):
    evidence = level(OLD, TARGETS, metric=mean_error, max_value=max_value)
    named = level(OLD, TARGETS, metric="mae", max_value=max_value)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert evidence.details["rows_needed"] == pytest.approx(named.details["rows_needed"], rel=0.4)
    assert f"give about {evidence.details['rows_needed']:,} labeled rows, with which mean_error " in evidence.advice
