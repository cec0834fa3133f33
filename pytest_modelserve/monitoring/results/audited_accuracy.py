"""The gate on accuracy with few labels: an audit of some rows, and the scores of all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.metrics import Decoded, Output, correct_rows, decode
from pytest_modelserve.monitoring.results.output_columns import read_output, read_probabilities
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import Servable
from pytest_modelserve.stats import Bounds, binomial_bounds, proportion_rows_needed
from pytest_modelserve.stats.prediction_powered import (
    effective_proportion_bounds,
    prediction_powered_mean,
    score_strata,
    stratified_proportion_bounds,
)

Design = Literal["uniform", "stratified"]
_FEWEST_OF_EACH = 5
"""With fewer right or wrong labels the fit of the score is chance: with 20 labels, models of 96 % pass in 18 %, not
5 %. The labels alone count then."""


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """Rows to label, as `planning.audit_rows` draws them.

    Attributes:
        rows: The numbers of the rows, ascending, (count,).
        design: "uniform", or "stratified" by the score; `assert_audited_accuracy` needs it.
        width_ratio: The expected width of the interval over that of as many labels alone, if scores are calibrated.
    """

    rows: NDArray[np.intp] = field(repr=False)
    design: Design
    width_ratio: float

    @property
    def count(self) -> int:
        """The number of rows to label."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPredictions:
    """The predicted label of each row, (n,), and the predicted probability that it is right; None without scores."""

    labels: NDArray[Any]
    scores: NDArray[np.float64] | None

    @classmethod
    def of(cls, values: NDArray[Any], output: Output) -> ScoredPredictions:
        """Read one output (n, ...): probabilities, logits if `output` says so, or labels."""
        if values.dtype.kind != "f" or output.decode == "labels":
            return cls(decode(values, output.decode).labels, None)
        probabilities = read_probabilities(values, output)
        labels = probabilities.argmax(axis=1) if output.decode is None else decode(values, output.decode).labels
        return cls(labels, probabilities.max(axis=1))


