"""Gain of an attacker from a model: the rows predicted right with its answers and without them, in pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, Verdict, levels_for
from pytest_modelserve.parity.accuracy.estimates import ErrorRates, PairedProportions
from pytest_modelserve.privacy.labeled_rows import row_numbers
from pytest_modelserve.privacy.surrogate import inputs_by_name
from pytest_modelserve.stats import (
    Bounds,
    Sampling,
    SamplingUnits,
    delta_method_bounds,
    delta_method_rows_needed,
    mean_of,
    paired_difference_bounds,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainReport:
    """What the evidence of a gain says: names of the gate, its `rows` and both proportions, source and texts."""

    gate: str
    rows: str
    without: str
    having: str
    attack: str
    assumption: str
    summaries: Mapping[Verdict, str]
    remedy: str


@dataclass(frozen=True, slots=True, eq=False)
class PairedGain:
    """Rows that an attacker gets right `having` the model's answers, and `without` them, (n,) each.

    Rows of one unit depend on each other, such as equal ones, and count as one in the interval.
    """

    having: NDArray[np.bool_]
    without: NDArray[np.bool_]
    units: SamplingUnits

    @classmethod
    def of(cls, having: NDArray[np.bool_], without: NDArray[np.bool_], groups: NDArray[np.intp]) -> PairedGain:
        """Return the gain on rows of these groups, (n,)."""
        are_rows = len(np.unique(groups)) == len(groups)
        return cls(having, without, Sampling(groups=None if are_rows else groups).units(len(groups)))

    def evidence(
        self,
        report: GainReport,
        subject: Subject,
        max_gain: float,
        *,
        findings: Iterable[str],
        details: Mapping[str, Any],
        started: float,
        confidence: float,
        alpha: float,
    ) -> Evidence:
        """Return the evidence: the gain with its interval and budget, then both proportions."""
        budget = Budget.of("max_gain", max_gain)
        low, high = levels_for(budget, confidence=confidence, alpha=alpha)
        bounds = self._bounds(low_level=low, high_level=high)
        quantity = Quantity("gain", bounds.estimate, "proportion_difference", Interval.of(bounds), budget)
        verdict = quantity.verdict
        assert verdict is not None
        n, count = self.units.n, self.units.count
        merged = f"{n:,} {report.rows} are {count:,} groups, each of equal rows or of one id, which count as one each"
        tango = "Tango paired score", "Tango 1998, Statistics in Medicine 17:891-908"
        groups = f"delta method, Student t and Hall{self.units}", "Liang & Zeger 1986, Biometrika 73:13-22"
        method, source = tango if self.units.are_rows else groups
        unit = "rows" if self.units.are_rows else "groups"
        return Evidence(
            gate=report.gate,
            subject=subject,
            quantities=(
                quantity,
                Quantity(report.without, float(self.without.mean()), "proportion"),
                Quantity(report.having, float(self.having.mean()), "proportion"),
            ),
            n=count,
            n_unit=unit,
            method=Method(method, f"{source}; attack: {report.attack}", f"independent {unit}; {report.assumption}"),
            summary=report.summaries[verdict],
            confidence=confidence,
            alpha=alpha,
            findings=(*findings, *([] if self.units.are_rows else [merged])),
            advice={
                Verdict.PASS: "",
                Verdict.FAIL: report.remedy,
                Verdict.INCONCLUSIVE: self._advice(report.rows, max_gain, ErrorRates(confidence, alpha)),
            }[verdict],
            details=dict(details),
            duration_s=time.perf_counter() - started,
        )

    @property
    def _values(self) -> NDArray[np.float64]:
        """The gain of each unit."""
        gain = mean_of(self.having.astype(np.float64) - self.without)
        return self.units.values(gain.values)

    def _bounds(self, *, low_level: float, high_level: float) -> Bounds:
        if self.units.are_rows:
            more, fewer = int((self.having & ~self.without).sum()), int((self.without & ~self.having).sum())
            return paired_difference_bounds(more, fewer, self.units.n, low_level=low_level, high_level=high_level)
        if self.units.count < 2:
            return Bounds(float(self._values.mean()), -math.inf, math.inf, low_level=low_level, high_level=high_level)
        return delta_method_bounds(self._values, largest=1.0, low_level=low_level, high_level=high_level)

    def _advice(self, rows: str, max_gain: float, rates: ErrorRates) -> str:
        """Return what would decide an INCONCLUSIVE verdict."""
        if self.units.are_rows:
            plan = PairedProportions(self.having, self.without, np.ones(self.units.n, dtype=np.bool_))
            needed = plan.plan(max_gain, rates).rows
        elif self.units.count < 2:
            return f"give {rows} of more than one group"
        else:
            values, rows = self._values, f"groups of {rows}"
            needed = delta_method_rows_needed(
                values,
                truth=float(values.mean()),
                limit=max_gain,
                largest=1.0,
                confidence=rates.confidence,
                alpha=rates.alpha,
            )
        if needed is None:
            return "give a max_gain that differs from the measured gain"
        return f"give about {needed:,} {rows}, with which the verdict is reached 9 times in 10, or a larger max_gain"


def check_max_gain(max_gain: float, what: str) -> None:
    """Raise UsageError for a budget outside (0, 1) of points of `what`."""
    if not 0 < max_gain < 1:
        raise UsageError(f"max_gain must be between 0 and 1 (0.05 is five points of {what}), got {max_gain}")


def numbers_of_rows(batch: Any) -> NDArray[np.intp]:
    """Return a number for each row of an array, a mapping of arrays or a frame; equal rows have equal numbers."""
    (numbers,) = row_numbers({name: np.asarray(values) for name, values in inputs_by_name(batch).items()})
    return numbers


def groups_of_rows(batch: Any, sampling: Sampling | None) -> NDArray[np.intp]:
    """Return the number of each row's group; without `sampling` equal rows are a group. UsageError for other units."""
    numbers = numbers_of_rows(batch)
    if sampling is None:
        return numbers
    units = Sampling.of(sampling).units(len(numbers))
    if units.block is not None or units.weights is not None:
        raise UsageError("sampling takes groups only here, as rows are drawn at random: ms.Sampling(groups=ids)")
    return np.arange(len(numbers)) if units.ids is None else units.ids


def by_group(order: NDArray[np.intp], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return rows in an order in which those of one group follow each other, groups by their first rows in `order`."""
    _, first, place = np.unique(groups[order], return_index=True, return_inverse=True)
    return order[np.argsort(first[place.reshape(-1)], kind="stable")]
