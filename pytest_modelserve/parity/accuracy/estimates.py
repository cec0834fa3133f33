"""A mean of one value a unit held against the most that it may be, with rows that may depend on each other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Subject,
    Unit,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.stats import (
    Bounds,
    Linearized,
    SamplingUnits,
    SerialDependence,
    VerdictProbabilities,
    block_means,
    delta_method_bounds,
    delta_method_power,
    delta_method_rows_needed,
    mean_bounds,
    mean_power,
    serial_dependence,
    values_needed,
)

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.metrics import Spec

# What the accuracy gates share: two error rates, and evidence whose words follow its verdict.


ROWS_LISTED = 50
"""Row numbers kept in the details: enough to look at, few enough to travel."""


class Levels(TypedDict):
    """The one-sided levels of an interval's ends."""

    low_level: float
    high_level: float


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """PASS is said at `confidence`, FAIL at error rate `alpha`; UsageError for what is no probability of its kind."""

    confidence: float
    alpha: float

    def __post_init__(self) -> None:
        check_error_rates(confidence=self.confidence, alpha=self.alpha)

    def levels(self, budget: Budget) -> Levels:
        """The levels that an interval needs to be held against `budget`."""
        low, high = levels_for(budget, confidence=self.confidence, alpha=self.alpha)
        return Levels(low_level=low, high_level=high)


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of one verdict: the summary, and what to do next."""

    summary: str
    advice: str = ""


class Judged(Protocol):
    """A judged headline and judged slices, worst first; see `parity.slice_verdicts.Verdicts`."""

    @property
    def headline(self) -> Quantity:
        """What is judged over all rows."""

    @property
    def slices(self) -> tuple[Quantity, ...]:
        """What is judged over slices of them."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Sentences on slices that are not shown."""

    @property
    def of_slices(self) -> Verdict | None:
        """The worst verdict of the slices where it is worse than the headline's."""


