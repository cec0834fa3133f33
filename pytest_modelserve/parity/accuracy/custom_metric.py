"""A metric of the user's own, by itself and against a reference: the bootstrap over rows or groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, Verdict
from pytest_modelserve.metrics import decode, slice_figures
from pytest_modelserve.parity.accuracy.estimates import Words, evidence_of
from pytest_modelserve.parity.accuracy.evaluation import Question, evidence_of_unanswered
from pytest_modelserve.parity.accuracy.slices import refuse_judged_slices, verdicts_of
from pytest_modelserve.serving.inputs import describe_invalid_rows, invalid_reference, select_output
from pytest_modelserve.stats import Bounds, bca_bounds, resamples_for

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.metrics import MetricFunction
    from pytest_modelserve.serving import Predictor

SEED = 0
"""Of the resampling: the same rows give the same verdict."""

Over = Callable[[NDArray[Any]], float]
"""The metric over the rows with these numbers, or of a mask."""


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """How many rows are answered with NaN, and the sentence on them."""

    broken: int
    told: str


def measure_own_level(predictor: Predictor, question: Question) -> Evidence:
    """Evidence that the user's metric is at least `min_value` or at most `max_value`; see `measure_accuracy`."""
    started = time.perf_counter()
    found = _answers(predictor, question)
    if isinstance(found, _Unanswered):
        return evidence_of_unanswered(
            question.spec.title, predictor.subject, broken=found.broken, told=found.told, n=question.n, started=started
        )
    over = _over(question, found)
    _check_defined(over, question, predictor.subject)
    kind: Literal["at_least", "at_most"] = "at_least" if question.limit.is_score else "at_most"
    return _evidence(
        question.spec.title, predictor.subject, over, Budget(kind, question.limit.value), question, started
    )


def measure_own_change(candidate: Predictor, reference: Predictor, question: Question) -> Evidence:
    """Evidence that the user's metric drops or rises by at most its budget; see `measure_accuracy_parity`."""
    started = time.perf_counter()
    before, after = _answers(reference, question), _answers(candidate, question)
    gate = f"{question.spec.title} parity"
    if isinstance(before, _Unanswered):
        raise invalid_reference(before.told)
    if isinstance(after, _Unanswered):
        return evidence_of_unanswered(
            gate,
            candidate.subject,
            broken=after.broken,
            told=after.told,
            n=question.n,
            started=started,
            reference=reference.subject,
        )
    of_reference, of_candidate = _over(question, before), _over(question, after)
    values = [_check_defined(of_reference, question, reference.subject)]
    values.append(_check_defined(of_candidate, question, candidate.subject))
    sign = 1 if question.limit.is_score else -1
    return _evidence(
        gate,
        candidate.subject,
        lambda rows: sign * (of_reference(rows) - of_candidate(rows)),
        Budget("at_most", question.limit.value),
        question,
        started,
        reference=reference.subject,
        context=(Quantity("reference", values[0], ""), Quantity("candidate", values[1], "")),
    )


def _answers(predictor: Predictor, question: Question) -> NDArray[Any] | _Unanswered:
    """What the metric is given of the output: its values, or the labels that `decode=` makes of them."""
    name, scores = select_output(predictor, question.inputs, question.reading.output)
    rows = np.zeros(len(scores), dtype=np.bool_)
    if scores.dtype.kind == "f":
        rows = np.isnan(scores).any(axis=tuple(range(1, scores.ndim)))
    if rows.any():
        bad = np.flatnonzero(rows)
        return _Unanswered(bad.size, describe_invalid_rows(predictor, name, scores, bad, question.inputs))
    labels = np.asarray(question.labels)
    if len(labels) != len(scores):
        raise InputError(f"there are {len(labels)} labels for {len(scores)} rows of outputs")
    return decode(scores, question.reading.decode).labels if question.decodes else scores


def _over(question: Question, answers: NDArray[Any]) -> Over:
    metric, labels = question.spec.function, np.asarray(question.labels)
    assert metric is not None
    return lambda rows: _number(metric, labels[rows], answers[rows])


def _number(metric: MetricFunction, labels: NDArray[Any], answers: NDArray[Any]) -> float:
    value = metric(labels, answers)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"metric= returned {type(value).__name__}: one number is needed") from None


def _check_defined(over: Over, question: Question, subject: Subject) -> float:
    value = over(np.arange(question.n))
    if not math.isfinite(value):
        raise InputError(f"metric= is {value} over all {question.n} rows of {subject}: a finite number is needed")
    return value


def _evidence(
    gate: str,
    subject: Subject,
    over: Over,
    budget: Budget,
    question: Question,
    started: float,
    *,
    reference: Subject | None = None,
    context: tuple[Quantity, ...] = (),
) -> Evidence:
    refuse_judged_slices(
        question.slices, "means nothing for a callable as metric=: every slice would take a bootstrap of its own"
    )
    levels = question.rates.levels(budget)
    resamples = resamples_for(**levels)
    bounds = _bounds(over, question, budget)
    name = question.spec.title if reference is None else "drop" if question.limit.is_score else "rise"
    headline = Quantity(name, bounds.estimate, "", Interval.of(bounds), budget)
    verdicts = verdicts_of(question.slices, lambda *_: headline, n=question.n, limit=budget.limit, rates=question.rates)
    of_extreme = max if budget.kind == "at_most" else min
    worst = of_extreme(slice_figures(question.slices.parts, over), default=None)
    return evidence_of(
        gate,
        subject,
        verdicts,
        reference=reference,
        context=context,
        n=question.n,
        method=Method(
            f"BCa bootstrap, {resamples:,} resamples{question.units}",
            "Efron 1987, JASA 82:171-185; expanded: Hesterberg 2015, The American Statistician 69:371-386",
            f"{'independent rows' if question.units.are_rows else 'independent groups or blocks'}; a metric that is a "
            "smooth function of the rows (no quantile of few); levels are asymptotic: for the mean of skewed losses "
            "PASS is wrong in up to 7 % with 50 rows instead of 5 %, FAIL in up to 0.3 % with 200",
        ),
        rates=question.rates,
        words=_words(gate, question),
        findings=(f"worst slice {worst.label}: {worst.value:.3g} over {worst.n} rows",) if worst else (),
        details={"resamples": resamples, "seed": SEED},
        started=started,
    )


def _bounds(over: Over, question: Question, budget: Budget) -> Bounds:
    levels = question.rates.levels(budget)
    if question.units.count < 2:
        return Bounds(over(np.arange(question.n)), -math.inf, math.inf, **levels)
    return bca_bounds(over, question.n, ids=question.units.ids, seed=SEED, expanded=True, **levels)


def _words(gate: str, question: Question) -> dict[Verdict, Words]:
    direction = "smaller" if question.limit.name.startswith("min") else "larger"
    return {
        Verdict.PASS: Words(f"{gate} keeps its budget"),
        Verdict.FAIL: Words(f"{gate} is outside its budget", "look at the rows that changed, or retrain"),
        Verdict.INCONCLUSIVE: Words(
            f"{gate} cannot be told from its budget with these rows",
            f"give more rows, or a {direction} {question.limit.name}",
        ),
    }
