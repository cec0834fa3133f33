"""The calibration gate: probabilities that agree with the frequencies of the labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    holm_step_down,
    levels_for,
)
from pytest_modelserve.metrics import Output
from pytest_modelserve.metrics.losses import label_columns
from pytest_modelserve.monitoring.results.output_columns import read_output, read_probabilities
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import Servable
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.intervals import check_count
from pytest_modelserve.stats.reliability import (
    ReliabilityCurve,
    calibration_error_bounds,
    calibration_rows_needed,
    reliability_curve,
)

_MAX_BINS = 50
_FEWEST_BLOCKS = 20
"""With fewer, the errors of different bins are those of the same few blocks."""
_MAX_CURVES, _MAX_CLASSES = 5, 30
_CURVE_LEVEL = 0.975
"""The level of each end of the interval of a bin in the curve."""


def measure_calibration(
    outputs: Servable,
    labels: Any,
    *,
    max_error: float,
    per_class: bool = False,
    bins: int = 15,
    block: int = 1,
    inputs: Any = None,
    output: Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the calibration error of probabilities: how far they are from the frequencies of the labels.

    Rows are sorted into bins of about equal size by their probability. The calibration error is the debiased root mean
    square of the bins' differences between mean probability and frequency. The evidence also has the expected
    calibration error, the mean of these differences. For two classes the probability of class 1 is tested. For more
    classes it is the confidence, the probability of the predicted class, against whether that class is right.

    Args:
        outputs: Ready probabilities (n, classes), or (n,) for class 1 of two; or a model: whatever `ms.serve` takes.
        labels: One label a row, (n,): the number of its column.
        max_error: The largest calibration error that passes, between 0 and 1: 0.05 is five points.
        per_class: Whether to test the probability of each class; every class then has the budget.
        bins: The number of bins; at most one for every 20 rows.
        block: The number of neighboring rows that may depend on each other; they count as one.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`; `scores="logits"` for logits.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence. `details["reliability"]` holds the curve of the probability that was tested, with `per_class` of
        the worst classes. It has lists of the same length: `confidence`, `accuracy` and `n` of each bin, and `low` and
        `high`, the exact 95 % interval of its accuracy.

    Raises:
        InputError: Outputs that are no probabilities, labels that are not their columns, or labels of one class.
        UsageError: An argument out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> probability = rng.random(5_000)
        >>> labels = rng.random(5_000) < probability
        >>> ms.measure_calibration(probability, labels, max_error=0.05).verdict.name
        'PASS'
        >>> ms.measure_calibration(probability**2, labels, max_error=0.05).verdict.name
        'FAIL'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    if not 0 < max_error < 1:
        raise UsageError(f"max_error must lie between 0 and 1 (0.05, for example); got {max_error}")
    check_count("block", block, minimum=1)
    if not 1 <= bins <= _MAX_BINS:
        raise UsageError(f"bins must be from 1 to {_MAX_BINS}; got {bins}")
    read = Output.of(output)
    _, labels = labeled_rows(inputs, labels)
    subject, values = read_output(outputs, inputs, read)
    probabilities = read_probabilities(values, read)
    truth = label_columns(labels, probabilities)
    if len(truth) < block * _FEWEST_BLOCKS and block > 1:
        raise InputError(
            f"block={block} leaves {len(truth) // block} independent blocks of {len(truth)} rows, and at least "
            f"{_FEWEST_BLOCKS} are needed: give more rows, or a smaller block"
        )
    if (truth == truth[0]).all():
        raise InputError(f"all {len(truth)} labels are {truth[0]}: calibration needs rows of another class")
    classes = probabilities.shape[1]
    if per_class:
        tested = {f"class {k}": (probabilities[:, k], truth == k) for k in range(classes)}
    elif classes == 2:
        tested = {"class 1": (probabilities[:, 1], truth == 1)}
    else:
        tested = {"confidence": (probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)}
    curves = {name: reliability_curve(scores, events, bins=bins) for name, (scores, events) in tested.items()}
    budget = Budget.of("max_error", max_error)

    def at(name: str) -> Callable[[float], Quantity]:
        def quantity(alpha: float) -> Quantity:
            low, high = levels_for(budget, confidence=confidence, alpha=alpha)
            bounds = calibration_error_bounds(curves[name], block=block, low_level=low, high_level=high)
            of_class = f" {name}" if per_class else ""
            title = f"calibration error{of_class}"
            return Quantity(title, bounds.estimate, "proportion_difference", Interval.of(bounds), budget)

        return quantity

    found = holm_step_down({name: at(name) for name in curves}, alpha=alpha)
    ranked = sorted(found, key=lambda name: _severity(found[name]), reverse=True)
    worst = curves[ranked[0]]
    verdict = found[ranked[0]].verdict
    assert verdict is not None
    gap = Quantity("expected calibration error", worst.mean_gap, "proportion_difference")
    hidden = len(ranked) - _MAX_CLASSES
    return Evidence(
        gate="calibration",
        subject=subject,
        quantities=(*(found[name] for name in ranked[:_MAX_CLASSES]), gap),
        n=len(truth),
        n_unit="rows",
        method=Method(
            f"debiased, {worst.n.size} equal-mass bins, inverted noncentral chi-square",
            "Kumar, Liang & Ma 2019, NeurIPS 32; Bröcker 2012, Climate Dynamics 39:655-667; Imhof 1961, Biometrika "
            f"48:419-426{'; Holm 1979' if per_class else ''}",
            f"independent rows{f' or blocks of {block}' if block > 1 else ''}; differences within a bin are not seen; "
            "in simulations a model at its budget passes in up to 9 % instead of 5 %",
        ),
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(
            *(_describe(name, curves[name]) for name in ranked[: _MAX_CURVES if verdict is not Verdict.PASS else 1]),
            *([f"{len(ranked)} classes tested; the {hidden} best are not shown"] if hidden > 0 else []),
        ),
        advice=_advice(verdict, worst, block=block, max_error=max_error, confidence=confidence),
        details={"reliability": [_details(name, curves[name]) for name in ranked[:_MAX_CURVES]]},
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "the probabilities agree with the frequencies of the labels to within max_error",
    Verdict.FAIL: "the probabilities differ from the frequencies of the labels by more than max_error",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether the calibration error exceeds max_error",
}


def _severity(quantity: Quantity) -> tuple[int, float]:
    assert quantity.verdict is not None
    return quantity.verdict.severity, quantity.value


def _describe(name: str, curve: ReliabilityCurve) -> str:
    """Return the overall direction, and the bin that adds most to the error."""
    confidence, accuracy = float(curve.weights @ curve.confidence), float(curve.weights @ curve.accuracy)
    bin_ = int((curve.weights * curve.gaps**2).argmax())
    return (
        f"{name}: mean probability {100 * confidence:.1f} %, frequency {100 * accuracy:.1f} %; largest in the bin of "
        f"{int(curve.n[bin_]):,} rows at {100 * curve.confidence[bin_]:.1f} %, where it is "
        f"{100 * curve.accuracy[bin_]:.1f} %"
    )


def _advice(verdict: Verdict, curve: ReliabilityCurve, *, block: int, max_error: float, confidence: float) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "recalibrate on recent labels (temperature or Platt scaling), and check thresholds that were set before"
    rows, needed = int(curve.n.sum()), calibration_rows_needed(curve, limit=max_error, level=confidence)
    if needed is None or needed * block <= rows:
        return "as many rows of a calibrated model pass 9 times in 10: inspect the curve, or give more rows"
    return (
        f"give about {needed * block:,} labeled rows, with which a calibrated model passes 9 times in 10, or a larger "
        "max_error"
    )


def _details(name: str, curve: ReliabilityCurve) -> Mapping[str, Any]:
    events = np.rint(curve.accuracy * curve.n).astype(int)
    ends = [
        binomial_bounds(int(k), int(n), low_level=_CURVE_LEVEL, high_level=_CURVE_LEVEL)
        for k, n in zip(events, curve.n, strict=True)
    ]
    return {
        "label": name,
        "confidence": [round(float(value), 5) for value in curve.confidence],
        "accuracy": [round(float(value), 5) for value in curve.accuracy],
        "n": [int(value) for value in curve.n],
        "low": [round(end.low, 4) for end in ends],
        "high": [round(end.high, 4) for end in ends],
    }
