"""The gate on accuracy without labels: from earlier labels, and from how the inputs changed since."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Unit,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.metrics import Decoded, Output, correct_rows, row_losses
from pytest_modelserve.monitoring.results.audited_accuracy import ScoredPredictions
from pytest_modelserve.monitoring.results.output_columns import read_output
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.inputs import as_batch, as_one_batch
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import Servable
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.covariate_shift import ShiftedMean, shifted_mean

Metric = Literal["accuracy", "mae"]
Floats = NDArray[np.float64]
SMALLEST_SIZE = 800
"""With a smaller effective calibration size the interval covers less than its level (docs/results.md)."""
MAX_IMBALANCE = 0.25
"""Of real data under shifts of one standard deviation, none of 300 sets with the size above exceeds it."""
MAX_OUTSIDE = 0.05
"""More new rows outside the range of the calibration rows in one input are an extrapolation."""
_FEWEST_ROWS, _MOST_COLUMNS, _MOST_CATEGORIES, _FEW_ERRORS = 30, 256, 20, 5
_NEAREST = 1e-9
_ASSUMPTION = "if labels given the inputs are distributed as in calibration"


def measure_estimated_accuracy(
    outputs: Servable,
    calibration_outputs: Servable,
    calibration_labels: Any,
    *,
    inputs: Any,
    calibration_inputs: Any,
    min_value: float | None = None,
    max_value: float | None = None,
    metric: Metric = "accuracy",
    output: Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Estimate the accuracy of a model on rows without labels, from earlier rows with labels.

    Calibration rows are weighted by the density ratio of new to earlier inputs: the odds of a logistic regression that
    distinguishes them. With these weights the probability of being right is fitted to the confidence (Platt scaling),
    and averaged over the new rows. For "mae" a linear regression predicts the absolute error. The interval is that of
    the accuracy realized on these rows. It allows for both fits and for chance in the rows.

    **Without labels a change of concept is not detected**: the estimate holds if the labels given the inputs are
    distributed as in calibration. `assert_audited_accuracy` does not need that. Rows unlike any calibration row are
    INCONCLUSIVE. Kish's effective calibration size must be at least 800. After the weighting no input may differ by
    more than a quarter of a standard deviation.

    Args:
        outputs: The outputs of the new rows, ready or of a model: whatever `ms.serve` takes.
        calibration_outputs: The outputs of the calibration rows, or the same model. These must not be training rows.
        calibration_labels: The label of each calibration row, (n,): as for `assert_audited_accuracy`, or a number.
        inputs: The inputs of the new rows: an array, a frame, or a mapping of columns; numbers or text, up to 256
            columns. Give all inputs that may have changed, and that labels depend on.
        calibration_inputs: The inputs of the calibration rows, alike.
        min_value: The lowest accuracy that passes.
        max_value: The largest mean absolute error that passes, for "mae".
        metric: "accuracy" of classes, or "mae" of numbers.
        output: The output to read, by name or as `ms.Output`.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence; `details` holds the effective calibration size, and the imbalance that remains.

    Raises:
        InputError: Outputs, labels and inputs that do not fit, labels of one class, or fewer than 30 rows.
        UsageError: A budget of the other metric, or out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> before, now = rng.normal(size=(4_000, 2)), rng.normal(0.5, 1, size=(2_000, 2))
        >>> score = lambda x: 1 / (1 + np.exp(-3 * x[:, 0]))
        >>> labels = rng.random(4_000) < score(before)
        >>> evidence = ms.measure_estimated_accuracy(
        ...     score(now), score(before), labels, inputs=now, calibration_inputs=before, min_value=0.75
        ... )
        >>> evidence.verdict.name, evidence.summary
        ('PASS', 'at least as accurate as required, if labels given the inputs are distributed as in calibration')
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    budget = _budget(metric, min_value, max_value)
    read = Output.of(output)
    _, labels = labeled_rows(calibration_inputs, calibration_labels)
    subject, values = read_output(outputs, inputs, read)
    _, before = read_output(calibration_outputs, calibration_inputs, read)
    for name, rows in (("outputs", len(values)), ("calibration_outputs", len(before))):
        if rows < _FEWEST_ROWS:
            raise InputError(f"{name} has {rows} row{'s' * (rows != 1)}: an estimate needs at least {_FEWEST_ROWS}")
    new, old = _matrices(inputs, calibration_inputs)
    if (len(new), len(old)) != (len(values), len(before)):
        raise InputError(
            f"inputs must have one row for each output: got {len(new)} for {len(values)}, and {len(old)} for "
            f"{len(before)} of calibration"
        )
    is_score = metric == "accuracy"
    outcomes, predictors, new_predictors = (
        _correctness(before, values, labels, read) if is_score else _errors(before, values, labels, old, new)
    )
    found = shifted_mean(
        outcomes,
        predictors,
        np.hstack([old, predictors]),
        new_predictors,
        np.hstack([new, new_predictors]),
        is_proportion=is_score,
    )
    low, high = levels_for(budget, confidence=confidence, alpha=alpha)
    inside = found.effective_size >= SMALLEST_SIZE and found.imbalance <= MAX_IMBALANCE and found.outside <= MAX_OUTSIDE
    unit: Unit = "proportion" if is_score else ""
    title = "accuracy" if is_score else "mean absolute error"
    estimate = Quantity(f"estimated {title}", found.estimate, unit, _interval(found, low, high, inside=inside), budget)
    verdict = estimate.verdict
    assert verdict is not None
    return Evidence(
        gate="estimated accuracy" if is_score else "estimated accuracy (MAE)",
        subject=subject,
        quantities=(
            estimate,
            Quantity(f"{title} of calibration rows", float(outcomes.mean()), unit),
            Quantity("without weights", found.unweighted, unit),
            Quantity("effective calibration size", round(found.effective_size), "count"),
        ),
        n=len(values),
        n_unit="rows",
        method=Method(
            "Platt scaling"
            if metric == "accuracy"
            else f"regression of the error weighted by a density ratio over {new.shape[1]} inputs",
            "Platt 1999; Shimodaira 2000, JSPI 90:227-244; Bickel, Brückner & Scheffer 2009, JMLR 10:2137-2155; "
            "Stefanski & Boos 2002",
            "labels given the inputs are distributed as in calibration; the density ratio is log-linear in the inputs",
        ),
        summary=_summary(verdict, inside=inside, is_score=is_score),
        confidence=confidence,
        alpha=alpha,
        findings=(
            *_describe_support(found, len(before)),
            "a change of the labels given the inputs (a change of concept) is not detected without labels",
        ),
        advice=_advice(verdict, found, len(before), inside=inside),
        details={
            "effective_size": round(found.effective_size, 1),
            "imbalance": float(f"{found.imbalance:.3g}"),
            "outside": round(found.outside, 4),
            "calibration_rows": len(before),
        },
        duration_s=time.perf_counter() - started,
    )


def _budget(metric: str, min_value: float | None, max_value: float | None) -> Budget:
    if metric not in get_args(Metric):
        raise UsageError(unknown_choice("metric", metric, get_args(Metric)))
    name, other = ("min_value", max_value) if metric == "accuracy" else ("max_value", min_value)
    value = min_value if metric == "accuracy" else max_value
    if value is None or other is not None:
        raise UsageError(f"metric={metric!r} has the budget {name}=; got min_value={min_value}, max_value={max_value}")
    if metric == "accuracy" and not 0 < value < 1:
        raise UsageError(f"min_value must lie between 0 and 1 (0.9, for example); got {value}")
    if metric == "mae" and not 0 < value < math.inf:
        raise UsageError(f"max_value must be above 0 and finite; got {value}")
    return Budget.of(name, value)


Regression = tuple[Floats, Floats, Floats]
"""The outcomes of the calibration rows, their predictors, and those of the new rows."""


def _correctness(before: NDArray[Any], values: NDArray[Any], labels: NDArray[Any], output: Output) -> Regression:
    """Return whether calibration rows are right, and the log odds of the confidence."""
    old, new = ScoredPredictions.of(before, output), ScoredPredictions.of(values, output)
    if old.scores is None or new.scores is None:
        raise InputError("outputs are labels without scores: accuracy is estimated from probabilities")
    right = correct_rows(Decoded(old.labels, np.zeros(len(old.labels), dtype=np.bool_)), labels)
    return right.astype(np.float64), _log_odds(old.scores), _log_odds(new.scores)


def _log_odds(scores: Floats) -> Floats:
    return np.asarray(logit(np.clip(scores, _NEAREST, 1 - _NEAREST)))[:, None]


def _errors(before: NDArray[Any], values: NDArray[Any], labels: NDArray[Any], old: Floats, new: Floats) -> Regression:
    """Return the absolute errors of calibration rows, and predictions and inputs that predict them."""
    losses = row_losses(before.reshape(len(before), -1), np.asarray(labels).reshape(len(labels), -1), "absolute")
    first, second = (np.asarray(each, dtype=np.float64).reshape(len(each), -1) for each in (before, values))
    if not (np.isfinite(losses).all() and np.isfinite(second).all()):
        raise InputError("outputs hold NaN or infinities: leave out these rows")
    return losses, np.hstack([first, old]), np.hstack([second, new])


def _matrices(inputs: Any, calibration_inputs: Any) -> tuple[Floats, Floats]:
    """Return both inputs as numbers (rows, columns): text by category, missing values by an indicator."""
    new, old = _columns("inputs", inputs), _columns("calibration_inputs", calibration_inputs)
    if new.keys() != old.keys():
        odd = sorted(map(str, new.keys() ^ old.keys()))
        raise InputError(f"inputs and calibration_inputs must have the same columns; {odd[0]!r} is in one only")
    parts = [_encoded(name, new[name], old[name]) for name in new]
    widths = sum(part.shape[1] for part, _ in parts)
    if widths > _MOST_COLUMNS:
        raise InputError(
            f"inputs have {widths} columns, more than {_MOST_COLUMNS}: give an embedding, or the columns that matter"
        )
    return np.hstack([part for part, _ in parts]), np.hstack([part for _, part in parts])


def _columns(name: str, inputs: Any) -> Mapping[str, NDArray[Any]]:
    if inputs is None:
        raise UsageError(f"{name} is missing: the inputs say how rows have changed since calibration")
    batch = as_batch(as_one_batch(inputs))
    if isinstance(batch, Frame):
        return {column: batch[column] for column in batch}
    return batch if isinstance(batch, Mapping) else {"inputs": batch}


def _encoded(name: str, new: NDArray[Any], old: NDArray[Any]) -> tuple[Floats, Floats]:
    if new.dtype.kind in "fiub" and old.dtype.kind in "fiub":
        both = [values.reshape(len(values), -1).astype(np.float64) for values in (new, old)]
        if both[0].shape[1] != both[1].shape[1]:
            raise InputError(f"{name!r} has shape {new.shape} in inputs and {old.shape} in calibration_inputs")
        missing = [~np.isfinite(values) for values in both]
        if not (missing[0].any() or missing[1].any()):
            return both[0], both[1]
        filled = [np.where(gaps, 0.0, values) for values, gaps in zip(both, missing, strict=True)]
        first, second = (
            np.hstack([values, gaps.astype(np.float64)]) for values, gaps in zip(filled, missing, strict=True)
        )
        return first, second
    numeric = [values.dtype.kind in "fiub" for values in (new, old)]
    if numeric[0] != numeric[1] and all(values.dtype.kind != "O" for values in (new, old)):
        raise InputError(f"{name!r} holds {new.dtype} in inputs and {old.dtype} in calibration_inputs: convert one")
    texts = [np.asarray(values).astype(np.str_).reshape(len(values), -1)[:, 0] for values in (new, old)]
    names, counts = np.unique(np.concatenate(texts), return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")[:_MOST_CATEGORIES]]
    return (texts[0][:, None] == kept).astype(np.float64), (texts[1][:, None] == kept).astype(np.float64)


def _interval(found: ShiftedMean, low: float, high: float, *, inside: bool) -> Interval:
    """Return the bounds; those of anything outside the support, and exact ones where nearly all rows are right."""
    largest = 1.0 if found.is_proportion else math.inf
    if not inside:
        return Interval(0.0, largest, low, high)
    bounds = found.bounds(low_level=low, high_level=high)
    lowest, rows = max(bounds.low, 0.0), int(found.effective_size)
    if found.is_proportion and rows * (1 - found.estimate) < _FEW_ERRORS:
        right = min(round(rows * found.estimate), rows)
        lowest = min(lowest, binomial_bounds(right, rows, low_level=low, high_level=high).low)
    return Interval(lowest, bounds.high, low, high)


def _summary(verdict: Verdict, *, inside: bool, is_score: bool) -> str:
    if not inside:
        return "the rows are too unlike the calibration rows for an estimate without labels"
    if verdict is Verdict.PASS:
        return f"{'at least as accurate as required' if is_score else 'errors within max_value'}, {_ASSUMPTION}"
    if verdict is Verdict.FAIL:
        return f"{'less accurate than required' if is_score else 'errors above max_value'}, {_ASSUMPTION}"
    return f"not enough rows to decide whether the estimate is within its budget, {_ASSUMPTION}"


def _describe_support(found: ShiftedMean, rows: int) -> tuple[str, ...]:
    fewer = f", fewer than {SMALLEST_SIZE}" if found.effective_size < SMALLEST_SIZE else ""
    counted = f"the {rows:,} calibration rows count as {found.effective_size:,.0f} rows like these{fewer}"
    findings = [counted]
    if found.imbalance > MAX_IMBALANCE:
        differs = f"differs by {found.imbalance:.3g} standard deviations afterwards"
        findings.append(f"no weights make up for an input whose mean {differs}")
    if found.outside > MAX_OUTSIDE:
        findings.append(
            f"{100 * found.outside:.1f} % of these rows lie outside the range of the calibration rows in one input, "
            f"more than {100 * MAX_OUTSIDE:.0f} %"
        )
    return tuple(findings)


def _advice(verdict: Verdict, found: ShiftedMean, rows: int, *, inside: bool) -> str:
    if verdict is Verdict.PASS:
        return ""
    audit = "audit some of these rows (assert_audited_accuracy)"
    if not inside and found.imbalance <= MAX_IMBALANCE and found.outside <= MAX_OUTSIDE:
        needed = math.ceil(rows * SMALLEST_SIZE / found.effective_size)
        return f"{audit}, or label about {needed:,} calibration rows like these"
    if not inside:
        return f"{audit}, and label calibration rows like the new ones"
    if verdict is Verdict.FAIL:
        return f"{audit}, and retrain on rows like these"
    return f"{audit}, or give more calibration rows"
