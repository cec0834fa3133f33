"""Estimates with bounds: of proportions, of paired proportions, and of any metric by the delta method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Method, Quantity, check_error_rates, levels_for
from pytest_modelserve.stats import (
    Bounds,
    Linearized,
    SamplingUnits,
    SerialDependence,
    binomial_bounds,
    block_means,
    delta_method_bounds,
    delta_method_power,
    delta_method_rows_needed,
    mean_bounds,
    mean_power,
    noninferiority_power,
    paired_difference_bounds,
    proportion_rows_needed,
    ratio_of,
    rows_needed,
    serial_dependence,
    values_needed,
)

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.metrics import LinearizedMetric, Rows

Mask = NDArray[np.bool_]

ROWS_LISTED = 50
_POWER = 0.9
_MOST_ROWS = 1_000_000
"""Of paired proportions: for a failure that needs more no number is given."""
"""Number of row numbers in the details, whose size is limited."""


class Levels(TypedDict):
    """The one-sided levels of an interval's ends."""

    low_level: float
    high_level: float


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """The confidence of PASS and the error rate of FAIL; UsageError for invalid ones."""

    confidence: float
    alpha: float

    def __post_init__(self) -> None:
        check_error_rates(confidence=self.confidence, alpha=self.alpha)

    def levels(self, budget: Budget) -> Levels:
        """Return the levels that an interval needs to be compared with `budget`."""
        low, high = levels_for(budget, confidence=self.confidence, alpha=self.alpha)
        return Levels(low_level=low, high_level=high)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rows would decide, and how often a model equal to its reference is INCONCLUSIVE with these rows.

    `rows` is None where no number decides, `equal_rows` where it is not known how many pass an equal model.
    """

    rows: int | None
    equal_model_inconclusive: float | None = None
    equal_rows: int | None = None


class Estimate(ABC):
    """A figure over some of the rows: a metric, or by how much a candidate is worse than its reference."""

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of rows that count."""

    @property
    @abstractmethod
    def value(self) -> float:
        """The figure; UsageError where it has no value."""

    @abstractmethod
    def over(self, mask: Mask) -> Estimate:
        """Return the figure over the rows of a mask (n,)."""

    @abstractmethod
    def bounds(self, levels: Levels) -> Bounds:
        """Return the figure with its bounds; UsageError where it has no value."""

    def linearized(self) -> Linearized:
        """Return the figure with the influence of every row, (n,), 0 for those that it leaves out.

        UsageError where it has no value, and for a metric that is not linearized.
        """
        raise UsageError("a callable as metric= has no value for each row: give the name of a metric")

    @abstractmethod
    def plan(self, limit: float, rates: ErrorRates) -> Plan | None:
        """Return how many rows would decide on `limit`; None where that is not known."""

    @abstractmethod
    def method(self, levels: Levels) -> Method:
        """Return how the bounds are found."""

    @property
    def advice(self) -> str:
        """What to do where these rows give no interval; "" where they do."""
        return ""

    @property
    def findings(self) -> tuple[str, ...]:
        """Why these rows give no interval, as sentences."""
        return ()

    @property
    def changed_rows(self) -> str:
        """How many rows a candidate changed, as a sentence; "" where that is not counted."""
        return ""

    @property
    def context(self) -> tuple[Quantity, ...]:
        """The metric of each of two models."""
        return ()

    @abstractmethod
    def details(self, levels: Levels) -> dict[str, Any]:
        """Return facts for programs."""


