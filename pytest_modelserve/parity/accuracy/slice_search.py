"""Slice search: regions in which a candidate loses, found on one half of the rows and tested on the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import bdtrc

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Interval, Subject, Unit
from pytest_modelserve.evidence.failure_text import format_in_words, format_interval, printable
from pytest_modelserve.metrics import Output, Slices
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.parity.accuracy.conditions import feature_columns, where
from pytest_modelserve.parity.accuracy.estimates import Contrast, ErrorRates, Estimate, Levels, Mask, PairedProportions
from pytest_modelserve.parity.accuracy.evaluation import Evaluation, check_options
from pytest_modelserve.parity.accuracy.metrics import Metric, metric_named
from pytest_modelserve.parity.accuracy.regions import RegionScan
from pytest_modelserve.serving.inputs import count_rows
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Bounds, Sampling, SamplingUnits, holm
from pytest_modelserve.stats.intervals import check_count

if TYPE_CHECKING:
    from pytest_modelserve.serving import Servable

_STEPS = 24
"""Bisections of a p-value, between 1e-9 and 0.5 on a logarithmic scale: accurate to one part in a million."""


def find_slices(
    candidate: Servable,
    reference: Servable,
    inputs: Any = None,
    labels: Any = None,
    *,
    features: Any = None,
    metric: str = "accuracy",
    min_change: float = 0.0,
    depth: int = 2,
    min_rows: int = 50,
    shortlist: int = 5,
    alpha: float = 0.05,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> SliceSearch:
    """Search for regions of the inputs in which a candidate loses, and test them on rows that were not searched.

    A region is a few readable conditions, such as `age > 61 and region == "north"`. One half of the rows (of the
    groups, if there are any) is searched and shortlists regions; the other half tests them. A region is found if the
    candidate is worse than its reference there by more than `min_change`, and loses more there than elsewhere. If it
    is worse nowhere, any region is found with probability `alpha` at most.

    Rows that repeat across both halves would confirm what the search made up: give their ids as
    `sampling=ms.Sampling(groups=ids)`.

    Args:
        candidate: The model to test, or its ready outputs: whatever `ms.serve` takes.
        reference: The model that it replaces, or its ready outputs.
        inputs: As in `measure_accuracy_parity`. Columns of a frame, columns (n,) of a mapping, and columns of arrays
            (n, d) are features; other arrays are not.
        labels: As in `measure_accuracy_parity`.
        features: More columns to search, which the models do not read: a frame, a mapping of columns, or an array.
        metric: The name of a metric of `measure_accuracy_parity`.
        min_change: How much the metric must be worse in a region: 0.01 is one percentage point.
        depth: Largest number of conditions of a region, 1 to 3.
        min_rows: Fewest rows of a region in the half that is searched.
        shortlist: Number of regions that are tested. More of them cost power.
        alpha: Probability that any region is found if the candidate loses nowhere.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: The seed of the division into halves.

    Returns:
        The search. `print` shows a table; `slices` goes into `slices=` of a gate: `ms.Slices(search.slices, ...)`.

    Raises:
        UsageError: For arguments out of range, a callable as metric, and data without features.
        InputError: For data that do not fit, as `measure_accuracy_parity`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> people = {"age": rng.integers(18, 90, 4000), "region": rng.choice(["north", "south"], 4000)}
        >>> labels = rng.integers(0, 2, 4000)
        >>> old_north = (people["age"] > 61) & (people["region"] == "north")
        >>> new = np.where(old_north & (rng.random(4000) < 0.3), 1 - labels, labels)
        >>> search = ms.find_slices(new, labels, labels=labels, features=people)
        >>> list(search.slices)
        ['age > 61 and region == "north"']
    """
    read_as = _checked_metric(metric, depth, min_rows, shortlist)
    check_count("seed", seed)
    if not 0 <= min_change < (1 if read_as.unit == "proportion" else math.inf):
        below = " and below 1" if read_as.unit == "proportion" else " and finite"
        raise UsageError(f"min_change must be at least 0{below}, got {min_change}")
    rates = ErrorRates(0.95, alpha)
    data, labels = labeled_rows(inputs, labels)
    read, sampling = Output.of(output), Sampling.of(sampling)
    check_options(metric, read_as, read, sampling)
    of_inputs = {} if data is None else _columns(data)
    of_features = {} if features is None else _columns(features)
    columns = _joined(of_inputs, of_features)
    with open_models(candidate, reference, inputs=data, ready=True) as (batch, (new, old)):
        n = count_rows(batch)
        for column in columns.values():
            if len(column.values) != n:
                raise InputError(f"feature {column.name!r} has {len(column.values)} values for {n} rows")
        units = sampling.units(n)
        evaluation = Evaluation(read_as, "max_drop", min_change, rates, batch, labels, n, read, units, Slices({}), ())
        before, after = evaluation.read(old, is_reference=True), evaluation.read(new)
    if after.finding and not read_as.nan_is_wrong:
        raise InputError(f"{after.finding}: there is no metric of these rows")
    estimate = evaluation.estimate(after, before)
    searched = _random_half(units, seed)
    scan = RegionScan.of(estimate.over(searched), searched, columns, min_rows=min_rows, min_change=min_change)
    conditions = []
    for text in scan.best_regions(depth, shortlist):
        condition = where(text)
        conditions.append(condition if of_features.keys().isdisjoint(condition.names) else where(text, features))
    is_series = units.block is not None or (units.are_rows and read_as.of_targets)
    test = _Test(estimate, ~searched, units, is_series=is_series)
    return SliceSearch(
        metric=read_as.title,
        unit="proportion_difference" if read_as.unit == "proportion" else read_as.unit,
        is_score=read_as.higher_is_better,
        regions=test.regions([(each, each.rows(columns)) for each in conditions], min_change, alpha),
        change=test.whole.value,
        min_change=min_change,
        alpha=alpha,
        n_searched=int(searched.sum()),
        n_tested=int((~searched).sum()),
        n_regions=scan.tried,
        notes=scan.notes,
        candidate=new.subject,
        reference=old.subject,
    )


@dataclass(frozen=True, slots=True)
class Region:
    """A region of the shortlist, on the rows that were not searched.

    `n` is their number, `change` how much worse the candidate is than its reference, `interval` its simultaneous
    interval, and `p_value` is adjusted by Holm's method. `is_found` says that it is at most the error rate.
    """

    condition: where
    n: int
    change: float
    interval: Interval
    p_value: float
    is_found: bool


@dataclass(frozen=True, slots=True)
class SliceSearch:
    """The result of `find_slices`: the `regions` of the shortlist, the found ones first.

    `change` is the change of the metric over all `n_tested` rows of the half that is tested.
    """

    metric: str
    unit: Unit
    is_score: bool
    regions: tuple[Region, ...]
    change: float
    min_change: float
    alpha: float
    n_searched: int
    n_tested: int
    n_regions: int
    notes: tuple[str, ...]
    candidate: Subject
    reference: Subject

    @property
    def found(self) -> tuple[Region, ...]:
        """The regions in which the candidate loses."""
        return tuple(region for region in self.regions if region.is_found)

    @property
    def slices(self) -> dict[str, where]:
        """The found regions as columns of `slices=`."""
        return {region.condition.condition: region.condition for region in self.found}

    def __str__(self) -> str:
        """Return a table of the shortlist, and the code of the found slices."""
        found, name = self.found, "drop" if self.is_score else "rise"
        if not self.regions:
            summary = "no region of the rows searched loses more than the others"
        else:
            summary = f"{len(found)} of {len(self.regions)} shortlisted regions lose {self.metric}"
        lines = [
            f"slices of {printable(str(self.candidate))} vs {printable(str(self.reference))}: {summary}",
            f"  searched {self.n_regions:,} regions on {self.n_searched:,} rows, tested on {self.n_tested:,} others; "
            f"any is found by chance with probability {self.alpha:g} at most",
            "",
            f"  {'verdict':<9} {name:>12}  {'interval':<18} {'rows':>9}  {'p':>8}  region",
        ]
        for region in self.regions:
            figure, interval = format_in_words(region.change, self.unit), format_interval(region.interval, self.unit)
            p_value = "< 0.0001" if region.p_value < 1e-4 else f"{region.p_value:.4f}"
            verdict = "found" if region.is_found else "not found"
            text = printable(region.condition.condition)
            lines.append(f"  {verdict:<9} {figure:>12}  {interval:<18} {region.n:>9,}  {p_value:>8}  {text}")
        lines.append(
            f"  {'':<9} {format_in_words(self.change, self.unit):>12}  {'':<18} {self.n_tested:>9,}  {'':>8}  all rows"
        )
        lines += [f"  {note}" for note in self.notes]
        if found:
            lines += ["", "  slices={", *(f"    {text!r}: {column!r}," for text, column in self.slices.items()), "  }"]
        return "\n".join(lines)


def _checked_metric(metric: object, depth: int, min_rows: int, shortlist: int) -> Metric[Any]:
    if callable(metric):
        raise UsageError("metric is a callable, which has no value for each row: give the name of a metric")
    for name, value, high in (("depth", depth, 3), ("min_rows", min_rows, math.inf), ("shortlist", shortlist, 100)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            limits = f"from 1 to {high}" if high < math.inf else "of at least 1"
            raise UsageError(f"{name} must be an integer {limits}, got {value!r}")
    return metric_named(metric)


def _columns(source: Any) -> dict[str, Column]:
    """Return the columns that can be searched, by name."""
    found = feature_columns(source).items()
    return {name: column for name, column in found if column is not None and not column.error and column.kind}


def _joined(inputs: Mapping[str, Column], features: Mapping[str, Column]) -> dict[str, Column]:
    """Return all features; InputError for a name that both have, UsageError for none."""
    for name in sorted(inputs.keys() & features.keys()):
        raise InputError(f"features has a column {name!r}, as the inputs have: rename it")
    found = {name: column for name, column in {**inputs, **features}.items() if "`" not in name}
    if not found:
        raise UsageError(
            "there are no features to search: pass features={'site': site, ...}, or inputs with columns (a frame, a "
            "mapping of columns, or an array (n, d))"
        )
    return found


def _random_half(units: SamplingUnits, seed: int) -> Mask:
    """Return the rows (n,) of a random half of the sampling units; InputError for fewer than two."""
    if units.count < 2:
        raise InputError("one half is searched and the other tested: give at least two rows, groups or blocks")
    chosen = np.zeros(units.count, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(units.count)[: units.count // 2]] = True
    return chosen if units.ids is None else chosen[units.ids]


# The test of the shortlist, on the rows that were not searched.


class _Test:
    """A change of a metric on the rows `tested` (n,), and its tests of regions.

    A region has lost if its change exceeds both `min_change` and the change of the other rows, each significantly
    (intersection-union test, Berger 1982, Technometrics 24, 295–300). Rows of earlier regions are left out, so that
    shared rows count once. Holm's method corrects for the shortlist.
    """

    def __init__(self, estimate: Estimate, tested: Mask, units: SamplingUnits, *, is_series: bool) -> None:
        self.whole, self.tested, self.units, self.is_series = estimate.over(tested), tested, units, is_series

    def regions(self, shortlist: Sequence[tuple[where, Mask]], min_change: float, alpha: float) -> tuple[Region, ...]:
        """Return the result for each condition of the shortlist and its rows (n,), the most significant first."""
        remaining, p_values = self.tested, []
        for _, rows in shortlist:
            p_values.append(self._p_value(remaining & rows, remaining & ~rows, min_change))
            remaining = remaining & ~rows
        adjusted = holm(p_values)
        found, regions = int((adjusted <= alpha).sum()), []
        for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
            condition, rows = shortlist[index]
            part = self.whole.over(self.tested & rows)
            bounds = _bounds_at(part, 1 - alpha / (len(shortlist) - min(place, found)))  # the level of its turn
            regions.append(
                Region(
                    condition=condition,
                    n=part.n,
                    change=bounds.estimate,
                    interval=Interval.of(bounds),
                    p_value=float(adjusted[index]),
                    is_found=bool(adjusted[index] <= alpha),
                )
            )
        return tuple(regions)

    def _p_value(self, rows: Mask, others: Mask, min_change: float) -> float:
        if not rows.any() or not others.any():
            return 1.0
        part = self.whole.over(rows)
        try:
            linearized = part.linearized(), self.whole.over(others).linearized()
            contrast = Contrast(*linearized, rows | others, self.units, is_series=self.is_series)
            return max(_change_p_value(part, min_change), _inverted(contrast.bounds, 0.0))
        except UsageError:  # no value over these rows: no test
            return 1.0


def _change_p_value(part: Estimate, min_change: float) -> float:
    """Return the p-value of a change of at most `min_change`: of paired proportions and 0 the exact sign test."""
    if isinstance(part, PairedProportions) and min_change == 0:
        lost, gained = part.lost.size, part.gained.size
        return float(bdtrc(lost - 1, lost + gained, 0.5)) if lost else 1.0
    return _inverted(part.bounds, min_change)


def _inverted(bounds: Callable[[Levels], Bounds], limit: float) -> float:
    """Return the smallest error rate, at least 1e-9, at which the low bound exceeds `limit`; 1 from 0.5 on."""
    low, high = math.log(1e-9), math.log(0.499)
    if not _exceeds(bounds, limit, high):
        return 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _exceeds(bounds, limit, middle) else (middle, high)
    return math.exp(high)


def _exceeds(bounds: Callable[[Levels], Bounds], limit: float, log_error: float) -> bool:
    level = 1 - math.exp(log_error)
    return bounds(Levels(low_level=level, high_level=level)).low > limit


def _bounds_at(part: Estimate, level: float) -> Bounds:
    try:
        return part.bounds(Levels(low_level=level, high_level=level))
    except UsageError:
        return Bounds(0.0, -math.inf, math.inf, level, level)
