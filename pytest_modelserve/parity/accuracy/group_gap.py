"""Gap between groups: the largest difference of a task metric between two groups of rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Unit, Verdict, holm_step_down
from pytest_modelserve.metrics import Column, Part, Slices
from pytest_modelserve.parity.accuracy.estimates import Contrast, ErrorRates, Estimate, Levels, Proportion
from pytest_modelserve.parity.accuracy.evaluation import Evaluation
from pytest_modelserve.parity.accuracy.metrics import metric_named
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Bounds, Linearized, SamplingUnits, proportion_difference_bounds

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Output
    from pytest_modelserve.serving import Servable
    from pytest_modelserve.stats import Sampling

_GROUPS_LISTED = 30
_MOST_TIMES = 100
"""Times as wide as it may be that an interval is, from which on no number of rows is given."""


def measure_group_gap(
    predictor: Servable,
    inputs: Any = None,
    labels: Any = None,
    *,
    groups: Mapping[str, Column] | Column,
    max_gap: float,
    metric: str = "accuracy",
    min_rows: int = 1,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
) -> Evidence:
    """Measure the largest difference of a task metric between two groups, against a budget.

    The interval is that of the largest true difference over all pairs of groups. Its high end is the highest of any
    pair: PASS needs every pair inside the budget. Its low end is the highest low end, corrected for the number of
    pairs. The differences of accuracy, top-k accuracy, precision and recall have bounds from exact binomial
    ones. Other metrics, and groups, blocks or weights of `sampling`, take the delta method, as in `measure_accuracy`.

    A small group has a wide interval and makes the gate INCONCLUSIVE: the evidence names it and the number of its rows
    that would decide. `min_rows` leaves small groups out; the evidence names them.

    Args:
        predictor: The model to test, or its ready outputs: whatever `ms.serve` takes.
        inputs: As in `measure_accuracy`.
        labels: As in `measure_accuracy`.
        groups: One group a row, (n,), or a function of the inputs that returns it. Or names to several such columns:
            each is tested by itself, within one error rate. At most 100 groups a column; see `ms.bins`.
        max_gap: Largest difference that passes: 0.05 is five percentage points.
        metric: The name of a metric of `measure_accuracy`.
        min_rows: Fewest rows of a group that is compared.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows (patients, sessions), and sample weights, as `ms.Sampling`.

    Returns:
        The evidence, with the best and the worst group. Invalid outputs are handled as in `measure_accuracy`.

    Raises:
        UsageError: As `measure_accuracy`, and for a callable as metric.
        InputError: As `measure_accuracy`, for fewer than two groups, and for a group in which the metric has no value.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(3000) % 2
        >>> site = np.repeat(["Bern", "Graz", "Linz"], 1000)
        >>> predicted = np.where((site == "Linz") & (np.arange(3000) % 5 == 0), 1 - labels, labels)
        >>> evidence = ms.measure_group_gap(predicted, labels=labels, groups={"site": site}, max_gap=0.05)
        >>> evidence.verdict.name, round(evidence.value, 3)
        ('FAIL', 0.2)
    """
    if callable(metric):
        raise UsageError("metric is a callable, which has no interval of a difference of groups: give a metric's name")
    read_as = metric_named(metric)
    started = time.perf_counter()
    data, labels = labeled_rows(inputs, labels)
    budgets = ("max_gap", max_gap), ("max_gap", None)
    with open_models(predictor, inputs=data, ready=True) as (batch, (model,)):
        evaluation = Evaluation.of(
            metric,
            batch,
            labels,
            score_budget=budgets[0 if read_as.higher_is_better else 1],
            error_budget=budgets[1 if read_as.higher_is_better else 0],
            rates=ErrorRates(confidence, alpha),
            output=output,
            sampling=sampling,
            slices=None,
            data=data,
        )
        rows = evaluation.read(model)
    if (invalid := evaluation.invalid_evidence(rows, model.subject)) is not None:
        return replace(invalid, gate="group gap")
    estimate = evaluation.estimate(rows)
    kept, left_out = _groups(groups, data, evaluation.n, min_rows)
    is_series = evaluation.units.block is not None or (evaluation.units.are_rows and read_as.of_targets)
    gaps = {name: _Gap.of(parts, estimate, evaluation.units, is_series=is_series) for name, parts in kept.items()}
    budget, rates = Budget.of("max_gap", max_gap), evaluation.rates
    unit: Unit = "proportion_difference" if read_as.unit == "proportion" else read_as.unit

    def at(name: str) -> Callable[[float], Quantity]:
        shown = name if len(gaps) > 1 else ""
        return lambda error: gaps[name].quantity(shown, budget, replace(rates, alpha=error), unit)

    quantities = holm_step_down({name: at(name) for name in gaps}, alpha=rates.alpha)
    order = sorted(gaps, key=lambda name: (_verdict(quantities[name]).severity, gaps[name].value), reverse=True)
    worst, headline = gaps[order[0]], quantities[order[0]]
    summary, advice, finding = worst.verdict_text(_verdict(headline), max_gap, rates, read_as.title)
    findings = [finding] if finding else []
    if left_out:
        shown = ", ".join(f"{part.label} ({part.n} rows)" for part in left_out[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        findings.append(f"left out, fewer than min_rows={min_rows}: {shown}{more}")
    low, high = worst.ends
    return Evidence(
        gate="group gap",
        subject=model.subject,
        quantities=(
            headline,
            Quantity(f"lowest {low.label}", worst.values[low.label], read_as.unit),
            Quantity(f"highest {high.label}", worst.values[high.label], read_as.unit),
            *(quantities[name] for name in order[1:]),
        ),
        n=sum(part.n for part in worst.parts),
        n_unit="rows",
        method=_method(estimate, rates.levels(budget)),
        summary=summary,
        confidence=rates.confidence,
        alpha=rates.alpha,
        findings=tuple(findings),
        advice=advice,
        details={"groups": [row for name in order for row in gaps[name].details()][:_GROUPS_LISTED]},
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, eq=False)
class _Gap:
    """The metric in the groups of one column: `parts` with their `estimates` and `values` by label."""

    parts: tuple[Part, ...]
    estimates: Mapping[str, Estimate]
    values: Mapping[str, float]
    units: SamplingUnits
    is_series: bool
    cache: dict[str, Linearized] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: tuple[Part, ...], estimate: Estimate, units: SamplingUnits, *, is_series: bool) -> _Gap:
        """Return the gap of the groups; InputError for one in which the metric has no value."""
        estimates, values = {}, {}
        for part in parts:
            estimates[part.label] = estimate.over(part.rows)
            try:
                values[part.label] = estimates[part.label].value
            except UsageError as error:
                raise InputError(
                    f"group {part.label} ({part.n} rows) cannot be compared: {error}: merge it with another, or leave "
                    "it out with min_rows="
                ) from None
        return cls(parts, estimates, values, units, is_series)

    @property
    def ends(self) -> tuple[Part, Part]:
        """The groups with the lowest and the highest value."""
        ranked = sorted(self.parts, key=lambda part: self.values[part.label])
        return ranked[0], ranked[-1]

    @property
    def value(self) -> float:
        """The largest difference."""
        low, high = self.ends
        return self.values[high.label] - self.values[low.label]

    def quantity(self, name: str, budget: Budget, rates: ErrorRates, unit: Unit) -> Quantity:
        """Return the gap with the interval of the largest true difference."""
        pairs = len(self.parts) * (len(self.parts) - 1)
        found = [
            self._bounds(one, other, Levels(low_level=1 - rates.alpha / pairs, high_level=rates.confidence))
            for one, other in permutations(self.parts, 2)
        ]
        low = max(0.0, *(bounds.low for bounds in found))
        high = max(self.value, *(bounds.high for bounds in found))
        interval = Interval(min(low, self.value), high, 1 - rates.alpha, rates.confidence)
        return Quantity(f"gap {name}".strip(), self.value, unit, interval, budget)

    def _bounds(self, one: Part, other: Part, levels: Levels) -> Bounds:
        first, second = self.estimates[one.label], self.estimates[other.label]
        if isinstance(first, Proportion) and isinstance(second, Proportion):
            return proportion_difference_bounds(*first.counts, *second.counts, **levels)
        contrast = Contrast(
            self._linearized(one), self._linearized(other), one.rows | other.rows, self.units, is_series=self.is_series
        )
        return contrast.bounds(levels)

    def _linearized(self, part: Part) -> Linearized:
        if part.label not in self.cache:
            self.cache[part.label] = self.estimates[part.label].linearized()
        return self.cache[part.label]

    def _least_certain(self, limit: float, rates: ErrorRates) -> tuple[Part, Part, int | None]:
        """Return the pair that leaves the verdict open, the smaller group first, and about the rows of it that decide.

        The reach of the interval falls with the root of the rows, as far as these are those of the smaller group.
        """
        pairs = list(permutations(self.parts, 2))
        levels = Levels(low_level=1 - rates.alpha / len(pairs), high_level=rates.confidence)
        found = [(self._bounds(one, other, levels), one, other) for one, other in pairs]
        above = self.value > limit
        bounds, one, other = max(found, key=lambda pair: pair[0].estimate if above else pair[0].high)
        small, large = sorted((one, other), key=lambda part: part.n)
        reach = bounds.estimate - bounds.low if above else bounds.high - bounds.estimate
        spare = abs(limit - bounds.estimate)
        ratio = reach / spare if spare > 0 else math.inf
        return small, large, math.ceil(small.n * ratio**2) if ratio < _MOST_TIMES else None

    def verdict_text(self, verdict: Verdict, limit: float, rates: ErrorRates, title: str) -> tuple[str, str, str]:
        """Return the summary, the advice and a finding."""
        low, high = self.ends
        if verdict is Verdict.PASS:
            return f"{title} of all groups is as close as required", "", ""
        if verdict is Verdict.FAIL:
            return (
                f"{title} of {low.label} and {high.label} is farther apart than allowed",
                "look at the rows of the group that is worse, and at how many of its rows the model was trained on",
                "",
            )
        small, large, rows = self._least_certain(limit, rates)
        return (
            f"not enough rows to decide whether {title} of two groups differs by more than max_gap",
            f"label {f'about {rows:,}' if rows else 'more'} rows of {small.label}, or merge it with another group",
            f"the difference of {small.label} ({small.n} rows) and {large.label} ({large.n}) is undecided",
        )

    def details(self) -> list[dict[str, Any]]:
        """Return the rows and the value of each group, the largest first."""
        ranked = sorted(self.parts, key=lambda part: -part.n)
        return [{"group": part.label, "rows": part.n, "value": self.values[part.label]} for part in ranked]


def _method(estimate: Estimate, levels: Levels) -> Method:
    if not isinstance(estimate, Proportion):
        found = estimate.method(levels)
        return replace(found, name=f"{found.name}, pairs of groups")
    return Method(
        "exact bounds of pairs of groups",
        "Clopper & Pearson 1934, Biometrika 26, of each group, combined by Newcombe 1998, Statistics in Medicine "
        "17:873-890, method 10; the low end with Bonferroni's correction for pairs",
        estimate.assumption,
    )


def _groups(
    groups: Mapping[str, Column] | Column, data: Any, n: int, min_rows: int
) -> tuple[dict[str, tuple[Part, ...]], list[Part]]:
    """Return the groups of each column by its name, and those with fewer rows; InputError for fewer than two."""
    if isinstance(min_rows, bool) or not isinstance(min_rows, int) or min_rows < 1:
        raise UsageError(f"min_rows must be an integer of at least 1, got {min_rows!r}")
    columns = groups if isinstance(groups, Mapping) else {"group": groups}
    if not columns:
        raise UsageError("groups must not be empty: give one group a row, or names to such columns")
    kept, left_out = {}, []
    for name, column in columns.items():
        values = np.asarray(column(data) if callable(column) else column)
        parts = Slices({name: values}).parts(data, n)
        kept[name] = tuple(part for part in parts if part.n >= min_rows)
        left_out += [part for part in parts if part.n < min_rows]
        if len(kept[name]) < 2:
            sizes = ", ".join(f"{part.label} ({part.n} rows)" for part in parts[:5])
            raise InputError(f"groups {name!r} needs two groups of at least min_rows={min_rows} rows; got {sizes}")
    return kept, left_out


def _verdict(quantity: Quantity) -> Verdict:
    assert quantity.verdict is not None
    return quantity.verdict