@dataclass(frozen=True, eq=False)
class Proportion(Estimate):
    """The proportion of the `counted` rows that are `correct`, (n,) each."""

    correct: Mask
    counted: Mask
    assumption: str

    @property
    def n(self) -> int:
        return int(self.counted.sum())

    @property
    def value(self) -> float:
        return float(_counted(self).mean())

    def over(self, mask: Mask) -> Proportion:
        return replace(self, counted=self.counted & mask)

    def bounds(self, levels: Levels) -> Bounds:
        return binomial_bounds(*self.counts, **levels)

    @property
    def counts(self) -> tuple[int, int]:
        """The number of rows that are correct, and of those that count."""
        return int(_counted(self).sum()), self.n

    def linearized(self) -> Linearized:
        right = (self.counted & self.correct).astype(np.float64)
        return ratio_of(right, self.counted.astype(np.float64), spread=1.0)

    def plan(self, limit: float, rates: ErrorRates) -> Plan:
        right = int(_counted(self).sum()) / self.n
        return Plan(proportion_rows_needed(right, limit, confidence=rates.confidence, alpha=rates.alpha))

    def method(self, levels: Levels) -> Method:
        return Method("exact binomial bounds", "Clopper & Pearson 1934, Biometrika 26", self.assumption)

    def details(self, levels: Levels) -> dict[str, Any]:
        return {"wrong_rows": np.flatnonzero(self.counted & ~self.correct)[:ROWS_LISTED].tolist()}


@dataclass(frozen=True, eq=False)
class PairedProportions(Estimate):
    """The drop of the proportion of `counted` rows that are right, from the reference to the candidate, (n,) each."""

    reference: Mask
    correct: Mask
    counted: Mask

    @property
    def n(self) -> int:
        return int(self.counted.sum())

    @property
    def value(self) -> float:
        return (int((self.counted & self.reference).sum()) - int(_counted(self).sum())) / self.n

    @property
    def lost(self) -> NDArray[np.intp]:
        """The rows that only the reference has right."""
        return np.flatnonzero(self.counted & self.reference & ~self.correct)

    @property
    def gained(self) -> NDArray[np.intp]:
        """The rows that only the candidate has right."""
        return np.flatnonzero(self.counted & self.correct & ~self.reference)

    def over(self, mask: Mask) -> PairedProportions:
        return replace(self, counted=self.counted & mask)

    def bounds(self, levels: Levels) -> Bounds:
        _counted(self)
        return paired_difference_bounds(self.lost.size, self.gained.size, self.n, **levels)

    def linearized(self) -> Linearized:
        drops = (self.reference.astype(np.float64) - self.correct) * self.counted
        return ratio_of(drops, self.counted.astype(np.float64), spread=1.0)

    def plan(self, limit: float, rates: ErrorRates) -> Plan:
        # The unknown share of changed rows is taken as (changed + 1/2)/(n + 1): none seen does not mean none ever.
        discordance = (self.lost.size + self.gained.size + 0.5) / (self.n + 1)
        probabilities = noninferiority_power(
            self.n,
            discordance=discordance,
            difference=0.0,
            margin=limit,
            confidence=rates.confidence,
            alpha=rates.alpha,
        )
        needed = rows_needed(discordance=discordance, margin=limit, confidence=rates.confidence)
        # Where these rows are enough for an equal model, the drop that they show is what more rows have to decide.
        rows = needed if needed > self.n else self._rows_for_drop(discordance, limit, rates)
        return Plan(rows, probabilities.inconclusive, needed)

    def _rows_for_drop(self, discordance: float, limit: float, rates: ErrorRates) -> int | None:
        """Return about how many rows decide 9 times in 10, were the drop as measured; None at the very limit."""
        drop = self.value
        if drop == limit:
            return None
        truth = {"discordance": max(discordance, abs(drop)), "difference": drop, "margin": limit}
        if drop < limit:
            return rows_needed(**truth, confidence=rates.confidence)

        def fails(n: int) -> float:
            return noninferiority_power(n, **truth, confidence=rates.confidence, alpha=rates.alpha).fails

        low, high = self.n, 2 * self.n
        while high < _MOST_ROWS and fails(high) < _POWER:
            low, high = high, 2 * high
        if high >= _MOST_ROWS:
            return None
        while high - low > low // 50 + 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(middle) >= _POWER else (middle, high)
        return high

    def method(self, levels: Levels) -> Method:
        return Method(
            "Tango paired score",
            "Tango 1998, Statistics in Medicine 17:891-908; exact unconditional limits where his err too often, "
            "Buehler 1957, JASA 52:482-493, and Berger & Boos 1994, JASA 89:1012-1016",
            "independent rows; a model exactly on its budget fails, and passes, at most 1.1 times as often as the "
            "levels say",
        )

    @property
    def changed_rows(self) -> str:
        lost, gained = self.lost.size, self.gained.size
        return f"{lost + gained} rows changed correctness: {lost} lost, {gained} gained"

    @property
    def context(self) -> tuple[Quantity, ...]:
        before, after = (int((self.counted & right).sum()) / self.n for right in (self.reference, self.correct))
        return Quantity("reference", before, "proportion"), Quantity("candidate", after, "proportion")

    def details(self, levels: Levels) -> dict[str, Any]:
        return {
            "lost_rows": self.lost[:ROWS_LISTED].tolist(),
            "gained_rows": self.gained[:ROWS_LISTED].tolist(),
        }