def evidence_of(
    gate: str,
    subject: Subject,
    judged: Judged,
    *,
    n: int,
    method: Method,
    rates: ErrorRates,
    words: Mapping[Verdict, Words],
    started: float,
    reference: Subject | None = None,
    context: Sequence[Quantity] = (),
    findings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Evidence:
    """The evidence on `n` rows whose headline is judged, begun at `started` (of `time.perf_counter`).

    Where a slice has a worse verdict than the whole, the words are about the slice.
    """
    headline = judged.headline
    assert headline.verdict is not None
    said = words[headline.verdict] if judged.of_slices is None else _words_on(judged.slices[0], judged.of_slices)
    return Evidence(
        gate=gate,
        subject=subject,
        reference=reference,
        quantities=(headline, *context, *judged.slices),
        n=n,
        n_unit="rows",
        method=method,
        summary=said.summary,
        confidence=rates.confidence,
        alpha=rates.alpha,
        findings=(*findings, *judged.findings),
        advice=said.advice,
        details=details or {},
        duration_s=time.perf_counter() - started,
    )


def _words_on(worst: Quantity, verdict: Verdict) -> Words:
    if verdict is Verdict.FAIL:
        return Words(f"a slice is outside its budget: {worst.name}", "look at the rows of this slice first")
    return Words(
        f"a slice cannot be told from its budget with these rows: {worst.name}",
        "label more rows of this slice, merge it with another, or leave it out",
    )


_SOURCE = (
    "the outer of Student 1908 and Hall 1992, Journal of the Royal Statistical Society B 54:221-228; batch means: Law, "
    "Simulation Modeling and Analysis, chapter 9; differences of losses: Diebold & Mariano 1995, Journal of Business & "
    "Economic Statistics 13:253-263"
)
_LIBERAL = (
    "levels are asymptotic: where the losses are squares of heavy-tailed errors, a model exactly on its budget passes "
    "in up to 14 % with 20 rows or blocks and 8 % with 1,000, instead of 5 %"
)
_DELTA_SOURCE = (
    "the delta method by influence functions, Hampel 1974, JASA 69:383-393; the outer of Student 1908, with degrees of "
    "freedom by Satterthwaite 1946, and Hall 1992, Journal of the Royal Statistical Society B 54:221-228; rows not "
    "seen by Clopper & Pearson 1934"
)
_DELONG_SOURCE = (
    f"DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837-845; clusters: Obuchowski 1997; {_DELTA_SOURCE}"
)
_FEW_GROUPS = (
    "where whole groups may err together, a model exactly on its budget passes in up to 15 % with 20 groups and 8 % "
    "with 50, instead of 5 %"
)
_COUNTED = "levels are asymptotic: a model exactly on its budget passes in up to 6 % instead of 5 %"
_RANKED = "levels are asymptotic: a model exactly on its budget passes in up to 7 % instead of 5 %"
_EXPLAINED = (
    "levels are asymptotic: a model exactly on its budget passes in up to 8 % with 50 rows and 6 % with 1,000, "
    "where errors are heavy-tailed in 12 % and 8 %, instead of 5 %"
)


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """The mean of `values` (units,), to be at most `limit`, out of `units` of rows.

    `largest` is what `stats.Linearized` says. `dependence` is what the units show of depending on each other. It makes
    both ends infinite: an interval that is too short would pass and fail where it must not.
    """

    values: NDArray[np.float64]
    limit: float
    units: SamplingUnits
    rates: ErrorRates
    dependence: SerialDependence | None
    spec: Spec
    largest: float = 0.0

    @classmethod
    def of(cls, estimate: Linearized, *, spec: Spec, limit: float, units: SamplingUnits, rates: ErrorRates) -> MeanLoss:
        """The estimate, with its units looked at.

        Dependence is looked for where rows have an order: among blocks, and in rows that are forecasts of targets.
        """
        values = units.values(estimate.values)
        ordered = units.block is not None or (units.are_rows and spec.reads == "targets")
        dependence = serial_dependence(block_means(values).deviations) if ordered else None
        return cls(values, limit, units, rates, dependence, spec, estimate.largest)

    def at(self, limit: float, rates: ErrorRates) -> MeanLoss:
        """The same mean against another limit."""
        return replace(self, limit=limit, rates=rates)

    @property
    def blocks(self) -> int:
        """The number of units."""
        return self.values.size

    @property
    def is_bounded(self) -> bool:
        """Whether these rows give an interval with finite ends."""
        return self.dependence is None and self.blocks > 1

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the mean of a loss, or the root of one."""
        return self.spec.kind == "error"

    def bounds(self) -> Bounds:
        """The mean between its bounds, which are infinite where the units depend on each other."""
        levels = self.rates.levels(Budget("at_most", self.limit))
        if not self.is_bounded:
            return Bounds(float(self.values.mean()), -math.inf, math.inf, **levels)
        if self.is_mean:
            return mean_bounds(self.values, **levels)
        return delta_method_bounds(self.values, largest=self.largest, rows=self.units.n, **levels)

    def power(self, truth: float) -> VerdictProbabilities:
        """The chance of each verdict with these rows, were the true mean `truth`."""
        if not self.is_bounded:
            return VerdictProbabilities(passes=0.0, inconclusive=1.0, fails=0.0)
        confidence, alpha = self.rates.confidence, self.rates.alpha
        if self.is_mean:
            return mean_power(self.values, truth=truth, limit=self.limit, confidence=confidence, alpha=alpha)
        return delta_method_power(
            self.values,
            truth=truth,
            limit=self.limit,
            largest=self.largest,
            rows=self.units.n,
            confidence=confidence,
            alpha=alpha,
        )

    def rows_needed(self, truth: float | None = None) -> int | None:
        """About how many rows would decide 9 times in 10, were the true mean `truth`, by default the one measured.

        None where no number would, and where these rows do not tell.
        """
        if not self.is_bounded:
            return None
        truth = float(self.values.mean()) if truth is None else truth
        confidence, alpha = self.rates.confidence, self.rates.alpha
        needed = (
            values_needed(self.values, truth=truth, limit=self.limit, confidence=confidence, alpha=alpha)
            if self.is_mean
            else delta_method_rows_needed(
                self.values,
                truth=truth,
                limit=self.limit,
                largest=self.largest,
                rows=self.units.n,
                confidence=confidence,
                alpha=alpha,
            )
        )
        return None if needed is None else math.ceil(needed * self.units.n / self.blocks)

    def method(self) -> Method:
        """How the interval was found."""
        units = self.units
        if self.units.block is not None:
            assumed = f"rows {self.units.block} or more apart are nearly independent"
        elif not self.units.are_rows:
            assumed = f"groups are independent of each other, whatever the rows within one do; {_FEW_GROUPS}"
        elif self.spec.reads == "targets":
            assumed = "independent rows (dependence shows reliably from about 200 rows on)"
        else:
            assumed = "independent rows"
        if self.is_mean:
            return Method(f"Student t and Hall{units}", _SOURCE, f"{assumed}; {_LIBERAL}")
        if self.spec.name == "roc_auc":
            return Method(f"DeLong, Student t and Hall{units}", _DELONG_SOURCE, f"{assumed}; {_RANKED}")
        level = _EXPLAINED if self.spec.name == "r2" else _COUNTED
        return Method(f"delta method, Student t and Hall{units}", _DELTA_SOURCE, f"{assumed}; {level}")

    def findings(self) -> tuple[str, ...]:
        """What keeps the interval from being finite, as sentences."""
        block = self.units.block
        if self.dependence is not None:
            units = "rows" if block is None else f"blocks of {block} rows"
            return (
                f"neighbouring {units} depend on each other: sums of losses over {self.dependence.span} of them vary "
                f"{self.dependence.variance_ratio:.1f} times as much as those of independent ones, so no interval is "
                "given",
            )
        if self.blocks < 2:
            if block is None:
                what = "row" if self.units.are_rows else f"group of {self.units.n} rows"
                return (f"there is one {what}, and an interval needs at least two",)
            return (f"{self.units.n} rows make one block of {block}, and an interval needs at least two",)
        return ()

    def undecided(self, summary: str, budget: str) -> Words:
        """The words of INCONCLUSIVE: what would decide."""
        block = self.units.block
        if self.dependence is not None and block is None:
            advice = (
                "give block=, the number of consecutive rows that depend on each other (52 for weekly rows with a "
                "yearly season); independent rows that only stand in some order can be shuffled instead"
            )
        elif self.dependence is not None:
            advice = f"give a larger block than {block}, and more rows if few blocks remain"
        elif self.blocks < 2:
            what = "rows" if self.units.are_rows else "groups"
            advice = f"give more {what}" if block is None else f"give rows for several blocks, {10 * block:,} say"
        elif (needed := self.rows_needed()) is not None:
            looser = "smaller" if budget.startswith("min") else "larger"
            advice = f"give about {needed:,} rows, or a {looser} {budget}"
        else:
            advice = f"give a {budget} other than the very value measured"
        return Words(summary, advice)


def within(bounds: Bounds, *, low: float, high: float) -> Bounds:
    """Bounds that do not leave the range of the metric."""
    return Bounds(
        min(max(bounds.estimate, low), high),
        min(max(bounds.low, low), high),
        max(min(bounds.high, high), low),
        bounds.low_level,
        bounds.high_level,
    )


def quantity_of(name: str, unit: Unit, bounds: Bounds, *, limit: float, turned: bool) -> Quantity:
    """A judged quantity whose bounds are those of a mean that is to be at most `limit`.

    `turned` where the mean is that of a score with its sign turned: the quantity is then the score, at least −`limit`.
    """
    if not turned:
        return Quantity(name, bounds.estimate, unit, Interval.of(bounds), Budget("at_most", limit))
    interval = Interval(-bounds.high, -bounds.low, bounds.high_level, bounds.low_level)
    return Quantity(name, -bounds.estimate, unit, interval, Budget("at_least", -limit))
