"""What a monitor watches: groups of streams, each of which reads one argument of `Monitor.check`.

A stream is a mean of scores, or a rate of events. Totals of windows are added up, in any order and to the same bits.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Output
from pytest_modelserve.monitoring.monitor.column_streams import ProfileStreams
from pytest_modelserve.monitoring.monitor.stream import Measured, Stream, StreamGroup, rate_stream
from pytest_modelserve.monitoring.profile import ReferenceProfile, as_profile
from pytest_modelserve.monitoring.results.output_columns import (
    Columns,
    kind_of,
    read_output,
    read_probabilities,
    threshold_of,
)

__all__ = ["Stream", "StreamGroup", "accuracy", "columns", "estimated_accuracy", "latency", "mean", "rate", "results"]

Floats = NDArray[np.float64]

_BINS = 10
_INVALID_SHARE = 0.1
"""Weight of invalid outputs in the evidence of the results."""


def columns(
    profile: ReferenceProfile | str | os.PathLike[str],
    *,
    max_shift: float = 0.03,
    max_increase: float = 0.003,
    source: str = "data",
) -> StreamGroup:
    """Return streams of each column of `profile`: its distribution, and the rates of nulls and of values outside.

    The location of a number is its normal score among the profile's bins, and the scale the square of that score. The
    cuts are the rates of values below the quartiles. Each category has a rate, and so have new ones; text of more than
    100 categories has the rates of 16 groups of a hash. Nulls, and numbers outside the profile's range, are rates.
    Times are left out. Rows that depend on their neighbors count as fewer, as in `assert_no_drift`.

    Args:
        profile: The profile of the reference, or the path of its file.
        max_shift: The tolerated shift, in standard deviations of each stream; 0 for any shift at all.
        max_increase: The tolerated increase of the rate of nulls and of values outside the range, as a fraction.
        source: The argument of `Monitor.check` that holds the rows, or a name of `scores`.
    """
    profile = as_profile(profile, None)
    _check_tolerance("max_shift", max_shift)
    _check_tolerance("max_increase", max_increase)
    found = ProfileStreams(profile, max_shift=max_shift, max_increase=max_increase)
    return StreamGroup(source, found.streams, found.measure, profile.identity)


def results(
    profile: ReferenceProfile | str | os.PathLike[str], *, max_shift: float = 0.03, max_increase: float = 0.003
) -> StreamGroup:
    """Return streams of the model's own outputs: class shares, confidence, entropy, alerts, or predicted numbers.

    Args:
        profile: The profile of the reference's outputs, `reference_profile(ms.output_columns(outputs))`, or the path of
            its file. `Monitor.check` takes ready `outputs` of the same form.
        max_shift: The tolerated shift, in standard deviations of each stream.
        max_increase: The tolerated rate of invalid outputs, such as NaN, as a fraction.
    """
    profile = as_profile(profile, None)
    kind, alert = kind_of(profile), threshold_of(profile)
    valid = columns(profile, max_shift=max_shift, max_increase=max_increase, source="outputs")
    invalid = rate_stream("invalid outputs", 0, profile.rows, max_increase, weight=_INVALID_SHARE)
    streams = (*(replace(stream, weight=(1 - _INVALID_SHARE) * stream.weight) for stream in valid.streams), invalid)

    def measure(outputs: Any) -> Measured:
        read = Output.of(None)
        _, values = read_output(outputs, None, read, reads_labels=kind == "labels")
        if not len(values):
            raise InputError("outputs must have at least one row")
        found = Columns.of(values, read, kind=kind, alert_at=alert and alert[1])
        rows = float(found.invalid.size)
        if found.invalid.all():
            totals = n = np.zeros(len(valid.streams))
        else:
            totals, n = valid.measure(found.columns)
        return np.append(totals, float(found.invalid.sum())), np.append(n, rows)

    return StreamGroup("outputs", streams, measure, profile.identity)


def latency(reference_ms: ArrayLike, *, quantile: float = 0.95, max_increase: float = 0.02) -> StreamGroup:
    """Return the stream of slow calls: those slower than the `quantile` of the reference.

    Args:
        reference_ms: Durations (n,) of independent calls of the released model, in milliseconds. `Monitor.check` takes
            `latency_ms` (n,), from a comparable host.
        quantile: The quantile, between 0 and 1.
        max_increase: The tolerated increase of the proportion of slow calls.
    """
    durations = _durations("reference_ms", reference_ms)
    if not 0 < quantile < 1:
        raise UsageError(f"quantile must lie between 0 and 1 (0.95, for example), got {quantile}")
    limit = float(np.quantile(durations, quantile, method="higher"))
    slow = int((durations > limit).sum())
    name = f"calls slower than {limit:.3g} ms (the {100 * quantile:g} % quantile)"
    counted = rate(name, slow, durations.size, max_increase=max_increase)

    def measure(latency_ms: Any) -> Measured:
        return counted.measure(_durations("latency_ms", latency_ms) > limit)

    return replace(counted, source="latency_ms", measure=measure, identity=f"{limit!r}")


def accuracy(correct: int, rows: int, *, max_drop: float = 0.01, within: float | None = None) -> StreamGroup:
    """Return the stream of wrong predictions, from labels that `Monitor.add_labels` adds when they are known.

    `Monitor.check` keeps the `outputs` of a window under their `ids` until then. Of probabilities it keeps the
    predicted class; labels and numbers (n,) stay as they are.

    Args:
        correct: The number of correct predictions on the reference rows.
        rows: The number of labeled reference rows.
        max_drop: The tolerated drop of the accuracy, as a fraction.
        within: For predicted numbers: the largest error of a correct one, in the units of the target.
    """
    if within is not None and not 0 < within < math.inf:
        raise UsageError(f"within must be a positive number in the units of the target, got {within}")
    if not 0 <= correct <= rows or rows < 1:
        raise UsageError(f"correct must be between 0 and rows, and rows at least 1; got {correct} of {rows}")
    _check_tolerance("max_drop", max_drop)
    stream = rate_stream("wrong predictions", rows - correct, rows, max_drop, argument="max_drop")
    return StreamGroup("labels", (stream,), lambda _: (np.zeros(1), np.zeros(1)), repr(within), within)


def estimated_accuracy(outputs: ArrayLike, labels: ArrayLike, *, max_drop: float = 0.01) -> StreamGroup:
    """Return the stream of the accuracy that the confidence lets expect, without labels of later windows.

    Reference rows are divided into ten bins of equal size by their confidence (Zadrozny and Elkan 2001, ICML 609–616).
    Each row of a window counts with the accuracy of its bin. That finds rows that are harder for the model, and cannot
    find labels that changed for the same inputs.

    Args:
        outputs: Probabilities (n, classes) of labeled reference rows, or (n,) of class 1 of two. `Monitor.check` takes
            `outputs` of the same form.
        labels: Their classes (n,), from 0.
        max_drop: The tolerated drop of the expected accuracy, as a fraction.
    """
    _check_tolerance("max_drop", max_drop)
    probabilities, classes = read_probabilities(np.asarray(outputs), Output.of(None)), np.asarray(labels)
    if classes.shape != probabilities.shape[:1] or classes.dtype.kind not in "iub":
        raise InputError(
            f"labels must be classes from 0, one for each of {len(probabilities)} rows; got {classes.dtype} of shape "
            f"{classes.shape}"
        )
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == classes
    edges = np.unique(np.quantile(confidence, np.arange(1, _BINS) / _BINS))
    bins = np.searchsorted(edges, confidence, side="right")
    rows = np.bincount(bins, minlength=edges.size + 1)
    rates = np.bincount(bins, right, minlength=edges.size + 1) / np.maximum(rows, 1)
    found = mean("estimated accuracy", rates[bins], max_shift=max_drop, side=-1)
    named = replace(found.streams[0], argument=f"max_drop={max_drop:g}", unit="proportion_difference")

    def measure(values: Any) -> Measured:
        later = read_probabilities(np.asarray(values), Output.of(None)).max(axis=1)
        return found.measure(rates[np.searchsorted(edges, later, side="right")])

    return replace(found, source="outputs", streams=(named,), measure=measure)


def rate(name: str, events: int, rows: int, *, max_increase: float) -> StreamGroup:
    """Return the stream of a rate of your own; `Monitor.check` takes `scores={name: flags}`, booleans (n,).

    Args:
        name: The name of the event, such as "empty responses".
        events: The number of events among the reference rows.
        rows: The number of reference rows.
        max_increase: The tolerated increase of the rate, as a fraction.
    """
    _check_tolerance("max_increase", max_increase)
    if not 0 <= events <= rows or rows < 1:
        raise UsageError(f"events must be between 0 and rows, and rows at least 1; got {events} of {rows}")
    stream = rate_stream(name, events, rows, max_increase)

    def measure(flags: Any) -> Measured:
        values = np.asarray(flags)
        if values.ndim != 1 or not values.size or values.dtype != np.bool_:
            raise InputError(f"{name} must be booleans of shape (n,), got {values.dtype} of shape {values.shape}")
        return np.array([float(values.sum())]), np.array([float(values.size)])

    return StreamGroup(name, (stream,), measure, "")


def mean(name: str, reference: ArrayLike, *, max_shift: float, side: Literal[-1, 0, 1] = 0) -> StreamGroup:
    """Return the stream of the mean of a score of your own; `Monitor.check` takes `scores={name: values}`.

    The mean of a window is taken as normal: scores need short tails, or windows of hundreds of rows.

    Args:
        name: The name of the score, such as "estimated accuracy".
        reference: The scores of independent reference rows (n,).
        max_shift: The tolerated change of the mean, in the units of the score.
        side: 1 if only an increase matters, −1 for a decrease, 0 for both.
    """
    values = _numbers("reference", reference)
    center, sd = float(values.mean()), float(values.std())
    if not sd:
        raise UsageError(f"reference of {name!r} must vary; all {values.size} values are {center:g}")
    if side not in (-1, 0, 1):
        raise UsageError(f"side must be 1, -1 or 0; got {side!r}")
    if not max_shift >= 0:
        raise UsageError(f"max_shift must be at least 0, in the units of the score; got {max_shift}")
    stream = Stream(name, "mean", values.size, max_shift, f"max_shift={max_shift:g}", sd=sd, side=side)

    def measure(scores: Any) -> Measured:
        found = _numbers(name, scores)
        return np.array([float(((found - center) / sd).sum())]), np.array([float(found.size)])

    return StreamGroup(name, (stream,), measure, f"{center:.9g}")


def _numbers(name: str, values: ArrayLike) -> Floats:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers of shape (n,), got {type(values).__name__}") from None
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise InputError(f"{name} must be finite numbers of shape (n,), at least one; got shape {numbers.shape}")
    return numbers


def _durations(name: str, values: ArrayLike) -> Floats:
    durations = _numbers(name, values)
    if (durations < 0).any():
        raise InputError(f"{name} holds {durations.min():g}: a duration is at least 0")
    return durations


def _check_tolerance(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UsageError(f"{name} must be a number from 0 to below 1, got {value!r}")