def _counted(estimate: Proportion | PairedProportions) -> Mask:
    """Return which of the counted rows are right, (counted,); UsageError where there are none."""
    correct = estimate.correct[estimate.counted]
    if not correct.size:
        raise UsageError("none of its rows counts for this metric")
    return correct


@dataclass(frozen=True, eq=False)
class DeltaMethod(Estimate):
    """A metric of the candidate, or by how much it is worse than the reference's, over the rows of `mask` (n,).

    The bounds are those of a mean of one value a sampling unit: a loss, of which less is better. Where units depend on
    each other both are infinite: an interval that is too short would pass and fail where it must not.
    """

    metric: LinearizedMetric[Any]
    units: SamplingUnits
    candidate: Rows[Any]
    reference: Rows[Any] | None = None
    mask: Mask | None = None

    @cached_property
    def _mask(self) -> Mask:
        return np.ones(self.units.n, dtype=np.bool_) if self.mask is None else self.mask

    @cached_property
    def _part(self) -> SamplingUnits:
        return self.units.over(self._mask)

    @cached_property
    def _loss(self) -> Linearized:
        metric, mask, weights = self.metric, self._mask, self.units.weights
        if self.reference is None:
            found: Linearized = metric.bounded_estimate(self.candidate.data, mask, weights)
            return found.negative() if metric.higher_is_better else found
        before, after = (metric.estimate(rows.data, mask, weights) for rows in (self.reference, self.candidate))
        return before.minus(after) if metric.higher_is_better else after.minus(before)

    @cached_property
    def _values(self) -> NDArray[np.float64]:
        return self._part.values(self._loss.values)

    @cached_property
    def _dependence(self) -> SerialDependence | None:
        """What the units show of serial dependence, where they have an order: blocks, and targets row by row."""
        ordered = self._part.block is not None or (self._part.are_rows and self.metric.of_targets)
        return serial_dependence(block_means(self._values).deviations) if ordered else None

    @property
    def _is_bounded(self) -> bool:
        return self._dependence is None and self._values.size > 1

    @property
    def n(self) -> int:
        return int(self._mask.sum())

    @property
    def value(self) -> float:
        value = self._loss.value
        if self.reference is not None:
            return value
        return -value if self.metric.higher_is_better else self.metric.from_bounded(value)

    def over(self, mask: Mask) -> DeltaMethod:
        return replace(self, mask=mask)

    def bounds(self, levels: Levels) -> Bounds:
        metric, (low, high) = self.metric, self.metric.limits
        if self.reference is not None:
            return _clipped(self._loss_bounds(levels), low - high, high - low)
        if not metric.higher_is_better:
            found = self._loss_bounds(levels)
            estimate, *ends = (metric.from_bounded(end) for end in (found.estimate, max(found.low, 0.0), found.high))
            return Bounds(estimate, *ends, **levels)
        loss = self._loss_bounds(Levels(low_level=levels["high_level"], high_level=levels["low_level"]))
        return _clipped(Bounds(-loss.estimate, -loss.high, -loss.low, **levels), low, high)

    def linearized(self) -> Linearized:
        mask, weights = self._mask, self.units.weights
        found = self._loss
        if self.reference is None:
            found = self.metric.estimate(self.candidate.data, mask, weights)
        scale = mask.size / self.n
        influence = np.zeros(mask.size)
        influence[mask] = scale * found.influence
        return Linearized(found.value, influence, scale * found.largest)

    def _loss_bounds(self, levels: Levels) -> Bounds:
        if not self._is_bounded:
            return Bounds(float(self._values.mean()), -math.inf, math.inf, **levels)
        if self.metric.is_mean_loss:
            return mean_bounds(self._values, **levels)
        return delta_method_bounds(self._values, largest=self._loss.largest, rows=self._part.n, **levels)

    def plan(self, limit: float, rates: ErrorRates) -> Plan:
        if self.reference is None:
            limit = -limit if self.metric.higher_is_better else self.metric.to_bounded(limit)
            return Plan(self._rows_needed(limit, rates, float(self._values.mean())))
        if not self._is_bounded:
            return Plan(None, 1.0)
        arguments: dict[str, Any] = {"limit": limit, "confidence": rates.confidence, "alpha": rates.alpha}
        if self.metric.is_mean_loss:
            equal = mean_power(self._values, truth=0.0, **arguments)
        else:
            arguments |= {"largest": self._loss.largest, "rows": self._part.n}
            equal = delta_method_power(self._values, truth=0.0, **arguments)
        equal_rows = self._rows_needed(limit, rates, 0.0) if limit > 0 else None
        return Plan(self._rows_needed(limit, rates, float(self._values.mean())), equal.inconclusive, equal_rows)

    def _rows_needed(self, limit: float, rates: ErrorRates, truth: float) -> int | None:
        """Return about how many rows decide 9 times in 10, were the mean loss `truth`."""
        if not self._is_bounded:
            return None
        arguments: dict[str, Any] = {"limit": limit, "confidence": rates.confidence, "alpha": rates.alpha}
        if self.metric.is_mean_loss:
            needed = values_needed(self._values, truth=truth, **arguments)
        else:
            arguments |= {"largest": self._loss.largest, "rows": self._part.n}
            needed = delta_method_rows_needed(self._values, truth=truth, **arguments)
        return None if needed is None else math.ceil(needed * self._part.n / self._values.size)

    def method(self, levels: Levels) -> Method:
        units, (name, source, error_rates) = self._part, self.metric.interval_method
        if units.block is not None:
            assumption = f"rows {units.block} or more apart are nearly independent"
        elif not units.are_rows:
            assumption = (
                "groups are independent of each other, whatever the rows within one do; where whole groups may err "
                "together, a model exactly on its budget passes in up to 15 % with 20 groups and 8 % with 50, instead "
                "of 5 %"
            )
        elif self.metric.of_targets:
            assumption = "independent rows (dependence shows reliably from about 200 rows on)"
        else:
            assumption = "independent rows"
        return Method(f"{name}{units}", source, f"{assumption}; {error_rates}")

    @property
    def advice(self) -> str:
        block = self._part.block
        if self._dependence is not None and block is None:
            return (
                "give sampling=ms.Sampling(block=...), the number of consecutive rows that depend on each other (52 "
                "for weekly rows with a yearly season), or shuffle rows whose order means nothing"
            )
        if self._dependence is not None:
            return f"give a larger block than {block}, and more rows if few blocks remain"
        if self._values.size < 2:
            units = "rows" if self._part.are_rows else "groups"
            return f"give more {units}" if block is None else f"give rows for several blocks, {10 * block:,} say"
        return ""

    @property
    def findings(self) -> tuple[str, ...]:
        block = self._part.block
        if self._dependence is not None:
            units = "rows" if block is None else f"blocks of {block} rows"
            return (
                f"neighboring {units} depend on each other: sums of losses over {self._dependence.span} of them vary "
                f"{self._dependence.variance_ratio:.1f} times as much as those of independent ones, so no interval is "
                "given",
            )
        if self._values.size < 2:
            if block is not None:
                return (f"{self._part.n} rows make one block of {block}, and an interval needs at least two",)
            units = "row" if self._part.are_rows else f"group of {self._part.n} rows"
            return (f"there is one {units}, and an interval needs at least two",)
        return ()

    @property
    def changed_rows(self) -> str:
        if self.reference is None or self.reference.losses is None or self.candidate.losses is None:
            return ""
        before, after = self.reference.losses, self.candidate.losses
        return f"the error rose in {int((after > before).sum())} rows and fell in {int((before > after).sum())}"

    @property
    def context(self) -> tuple[Quantity, ...]:
        if self.reference is None:
            return ()
        metric, mask, weights = self.metric, self._mask, self.units.weights
        before, after = (metric.estimate(rows.data, mask, weights) for rows in (self.reference, self.candidate))
        return (
            Quantity("reference", before.value, metric.unit),
            Quantity("candidate", after.value, metric.unit),
        )

    def details(self, levels: Levels) -> dict[str, Any]:
        return {"blocks": self._values.size, **self._worst_rows(), **self._curves()}

    def _curves(self) -> dict[str, list[dict[str, Any]]]:
        """Return the ROC curves of a metric that has them."""
        models = {"reference": self.reference, "candidate": self.candidate}
        curves = [
            {"label": label, **curve}
            for label, rows in models.items()
            if rows is not None and (curve := self.metric.curve(rows.data, self._mask, self.units.weights))
        ]
        return {"roc": curves} if curves else {}

    def _worst_rows(self) -> dict[str, list[int]]:
        """Return the rows with the largest losses, or in which the loss rose most, worst first."""
        losses, before = self.candidate.losses, None if self.reference is None else self.reference.losses
        if losses is None:
            return {}
        if before is None:
            return {"worst_rows": np.argsort(-losses, kind="stable")[:ROWS_LISTED].tolist()}
        worst = np.argsort(before - losses, kind="stable")[:ROWS_LISTED]
        return {"worst_rows": [int(row) for row in worst if losses[row] > before[row]]}


