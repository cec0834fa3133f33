"""Metrics that are a user's function: BCa bootstrap over rows, groups or blocks, no longer than the budget needs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.evidence import Method, Quantity
from pytest_modelserve.metrics import Output, decode
from pytest_modelserve.parity.accuracy.estimates import ErrorRates, Estimate, Levels, Mask, Plan
from pytest_modelserve.parity.accuracy.metrics import METRICS, Metric, MetricFunction, Rows
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import Bounds, Sampling, SamplingUnits, bca_bounds_against

SEED = 0
"""Seed of the resampling: the same rows give the same verdict."""

_LOGGER = logging.getLogger(__name__)
_LONG_S = 10
"""Resampling that may take longer than this is logged."""
_POWER = 0.9
"""The probability with which planned rows decide."""
_MIN_COMPARED = 10
"""The fewest rows on which a metric is compared with the named ones."""

Pair = tuple[NDArray[Any], NDArray[Any]]
"""Labels and predictions, one of each a row."""


class CustomMetric(Metric[Pair]):
    """A function of labels and predictions that returns one float; the kind of its budget says which way is better."""

    limits = (-math.inf, math.inf)
    options = frozenset({"decode"})

    def __init__(self, function: MetricFunction, *, higher_is_better: bool, limit: float) -> None:
        name = getattr(function, "__name__", "metric")
        self.title = "metric" if name == "<lambda>" else name
        self.function, self.higher_is_better, self.limit = function, higher_is_better, limit
        self.calls, self.seconds, self.same_as = 0, 0.0, ""

    def read(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output) -> Rows[Pair]:
        truth: NDArray[Any] = np.asarray(labels)
        if len(truth) != len(outputs):
            raise InputError(f"there are {len(truth)} labels for {len(outputs)} rows of outputs")
        nan = np.zeros(len(outputs), dtype=np.bool_)
        if outputs.dtype.kind == "f":
            nan = np.isnan(outputs).any(axis=tuple(range(1, outputs.ndim)))
        predictions = outputs if output.decode is None or nan.any() else decode(outputs, output.decode).labels
        if not nan.any():
            self.same_as = self._same_as(outputs, truth, output, (truth, predictions))
        return Rows((truth, predictions), np.flatnonzero(nan))

    def _same_as(self, outputs: NDArray[Any], labels: NDArray[Any], output: Output, data: Pair) -> str:
        """Return the named metric that has the values of the function over all rows and over two parts of them."""
        n = len(labels)
        parts = [np.ones(n, dtype=np.bool_), np.arange(n) % 3 > 0, np.arange(n) % 5 > 1]
        try:
            values = [self.value(data, part) for part in parts] if n >= _MIN_COMPARED else []
        except Exception:
            return ""
        if len(set(values)) < len(parts) or not np.isfinite(values).all():
            return ""  # a constant equals many metrics
        for name, metric in METRICS.items():
            try:
                estimate = metric.level(metric.read(outputs, labels, output), Sampling().units(n))
                found = [estimate.over(part).value for part in parts]
            except (ModelServeError, ValueError, TypeError):
                continue  # outputs or labels that this metric does not take
            if np.allclose(found, values, rtol=1e-9, atol=1e-12):
                return name
        return ""

    def value(self, data: Pair, rows: NDArray[Any]) -> float:
        """Return the metric over rows, given by a mask or by their numbers."""
        started = time.perf_counter()
        value = self.function(data[0][rows], data[1][rows])
        self.calls, self.seconds = self.calls + 1, self.seconds + time.perf_counter() - started
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UsageError(f"metric must return one number, got {type(value).__name__}") from None

    def level(self, rows: Rows[Pair], units: SamplingUnits) -> Estimate:
        return Bootstrap(self, units, rows)

    def change(self, reference: Rows[Pair], candidate: Rows[Pair], units: SamplingUnits) -> Estimate:
        return Bootstrap(self, units, candidate, reference)


@dataclass(frozen=True, eq=False)
class Bootstrap(Estimate):
    """A custom metric of the candidate, or by how much it is worse than the reference's, over the rows of `mask`."""

    metric: CustomMetric
    units: SamplingUnits
    candidate: Rows[Pair]
    reference: Rows[Pair] | None = None
    mask: Mask | None = None
    found: list[tuple[Bounds, int]] = field(default_factory=list)
    """The bounds and the number of resamples, once they are known."""

    @property
    def n(self) -> int:
        return self.units.n if self.mask is None else int(self.mask.sum())

    @property
    def value(self) -> float:
        return self._at(np.arange(self.units.n) if self.mask is None else self.mask)

    def _at(self, rows: NDArray[Any]) -> float:
        value = self.metric.value(self.candidate.data, rows)
        if self.reference is None:
            return value
        before = self.metric.value(self.reference.data, rows)
        return before - value if self.metric.higher_is_better else value - before

    def over(self, mask: Mask) -> Bootstrap:
        return replace(self, mask=mask)

    def bounds(self, levels: Levels) -> Bounds:
        n = self.n
        for rows, name in ((self.reference, "reference"), (self.candidate, "candidate")):
            if rows is not None and not math.isfinite(value := self.metric.value(rows.data, np.arange(n))):
                raise InputError(f"metric is {value} over all {n} rows of the {name}; it must be finite")
        if self.units.count < 2:
            return Bounds(self.value, -math.inf, math.inf, **levels)
        self.found[:] = [
            bca_bounds_against(
                self._at, n, limit=self.metric.limit, ids=self.units.ids, seed=SEED, steps=self._resampling, **levels
            )
        ]
        return self.found[0][0]

    def _resampling(self, steps: range) -> Iterable[int]:
        """Return the steps with a progress bar that tells how long they take at most."""
        metric = self.metric
        calls = len(steps) * (1 if self.reference is None else 2)
        each = metric.seconds / metric.calls
        text = f"resampling {metric.title}: at most {calls:,} calls of {1000 * each:.3g} ms, {calls * each:.0f} s"
        if calls * each > _LONG_S:
            _LOGGER.info("%s", text)
        return progress(steps, text, total=len(steps))

    @property
    def _resamples(self) -> int:
        return self.found[0][1] if self.found else 0

    def plan(self, limit: float, rates: ErrorRates) -> Plan | None:
        """Return how many rows decide 9 times in 10, were the metric as measured, by the width of the interval."""
        if not self.found or self.found[0][0].estimate == limit:
            return None
        bounds = self.found[0][0]
        of_low, of_high, of_power = ndtri(bounds.low_level), ndtri(bounds.high_level), ndtri(_POWER)
        error = (bounds.high - bounds.low) / (of_low + of_high)
        if not math.isfinite(error):
            return None
        decisive = of_high if limit > bounds.estimate else of_low
        return Plan(math.ceil(self.n * ((decisive + of_power) * error / (limit - bounds.estimate)) ** 2))

    def method(self, levels: Levels) -> Method:
        independent = "independent rows" if self.units.are_rows else "independent groups or blocks"
        return Method(
            f"BCa bootstrap, {self._resamples:,} resamples{self.units}",
            "Efron 1987, JASA 82:171-185; expanded: Hesterberg 2015, The American Statistician 69:371-386; no more "
            "resamples than decide: Gandy 2009, JASA 104:1504-1511",
            f"{independent}; a metric that is a smooth function of the rows (no quantile of few); levels are "
            "asymptotic: for the mean of skewed losses PASS is wrong in up to 7 % with 50 rows instead of 5 %, FAIL in "
            "up to 0.3 % with 200",
        )

    @property
    def findings(self) -> tuple[str, ...]:
        if not self.metric.same_as:
            return ()
        return (
            f"{self.metric.title} has the values of metric={self.metric.same_as!r} on these rows: the name takes one "
            "call and a method of its own instead of resamples",
        )

    @property
    def context(self) -> tuple[Quantity, ...]:
        if self.reference is None:
            return ()
        rows = np.arange(self.n)
        return tuple(
            Quantity(name, self.metric.value(read.data, rows), "")
            for name, read in (("reference", self.reference), ("candidate", self.candidate))
        )

    def details(self, levels: Levels) -> dict[str, Any]:
        return {"resamples": self._resamples, "seed": SEED, "metric_calls": self.metric.calls}
