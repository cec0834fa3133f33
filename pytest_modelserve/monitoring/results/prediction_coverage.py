"""The coverage gate: the proportion of labels inside prediction intervals or sets."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.metrics.losses import label_columns
from pytest_modelserve.monitoring.decision import in_blocks
from pytest_modelserve.serving.inputs import as_one_batch, select_output
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import Servable, open_models
from pytest_modelserve.stats import binomial_bounds, proportion_rows_needed, serial_dependence

_ENDS = (("low", "high"), ("lower", "upper"))


def measure_prediction_coverage(
    outputs: Servable,
    labels: Any,
    *,
    min_coverage: float,
    max_coverage: float | None = None,
    block: int | None = None,
    inputs: Any = None,
    output: str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the coverage of prediction intervals or sets: the proportion of rows whose label lies inside.

    The bounds are the exact ones of Clopper and Pearson (1934). Rows of a series depend on their neighbors: `block`
    rows count as one. Without `block`, misses are tested for serial dependence (Lo and MacKinlay 1988). If it is found,
    the effective number of rows follows from the variance ratio, and the evidence says so.

    Args:
        outputs: Intervals (n, 2) with the low and high end of each row, or columns "low" and "high" ("lower" and
            "upper"). Sets are booleans (n, classes). Ready, or of a model: whatever `ms.serve` takes.
        labels: One number a row, (n,), of intervals; the number of its column, of sets.
        min_coverage: The lowest coverage that passes, below the nominal one: 0.88 for intervals of 90 %.
        max_coverage: The highest coverage that passes: higher, and the intervals are wider than they need to be.
        block: The number of neighboring rows that may depend on each other. Default: estimated from the misses.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The name of the output to read.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL, over both budgets.

    Returns:
        The evidence, with the mean width of the intervals, or size of the sets. An interval with NaN misses.

    Raises:
        InputError: Ends in the wrong order, and labels that do not fit.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> center, labels = np.zeros(2_000), rng.normal(size=2_000)
        >>> intervals = np.column_stack([center - 1.645, center + 1.645])
        >>> ms.measure_prediction_coverage(intervals, labels, min_coverage=0.88).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    upper = 1.0 if max_coverage is None else max_coverage
    if not 0 < min_coverage < upper <= 1:
        raise UsageError(
            f"coverages must satisfy 0 < min_coverage < max_coverage <= 1; got {min_coverage} and {max_coverage}"
        )
    if block is not None and block < 1:
        raise UsageError(f"block must be a number of rows, at least 1; got {block}")
    _, labels = labeled_rows(inputs, labels)
    subject, values = _read(outputs, inputs, output)
    covered, size = _covered_sets(values, labels) if values.dtype.kind == "b" else _covered_intervals(values, labels)
    dependence = serial_dependence(covered.astype(np.float64)) if block is None else None
    length = float(block or 1) if dependence is None else dependence.variance_ratio
    inside, n = int(covered.sum()), len(covered)
    budgets = [Budget.of("min_coverage", min_coverage)]
    budgets += [] if max_coverage is None else [Budget.of("max_coverage", max_coverage)]

    def quantity(budget: Budget) -> Quantity:
        low, high = levels_for(budget, confidence=confidence, alpha=alpha / len(budgets))
        below = binomial_bounds(*in_blocks(inside, n, length, up=False), low_level=low, high_level=high).low
        above = binomial_bounds(*in_blocks(inside, n, length, up=True), low_level=low, high_level=high).high
        interval = Interval(min(below, inside / n), max(above, inside / n), low, high)
        return Quantity("coverage", inside / n, "proportion", interval, budget)

    quantities = sorted(map(quantity, budgets), key=lambda each: -(each.verdict or Verdict.PASS).severity)
    verdict = quantities[0].verdict
    assert verdict is not None
    kind = "mean set size" if values.dtype.kind == "b" else "mean width"
    counted = ""
    if dependence is not None:
        counted = (
            f"misses depend on their neighbors (variance ratio {dependence.variance_ratio:.1f} over {dependence.span} "
            f"rows): {n:,} rows count as {max(int(n // length), 1):,}; block= says how many depend on each other"
        )
    return Evidence(
        gate="prediction coverage",
        subject=subject,
        quantities=(*quantities, Quantity(kind, size, "")),
        n=n,
        n_unit="rows",
        method=Method(
            "Clopper-Pearson" + (f" over {max(int(n // length), 1)} blocks" if length > 1 else ""),
            "Clopper & Pearson 1934, Biometrika 26:404-413" + "; Lo & MacKinlay 1988" * (dependence is not None),
            "independent rows" if length <= 1 else f"independent blocks of {length:.3g} rows",
        ),
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(f"{n - inside:,} of {n:,} labels lie outside", *([counted] if counted else [])),
        advice=_advice(verdict, quantities[0], length=length, confidence=confidence, alpha=alpha),
        details={"covered": inside, "effective_rows": max(int(n // length), 1)},
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "labels lie inside as often as required",
    Verdict.FAIL: "the coverage is beyond its budget",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether the coverage is within its budget",
}


def _advice(verdict: Verdict, quantity: Quantity, *, length: float, confidence: float, alpha: float) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "calibrate the intervals on recent labels (conformal prediction), or retrain"
    assert quantity.budget is not None
    at_least = quantity.budget.kind == "at_least"
    value, limit = (
        (quantity.value, quantity.budget.limit) if at_least else (1 - quantity.value, 1 - quantity.budget.limit)
    )
    needed = proportion_rows_needed(value, limit, confidence=confidence, alpha=alpha) if 0 < limit < 1 else None
    if needed is None:
        return "give a budget that differs from the measured coverage, or more rows"
    return f"give about {math.ceil(needed * length):,} labeled rows, with which this coverage is decided 9 times in 10"


def _read(outputs: Servable, inputs: Any, output: str | None) -> tuple[Subject, NDArray[Any]]:
    with open_models(outputs, inputs=as_one_batch(inputs), ready=True) as (batch, (model,)):
        found: Mapping[str, NDArray[Any]] = model.predict(batch)
        for low, high in _ENDS:
            if output is None and {low, high} <= found.keys():
                return model.subject, np.stack([found[low], found[high]], axis=1)
        return model.subject, np.asarray(select_output(model, found, output)[1])


def _covered_intervals(values: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.bool_], float]:
    """Return which labels lie inside, (n,), and the mean width of the intervals."""
    if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "fiu":
        raise InputError(
            f"outputs must be intervals (rows, 2) of numbers, or sets (rows, classes) of booleans; got shape "
            f"{values.shape} of {values.dtype}"
        )
    targets = np.asarray(labels)
    if targets.dtype.kind not in "fiu" or targets.reshape(-1).shape != (len(values),):
        raise InputError(f"labels must be one number for each of {len(values)} rows; got shape {targets.shape}")
    targets = targets.reshape(-1).astype(np.float64)
    if not np.isfinite(targets).all():
        raise InputError(f"labels hold NaN or infinities, first in row {np.flatnonzero(~np.isfinite(targets))[0]}")
    low, high = values[:, 0].astype(np.float64), values[:, 1].astype(np.float64)
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        raise InputError(
            f"the low end is above the high end in {crossed.size} of {len(values)} rows, first in row {crossed[0]}"
        )
    widths = high - low
    return (low <= targets) & (targets <= high), float(np.nanmean(widths)) if not np.isnan(widths).all() else math.nan


def _covered_sets(values: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.bool_], float]:
    """Return which labels are in their set, (n,), and the mean size of the sets."""
    if values.ndim != 2 or values.shape[1] < 2:
        raise InputError(f"sets must be booleans (rows, classes); got shape {values.shape}")
    columns = label_columns(labels, values.astype(np.float64))
    return np.asarray(values[np.arange(len(values)), columns]), float(values.sum(axis=1).mean())