def measure_audited_accuracy(
    outputs: Servable,
    audited_rows: ArrayLike | Audit,
    labels: Any,
    *,
    min_value: float,
    design: Design = "uniform",
    ids: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    inputs: Any = None,
    output: Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the accuracy of a model from the labels of some rows, and the scores of all.

    The audited rows must have been drawn at random: `planning.audit_rows` draws them. The score of a
    row is the probability of its predicted label. Where scores agree with the audited labels, the scores of the other
    rows narrow the interval. Wrong scores do not help, and the interval holds.

    With the design "uniform" the estimate is prediction-powered (Angelopoulos, Duchi and Zrnic 2023): scores correct
    the labels, with the weight of the smallest variance. That takes at least five right and five wrong labels. With
    "stratified" the rows were drawn from strata of the score, more from those where it is unsure. The bounds are
    those of Clopper and Pearson for the number of labels that the estimate is worth (Korn and Graubard 1998).

    Args:
        outputs: The outputs of all rows, ready or of a model: whatever `ms.serve` takes. Without probabilities, the
            labels alone count.
        audited_rows: The numbers of the labeled rows, (k,), or their ids where `ids` are given; or the `Audit`.
        labels: The label of each audited row, (k,).
        min_value: The lowest accuracy that passes, between 0 and 1.
        design: How the rows were drawn; an `Audit` has it.
        ids: One id a row of the outputs.
        sample_weight: The inverse of the probability with which each audited row was drawn, (k,), where it was drawn by
            another design.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence. `details` holds the design, the correlation of score and correctness, and the width of the
        interval relative to that of the labels alone.

    Raises:
        InputError: Unknown or repeated rows, labels of one class, scores that are no probabilities, too few rows.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> probability = rng.beta(0.3, 0.3, 10_000)
        >>> truth = (rng.random(10_000) < probability).astype(int)
        >>> audit = ms.planning.audit_rows(probability, 500)
        >>> ms.measure_audited_accuracy(probability, audit, truth[audit.rows], min_value=0.8).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    if not 0 < min_value < 1:
        raise UsageError(f"min_value must lie between 0 and 1 (0.9, for example); got {min_value}")
    audited: Any = audited_rows
    if isinstance(audited, Audit):
        audited, design = audited.rows, audited.design
    if not isinstance(design, str) or design not in get_args(Design):
        raise UsageError(unknown_choice("design", design, get_args(Design)))
    if design == "stratified" and sample_weight is not None:
        raise UsageError("sample_weight does not go with design='stratified', which weights the strata: remove one")
    read = Output.of(output)
    _, labels = labeled_rows(inputs, labels)
    subject, values = read_output(outputs, inputs, read, reads_labels=False)
    predictions = ScoredPredictions.of(values, read)
    rows = _row_numbers(audited, len(values), ids)
    if len(rows) != len(labels):
        raise InputError(f"there are {len(labels)} labels for {len(rows)} audited rows")
    chosen = Decoded(predictions.labels[rows], np.zeros(len(rows), dtype=np.bool_))
    correct = correct_rows(chosen, labels)
    estimate = _estimate(correct, rows, predictions.scores, design=design, weights=sample_weight)
    budget = Budget.of("min_value", min_value)
    low, high = levels_for(budget, confidence=confidence, alpha=alpha)
    bounds = estimate.bounds(low, high)
    accuracy = Quantity("accuracy", bounds.estimate, "proportion", Interval.of(bounds), budget)
    verdict = accuracy.verdict
    assert verdict is not None
    as_many = min(round(bounds.estimate * len(rows)), len(rows))
    alone = binomial_bounds(as_many, len(rows), low_level=low, high_level=high)
    ratio = (bounds.high - bounds.low) / (alone.high - alone.low)
    scores = predictions.scores
    context = [] if scores is None else [Quantity("mean score", float(scores.mean()), "proportion")]
    return Evidence(
        gate="audited accuracy",
        subject=subject,
        quantities=(accuracy, *context),
        n=len(rows),
        n_unit="audited rows",
        method=estimate.method,
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(
            f"{len(rows):,} of {len(values):,} rows audited, {len(rows) - int(correct.sum()):,} of them wrong",
            *_describe_scores(estimate.correlation, ratio, scores),
        ),
        advice=_advice(
            verdict, bounds.estimate, len(rows), len(values), ratio, min_value, confidence=confidence, alpha=alpha
        ),
        details={
            "design": design,
            "rows": len(values),
            "correlation": None if estimate.correlation is None else round(estimate.correlation, 4),
            "width_ratio": round(ratio, 4),
        },
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "at least as accurate as required, by the audited rows",
    Verdict.FAIL: "less accurate than required, by the audited rows",
    Verdict.INCONCLUSIVE: "not enough audited rows to decide whether accuracy reaches min_value",
}


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The bounds at two levels, the method, and the correlation of score and correctness."""

    bounds: Callable[[float, float], Bounds]
    method: Method
    correlation: float | None


def _estimate(
    correct: NDArray[np.bool_],
    rows: NDArray[np.intp],
    scores: NDArray[np.float64] | None,
    *,
    design: Design,
    weights: ArrayLike | None,
) -> _Estimate:
    right = correct.astype(np.float64)
    correlation = None if scores is None else _correlation(right, scores[rows])
    drawn = "audited rows drawn at random, and each labeled"
    if design == "stratified":
        if scores is None:
            raise InputError("design='stratified' needs outputs with probabilities: these are labels")
        strata = score_strata(scores)
        sizes, n = np.bincount(strata), np.bincount(strata[rows], minlength=int(strata.max()) + 1)
        if (n < 2).any():
            raise InputError(
                f"fewer than 2 audited rows in {int((n < 2).sum())} of {n.size} strata of the score: pass the outputs "
                "that planning.audit_rows drew from, or design='uniform' if they were drawn uniformly"
            )
        good = np.bincount(strata[rows], weights=right, minlength=n.size)

        def stratified(low: float, high: float) -> Bounds:
            return stratified_proportion_bounds(good, n, sizes, low_level=low, high_level=high)

        method = Method(
            f"stratified by score ({n.size} strata), Clopper-Pearson of effective rows",
            "Neyman 1934, JRSS 97:558-625; Korn & Graubard 1998, Survey Methodology 24:193-201",
            f"{drawn}, within strata of the score",
        )
        return _Estimate(stratified, method, correlation)
    if len(rows) < 3:
        raise InputError(f"an audit needs at least 3 rows, got {len(rows)}: planning.audit_rows plans the number")
    helps = scores is not None and min(correct.sum(), (~correct).sum()) >= _FEWEST_OF_EACH
    if not helps and weights is None:
        return _Estimate(
            lambda low, high: binomial_bounds(int(right.sum()), len(right), low_level=low, high_level=high),
            Method("Clopper-Pearson, labels alone", "Clopper & Pearson 1934, Biometrika 26:404-413", drawn),
            correlation,
        )
    every, audited = (scores, scores[rows]) if helps and scores is not None else (np.zeros(len(rows)),) * 2
    powered = prediction_powered_mean(right, audited, every, weights=weights)
    labeled = len(rows)
    variance = float(powered.influence.var(ddof=1)) / labeled

    def uniform(low: float, high: float) -> Bounds:
        return effective_proportion_bounds(
            powered.value, variance, labeled, degrees_of_freedom=labeled - 1, low_level=low, high_level=high
        )

    method = Method(
        "prediction-powered, Clopper-Pearson of effective rows",
        "Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453; Korn & Graubard 1998, Survey Methodology 24:193-201",
        drawn if weights is None else f"{drawn} with the probabilities that sample_weight states",
    )
    return _Estimate(uniform, method, correlation)


def _correlation(right: NDArray[np.float64], scores: NDArray[np.float64]) -> float | None:
    if not (np.ptp(right) and np.ptp(scores)):
        return None
    return float(np.corrcoef(right, scores)[0, 1])


def _row_numbers(audited: ArrayLike, n: int, ids: ArrayLike | None) -> NDArray[np.intp]:
    """Return the numbers of the audited rows; InputError for unknown and repeated ones."""
    given: NDArray[Any] = np.asarray(audited)
    if given.ndim != 1 or not given.size:
        raise InputError(
            f"audited_rows must be row numbers or ids of shape (k,), at least one; got shape {given.shape}"
        )
    if ids is None and given.dtype.kind == "b":
        raise InputError("audited_rows is a mask: pass the row numbers, np.flatnonzero(mask)")
    if len(np.unique(given)) < given.size:
        names, counts = np.unique(given, return_counts=True)
        raise InputError(f"audited_rows holds {names[counts.argmax()]!s} {counts.max()} times: each row counts once")
    if ids is None:
        if given.dtype.kind not in "iu":
            raise InputError(f"audited_rows must be row numbers, got {given.dtype}: pass ids= if they are ids")
        unknown = given[(given < 0) | (given >= n)]
        if unknown.size:
            raise InputError(
                f"audited_rows holds row {unknown[0]}, and the outputs have rows 0 to {n - 1} ({unknown.size} unknown)"
            )
        return given.astype(np.intp)
    known = np.asarray(ids).tolist()
    if len(known) != n:
        raise InputError(f"ids must have one id for each of the {n} rows of the outputs, got {len(known)}")
    places = {each: row for row, each in enumerate(known)}
    if len(places) < n:
        raise InputError(f"ids hold {n - len(places)} repeated ids: each row of the outputs needs its own")
    missing = [each for each in given.tolist() if each not in places]
    if missing:
        raise InputError(
            f"audited_rows holds {missing[0]!r}, which is none of the ids ({len(missing)} of {given.size} are unknown)"
        )
    return np.array([places[each] for each in given.tolist()], dtype=np.intp)


def _describe_scores(correlation: float | None, ratio: float, scores: object) -> tuple[str, ...]:
    if scores is None:
        return ("the outputs are labels without scores: the audited labels alone count",)
    correlated = "" if correlation is None else f", its correlation with being right is {correlation:.2f}"
    return (f"with the score the interval is {ratio:.2f} times as wide as by the labels alone{correlated}",)


def _advice(
    verdict: Verdict, value: float, n: int, rows: int, ratio: float, limit: float, *, confidence: float, alpha: float
) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "look at the wrong rows, compare the inputs with the training data (assert_no_drift), and retrain"
    needed = proportion_rows_needed(value, limit, confidence=confidence, alpha=alpha)
    if needed is None:
        return "give a min_value that differs from the measured accuracy"
    more = max(math.ceil(needed * ratio**2), n + 1)
    if more > rows:
        return "even all labels of these rows may not decide: pass the outputs of more rows, or another min_value"
    return f"audit about {more:,} rows (planning.audit_rows), with which this accuracy is decided 9 times in 10"
