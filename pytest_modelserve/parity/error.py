"""How far do a predictor's answers lie from their targets?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Quantity, Verdict
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.losses import in_units, losses_of
from pytest_modelserve.parity.mean_loss import MeanLoss
from pytest_modelserve.parity.metric import ErrorMetric
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import Slices, check_slices, highest_slice
from pytest_modelserve.parity.unanswered import evidence_of_unanswered
from pytest_modelserve.serving import Predictor


def measure_error(
    predictor: Predictor,
    inputs: Inputs,
    targets: NDArray[Any],
    *,
    metric: ErrorMetric,
    max_value: float,
    rates: ErrorRates,
    output: str | None,
    slices: Slices | None,
    block: int | None,
) -> Evidence:
    """Evidence that the error of `predictor` is at most `max_value`; see `measure_accuracy`."""
    if not max_value > 0:
        raise UsageError(f"max_value is an error in the units of the target, above 0, not {max_value}")
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    losses = losses_of(predictor, inputs, targets, metric=metric, output=output)
    gate = metric.upper()
    if losses.broken:
        return evidence_of_unanswered(gate, predictor.subject, losses, started=started)
    limit = max_value**2 if metric == "rmse" else max_value
    sample = MeanLoss.of(losses.values, limit=limit, block=block, rates=rates)
    error = _error(sample, metric, Budget("at most", max_value))
    worst = highest_slice(groups, lambda rows: in_units(float(losses.values[rows].mean()), metric))
    return evidence_of(
        gate,
        predictor.subject,
        error,
        n=n,
        method=sample.method(),
        rates=rates,
        words={
            Verdict.PASS: Words("the error is at most as large as allowed"),
            Verdict.FAIL: Words("the error is larger than allowed", "retrain, or look at the rows that are worst"),
            Verdict.INCONCLUSIVE: sample.undecided(
                "the error cannot be told from its budget with these rows", "max_value"
            ),
        },
        findings=(
            *sample.findings(),
            *([f"worst slice {worst.label}: {worst.value:.3g} over {worst.n} rows"] if worst else ()),
        ),
        details={
            "rows_needed": sample.rows_needed(),
            "blocks": sample.blocks,
            "worst_rows": np.argsort(-losses.values, kind="stable")[:ROWS_LISTED].tolist(),
        },
        started=started,
    )


def _error(sample: MeanLoss, metric: ErrorMetric, budget: Budget) -> Quantity:
    """The mean loss in the units of the target; a root moves both ends of an interval and keeps their levels."""
    bounds = sample.bounds()
    low, high = in_units(max(bounds.low, 0.0), metric), in_units(bounds.high, metric)
    interval = Interval(low, high, bounds.low_level, bounds.high_level)
    return Quantity(metric.upper(), in_units(bounds.estimate, metric), "", interval, budget)
