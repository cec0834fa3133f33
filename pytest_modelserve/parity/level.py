"""How high is a score of one predictor, or how large its error?"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Evidence, Quantity, Verdict
from pytest_modelserve.parity.asking import Question
from pytest_modelserve.parity.estimating import Estimate, estimate_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.mean_loss import MeanLoss, quantity_of, within
from pytest_modelserve.parity.metric import Spec
from pytest_modelserve.parity.slice_verdicts import verdicts_of
from pytest_modelserve.parity.slices import highest_slice, lowest_slice
from pytest_modelserve.parity.unanswered import evidence_of_unanswered
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import Bounds


def measure_level(predictor: Predictor, question: Question) -> Evidence:
    """Evidence that a score is at least `min_value`, or an error at most `max_value`; see `measure_accuracy`."""
    spec, limit, rates = question.spec, question.limit, question.rates
    _check_limit(question)
    started = time.perf_counter()
    estimate = estimate_of(spec, predictor, question.inputs, question.labels, question.reading)
    if estimate.broken:
        return evidence_of_unanswered(
            spec.title, predictor.subject, broken=estimate.broken, told=estimate.told, n=question.n, started=started
        )
    whole = _sample(estimate, question, np.ones(question.n, dtype=np.bool_), limit.value, rates)
    verdicts = verdicts_of(
        question.slices,
        lambda rows, value, rates: _quantity(_sample(estimate, question, rows, value, rates), question),
        n=question.n,
        limit=limit.value,
        rates=rates,
        needed=lambda value: whole.at(_inside(value, question), rates).rows_needed(),
    )
    return evidence_of(
        spec.title,
        predictor.subject,
        verdicts,
        n=question.n,
        method=whole.method(),
        rates=rates,
        words=_words(whole, question),
        findings=(*estimate.findings, *whole.findings(), *_worst(estimate, question)),
        details={"rows_needed": whole.rows_needed(), "blocks": whole.blocks, **_worst_rows(estimate)},
        started=started,
    )


def _check_limit(question: Question) -> None:
    spec, limit = question.spec, question.limit
    if limit.is_score and spec.name != "r2" and not 0 < limit.value < 1:
        raise UsageError(f"{limit.name} is a share between 0 and 1 (0.9, say), not {limit.value}")
    if spec.name == "r2" and limit.value >= 1:
        raise UsageError(f"{limit.name} is a share of variance below 1 (0.9, say), not {limit.value}")
    if not limit.is_score and not limit.value > 0:
        where = " in the units of the target" if spec.reads == "targets" else ""
        raise UsageError(f"{limit.name} is an error{where}, above 0, not {limit.value}")


def _inside(limit: float, question: Question) -> float:
    """The limit of the mean that is judged: a score with its sign turned, and for the RMSE the mean square."""
    if question.limit.is_score:
        return -limit
    return limit**2 if question.spec.name == "rmse" else limit


def _sample(
    estimate: Estimate, question: Question, rows: NDArray[np.bool_], limit: float, rates: ErrorRates
) -> MeanLoss:
    found = estimate.over(rows)
    return MeanLoss.of(
        found.negative() if question.limit.is_score else found,
        spec=question.spec,
        limit=_inside(limit, question),
        units=question.units if rows.all() else question.units.over(rows),
        rates=rates,
    )


def _quantity(sample: MeanLoss, question: Question) -> Quantity:
    """The mean in the units of the metric; a root moves both ends of an interval and keeps their levels."""
    spec, bounds, limit = question.spec, sample.bounds(), sample.limit
    if question.limit.is_score:
        bounds = within(bounds, low=-1.0, high=math.inf if spec.name == "r2" else 0.0)
        return quantity_of(spec.title, spec.unit, bounds, limit=limit, turned=True)
    low, high = in_units(max(bounds.low, 0.0), spec), in_units(bounds.high, spec)
    in_metric = Bounds(in_units(bounds.estimate, spec), low, high, bounds.low_level, bounds.high_level)
    return quantity_of(spec.title, spec.unit, in_metric, limit=in_units(limit, spec), turned=False)


def in_units(mean_loss: float, spec: Spec) -> float:
    """A mean loss in the units of the target: the root of a mean square for the RMSE, itself for the others."""
    return math.sqrt(mean_loss) if spec.name == "rmse" else mean_loss


def _worst(estimate: Estimate, question: Question) -> tuple[str, ...]:
    spec = question.spec
    of_extreme = lowest_slice if question.limit.is_score else highest_slice
    worst = of_extreme(question.slices.parts, lambda rows: in_units(estimate.over(rows).value, spec))
    if worst is None:
        return ()
    told = f"{100 * worst.value:.1f} % of" if spec.unit == "share" else f"{worst.value:.3g} over"
    return (f"worst slice {worst.label}: {told} {worst.n} rows",)


def _worst_rows(estimate: Estimate) -> dict[str, list[int]]:
    if estimate.losses is None:
        return {}
    return {"worst_rows": np.argsort(-estimate.losses, kind="stable")[:ROWS_LISTED].tolist()}


def _words(sample: MeanLoss, question: Question) -> dict[Verdict, Words]:
    title, budget = question.spec.title, question.limit.name
    if not question.limit.is_score:
        return {
            Verdict.PASS: Words("the error is at most as large as allowed"),
            Verdict.FAIL: Words("the error is larger than allowed", "retrain, or look at the rows that are worst"),
            Verdict.INCONCLUSIVE: sample.undecided("the error cannot be told from its budget with these rows", budget),
        }
    return {
        Verdict.PASS: Words(f"{title} is at least as high as required"),
        Verdict.FAIL: Words(f"{title} is lower than required", "retrain, or look at the rows that are wrong"),
        Verdict.INCONCLUSIVE: sample.undecided(f"{title} cannot be told from its budget with these rows", budget),
    }