@dataclass(frozen=True, eq=False)
class Contrast:
    """The difference of a figure between two estimates on different rows, by the delta method.

    `is_series` says that rows in order may depend on each other; bounds are then infinite where they do.
    """

    one: Linearized
    other: Linearized
    rows: Mask
    units: SamplingUnits
    is_series: bool = False

    @property
    def value(self) -> float:
        return self.one.value - self.other.value

    @cached_property
    def _values(self) -> NDArray[np.float64]:
        influence = (self.one.influence - self.other.influence)[self.rows] * (self.rows.sum() / self.rows.size)
        return self.units.over(self.rows).values(self.value + influence)

    def bounds(self, levels: Levels) -> Bounds:
        """Return the difference with its bounds."""
        values, n = self._values, int(self.rows.sum())
        if values.size < 2 or (self.is_series and serial_dependence(block_means(values).deviations) is not None):
            return Bounds(self.value, -math.inf, math.inf, **levels)
        largest = max(self.one.largest, self.other.largest) * n / self.rows.size
        return delta_method_bounds(values, largest=largest, rows=n, **levels)


def _clipped(bounds: Bounds, low: float, high: float) -> Bounds:
    """Return bounds that stay inside the range of the metric."""
    return Bounds(
        min(max(bounds.estimate, low), high),
        min(max(bounds.low, low), high),
        max(min(bounds.high, high), low),
        bounds.low_level,
        bounds.high_level,
    )
