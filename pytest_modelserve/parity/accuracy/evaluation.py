"""One evaluation of an accuracy gate: arguments checked, outputs read, the whole and its slices tested."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
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
    holm_step_down,
)
from pytest_modelserve.metrics import Column, Output, Part, Slices, slice_figures
from pytest_modelserve.parity.accuracy.custom_metric import CustomMetric
from pytest_modelserve.parity.accuracy.estimates import ErrorRates, Estimate, Plan
from pytest_modelserve.parity.accuracy.metrics import Metric, MetricChoice, Rows, metric_named
from pytest_modelserve.parity.row_parts import RowPart, over_parts
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.inputs import (
    Inputs,
    count_rows,
    describe_invalid_rows,
    invalid_reference,
    select_output,
)
from pytest_modelserve.stats import Sampling, SamplingUnits

MAX_SLICES = 30
"""Slices in the evidence, the worst: each takes some 300 of its 16,384 bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedFigure:
    """A figure that an accuracy gate compared with its budget: over all rows, or over those of a slice, (n,)."""

    estimate: Estimate
    budget: Budget
    rates: ErrorRates
    units: SamplingUnits
    slice_rows: NDArray[np.bool_] | None = None

    def over(self, rows: NDArray[np.bool_]) -> Estimate:
        """Return the figure over those of its rows that a mask (n,) selects."""
        return self.estimate.over(rows if self.slice_rows is None else rows & self.slice_rows)

    def passes(self, estimate: Estimate, level: float) -> bool:
        """Return whether a one-sided bound of `estimate` at `level` lies inside the budget."""
        bounds = estimate.bounds(replace(self.rates, confidence=level).levels(self.budget))
        return self.budget.allows(bounds.high if self.budget.kind == "at_most" else bounds.low)


_observed: ContextVar[list[JudgedFigure] | None] = ContextVar("_observed", default=None)


@contextmanager
def judged_figures() -> Iterator[list[JudgedFigure]]:
    """Yield a list of the figures that the accuracy gates judge inside the block, with the rows that they come from."""
    found: list[JudgedFigure] = []
    token = _observed.set(found)
    try:
        yield found
    finally:
        _observed.reset(token)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The arguments of one call of an accuracy gate, checked against its metric.

    `budget_name` is the parameter that gave the budget: min_value, max_value, max_drop or max_rise.
    """

    metric: Metric[Any]
    budget_name: str
    limit: float
    rates: ErrorRates
    inputs: Inputs
    labels: NDArray[Any]
    n: int
    output: Output
    units: SamplingUnits
    slices: Slices
    parts: tuple[Part, ...]
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(
        cls,
        choice: MetricChoice,
        inputs: Inputs,
        labels: NDArray[Any],
        *,
        score_budget: tuple[str, float | None],
        error_budget: tuple[str, float | None],
        rates: ErrorRates,
        output: Output | str | None,
        sampling: Sampling | None,
        slices: Slices | Mapping[str, Column] | None,
        data: object,
    ) -> Evaluation:
        """Return the evaluation; UsageError for arguments that do not fit the metric, InputError for invalid data.

        `data` are the inputs as the caller gave them, for the functions among the columns of the slices.
        """
        if callable(choice):
            is_score = score_budget[1] is not None
            limit = score_budget[1] if is_score else error_budget[1]
            metric: Metric[Any] = CustomMetric(choice, higher_is_better=is_score, limit=limit or 0.0)
        else:
            metric = metric_named(choice)
        name, limit = _chosen_budget(choice, metric, score_budget, error_budget)
        read, sampling, divided = Output.of(output), Sampling.of(sampling), Slices.of(slices)
        _check_budget(metric, name, limit, is_plain=sampling.groups is sampling.block is sampling.sample_weight is None)
        for slice_name, slice_limit in divided.budgets.items():
            if slice_name != name:
                raise UsageError(f"Slices: {slice_name}= does not go with {name}=: give Slices(..., {name}=)")
            if isinstance(metric, CustomMetric):
                raise UsageError(
                    f"Slices: {slice_name}= is not supported for a callable as metric=, because every slice would take "
                    "a bootstrap of its own: remove it"
                )
            _check_budget(metric, f"Slices: {name}", slice_limit, is_plain=False)
        check_options(choice, metric, read, sampling)
        n = count_rows(inputs)
        parts = divided.parts(data, n)
        return cls(metric, name, limit, rates, inputs, labels, n, read, sampling.units(n), divided, parts)

    @property
    def is_change(self) -> bool:
        """Whether two models are compared."""
        return self.budget_name in ("max_drop", "max_rise")

    @property
    def gate(self) -> str:
        """The gate's title in evidence."""
        return f"{self.metric.title} parity" if self.is_change else self.metric.title

    def read(self, predictor: Predictor, *, is_reference: bool = False) -> Rows[Any]:
        """Return what the metric reads of a model's outputs; InputError for a reference with invalid outputs."""
        name, rows = over_parts(
            (predictor,),
            self.inputs,
            lambda parts: self._read_parts(predictor, parts),
            is_one_call=self._needs_all_rows,
        )
        if not rows.invalid.size:
            return rows
        what = self.metric.invalid_values
        finding = describe_invalid_rows(predictor, name, self.n, rows.invalid, self.inputs, what=what)
        if is_reference:
            raise invalid_reference(finding)
        return replace(rows, finding=finding)

    @property
    def _needs_all_rows(self) -> bool:
        """Whether the metric, or a function that decodes labels, may compare outputs of several rows."""
        return not self.metric.reduces_rows or callable(self.output.decode)

    def _read_parts(self, predictor: Predictor, parts: Iterator[RowPart]) -> tuple[str, Rows[Any]]:
        """Return the name of the output that is read, and what the metric reads of all rows of it."""
        name, reduced = "", []
        for part in parts:
            name, outputs = self._select(predictor, part.outputs[0])
            if part.is_whole:
                return name, self.metric.read(outputs, self.labels, self.output)
            labels = self.labels[part.start : part.start + len(outputs)]
            reduced.append(self.metric.reduce(outputs, labels, self.output))
        joined = tuple(np.concatenate(arrays) for arrays in zip(*reduced, strict=True))
        return name, self.metric.read_reduced(joined, self.labels, self.output)

    def _select(self, predictor: Predictor, outputs: Mapping[str, NDArray[Any]]) -> tuple[str, NDArray[Any]]:
        reads_labels = None if isinstance(self.metric, CustomMetric) else "decode" in self.metric.options
        return select_output(predictor, outputs, self.output.name, reads_labels=reads_labels)

    def invalid_evidence(self, rows: Rows[Any], subject: Subject, reference: Subject | None = None) -> Evidence | None:
        """Return the FAIL of a model with invalid outputs, or None where it has none or they count as wrong."""
        if not rows.finding or self.metric.nan_is_wrong:
            return None
        return Evidence(
            gate=self.gate,
            subject=subject,
            reference=reference,
            quantities=(Quantity("invalid rows", rows.invalid.size, "count", budget=Budget("at_most", 0)),),
            n=self.n,
            n_unit="rows",
            method=Method("every row checked"),
            summary="some outputs are NaN or infinite",
            findings=(rows.finding,),
            advice="trace the first such row through the model node by node, and impute missing inputs",
            duration_s=time.perf_counter() - self.started,
        )

    def estimate(self, rows: Rows[Any], before: Rows[Any] | None = None) -> Estimate:
        """Return the metric of one model, or by how much it is worse than one read `before`."""
        if before is None:
            return self.metric.level(rows, self.units)
        return self.metric.change(before, rows, self.units)

    def evidence(
        self, estimate: Estimate, rows: Rows[Any], subject: Subject, reference: Subject | None = None
    ) -> Evidence:
        """Return the evidence on an estimate over all rows and over the slices; plan only where it is INCONCLUSIVE."""
        headline, slices = self._whole_and_slices(estimate)
        observed = _observed.get()
        if observed is not None:
            observed += self._judged(estimate)
        verdict = headline.verdict
        assert verdict is not None
        # Who observes many figures plans for the few that matter: a plan takes up to half a second.
        is_planned = verdict is Verdict.INCONCLUSIVE and observed is None
        plan = estimate.plan(self.limit, self.rates) if is_planned else None
        summary, advice = self._verdict_text(verdict, subject, estimate, plan)
        if slices and slices[0].verdict is not None and slices[0].verdict.severity > verdict.severity:
            summary, advice = _slice_text(slices[0])
        levels = self.rates.levels(self._budget(self.limit))
        hidden = len(slices) - MAX_SLICES
        changed = "; ".join(filter(None, (estimate.changed_rows, self._worst_slice(estimate))))
        findings = (
            f"{rows.finding}: counted as wrong" if rows.finding else "",
            *estimate.findings,
            changed,
            _equal_model(plan, estimate.n),
            f"{len(slices)} slices tested; the {hidden} best are not shown" if hidden > 0 else "",
        )
        planned: dict[str, Any] = {} if plan is None else {"rows_needed": plan.rows}
        if plan is not None and plan.equal_model_inconclusive is not None:
            planned["equal_model_inconclusive"] = plan.equal_model_inconclusive
        return Evidence(
            gate=self.gate,
            subject=subject,
            reference=reference,
            quantities=(headline, *estimate.context, *slices[:MAX_SLICES]),
            n=estimate.n,
            n_unit="rows",
            method=estimate.method(levels),
            summary=summary,
            confidence=self.rates.confidence,
            alpha=self.rates.alpha,
            findings=tuple(filter(None, findings)),
            advice=advice,
            details={**planned, **estimate.details(levels)},
            duration_s=time.perf_counter() - self.started,
        )

    def _whole_and_slices(self, estimate: Estimate) -> tuple[Quantity, tuple[Quantity, ...]]:
        """Return the whole and, where they have a budget, the slices, worst first.

        PASS of the gate needs PASS of every slice and no correction. FAIL takes Holm's, so that a model inside all of
        its budgets fails with probability alpha at most.
        """
        slice_limit = self.slices.budgets.get(self.budget_name)
        if slice_limit is None:
            return self._quantity(estimate, self.limit, self.rates), ()
        parts = {part.label: estimate.over(part.rows) for part in self.parts}
        self._check_sizes(parts, estimate, slice_limit)

        def at(label: str) -> Callable[[float], Quantity]:
            part, limit = (parts[label], slice_limit) if label else (estimate, self.limit)
            return lambda alpha: self._quantity(part, limit, replace(self.rates, alpha=alpha), label)

        found = holm_step_down({label: at(label) for label in ("", *parts)}, alpha=self.rates.alpha)
        headline = found.pop("")
        return headline, tuple(sorted(found.values(), key=_severity, reverse=True))

    def _judged(self, estimate: Estimate) -> Iterator[JudgedFigure]:
        yield JudgedFigure(estimate, self._budget(self.limit), self.rates, self.units)
        if (limit := self.slices.budgets.get(self.budget_name)) is not None:
            for part in self.parts:
                yield JudgedFigure(estimate, self._budget(limit), self.rates, self.units, part.rows)

    def _quantity(self, estimate: Estimate, limit: float, rates: ErrorRates, label: str = "") -> Quantity:
        budget = self._budget(limit)
        if label:
            budget = replace(budget, argument=f"Slices({budget.argument})")
        try:
            bounds = estimate.bounds(rates.levels(budget))
        except UsageError as error:
            if not label:
                raise
            raise InputError(f"slice {label} cannot be tested: {error}") from None
        name = self.budget_name.removeprefix("max_") if self.is_change else self.metric.title
        unit = "proportion_difference" if self.is_change and self.metric.unit == "proportion" else self.metric.unit
        return Quantity(f"{name} {label}".strip(), bounds.estimate, unit, Interval.of(bounds), budget)

    def _budget(self, limit: float) -> Budget:
        return Budget.of(self.budget_name, limit)

    def _check_sizes(self, parts: Mapping[str, Estimate], whole: Estimate, limit: float) -> None:
        assert self.slices.min_rows is not None
        small = sorted((part.n, label) for label, part in parts.items() if part.n < self.slices.min_rows)
        if not small:
            return
        n, label = next((part.n, label) for label, part in parts.items() if part.n == small[0][0])
        plan = whole.plan(limit, self.rates)
        more = ""
        if plan is not None and plan.rows is not None and plan.rows > n:
            more = f"; against {self.budget_name}={limit:g} about {plan.rows:,} rows of it are needed"
        others = f" ({len(small) - 1} more slices are too small)" if len(small) > 1 else ""
        raise InputError(
            f"slice {label} has {n} rows, fewer than min_rows={self.slices.min_rows}{more}: label more of it, merge it "
            f"with another, or leave it out{others}"
        )

    def _worst_slice(self, estimate: Estimate) -> str:
        figures = slice_figures(self.parts, lambda rows: estimate.over(rows).value)
        worst = (max if self.is_change or not self.metric.higher_is_better else min)(figures, default=None)
        if worst is None or (self.is_change and worst.value <= 0):
            return ""
        is_proportion = self.metric.unit == "proportion"
        if self.is_change:
            sign = "" if self.metric.higher_is_better else "+"
            figure = f"{100 * worst.value:.1f} points" if is_proportion else f"{sign}{worst.value:.3g}"
        else:
            n = next(estimate.over(part.rows).n for part in self.parts if part.label == worst.label)
            figure = f"{100 * worst.value:.1f} % of {n} rows" if is_proportion else f"{worst.value:.3g} over {n} rows"
        return f"worst slice {worst.label}: {figure}"

    @property
    def _question(self) -> str:
        """What INCONCLUSIVE leaves open."""
        title, is_score = self.metric.title, self.metric.higher_is_better
        if self.is_change:
            return f"the {'drop' if is_score else 'rise'} of {title} exceeds {self.budget_name}"
        return f"{title} {'reaches' if is_score else 'exceeds'} {self.budget_name}"

    def _verdict_text(
        self, verdict: Verdict, subject: Subject, estimate: Estimate, plan: Plan | None
    ) -> tuple[str, str]:
        """Return the summary and the advice of a verdict."""
        title, is_score = self.metric.title, self.metric.higher_is_better
        if verdict is Verdict.INCONCLUSIVE:
            looser = f"a {'smaller' if self.budget_name.startswith('min') else 'larger'} {self.budget_name}"
            if plan is None:
                advice = f"give more rows, or {looser}"
            elif plan.rows is None:
                advice = f"give a {self.budget_name} that differs from the measured value"
            else:
                decide = (
                    "a model equal to its reference passes"
                    if plan.rows == plan.equal_rows
                    else f"{'this change of ' if self.is_change else ''}{title} as measured here is decided"
                )
                advice = f"give about {plan.rows:,} labeled rows, with which {decide} 9 times in 10, or {looser}"
            return f"not enough rows to decide whether {self._question}", estimate.advice or advice
        if not self.is_change:
            if verdict is Verdict.PASS:
                return "at least as high as required" if is_score else "at most as high as allowed", ""
            advice = f"retrain, or look at the rows {'that are wrong' if is_score else 'with the largest errors'}"
            return "lower than required" if is_score else "higher than allowed", advice
        if verdict is Verdict.PASS:
            return f"{title} stays within its budget", ""
        who = subject.variant or "the candidate"
        look = "look at the lost rows" if is_score else "look at the rows where the error rose most"
        return (
            f"{who} loses more {title} than its budget" if is_score else f"{title} of {who} rises more than its budget",
            f"{look}, keep the layers at fault in full precision, or retrain",
        )


def _slice_text(worst: Quantity) -> tuple[str, str]:
    if worst.verdict is Verdict.FAIL:
        return f"a slice is outside its budget: {worst.name}", "look at the rows of this slice first"
    return (
        f"not enough rows to decide on a slice: {worst.name}",
        "label more rows of this slice, merge it with another, or leave it out",
    )


def _equal_model(plan: Plan | None, n: int) -> str:
    """Return what the verdict would have been for a model that is truly equal to its reference."""
    if plan is None or plan.equal_model_inconclusive is None or plan.equal_rows is None:
        return ""
    more = f"; with about {plan.equal_rows:,} rows it passes 9 times in 10" if plan.equal_rows > n else ""
    return (
        f"a model equal to its reference would be INCONCLUSIVE with these {n} rows in "
        f"{plan.equal_model_inconclusive:.0%} of samples{more}"
    )


def _severity(quantity: Quantity) -> tuple[int, float]:
    assert quantity.verdict is not None
    assert quantity.budget is not None
    beyond = quantity.value - quantity.budget.limit
    return quantity.verdict.severity, beyond if quantity.budget.kind == "at_most" else -beyond


def _chosen_budget(
    choice: MetricChoice, metric: Metric[Any], score: tuple[str, float | None], error: tuple[str, float | None]
) -> tuple[str, float]:
    """Return the name and limit of the budget that the metric takes; UsageError for none and for the other one."""
    what = f"metric={choice!r}" if isinstance(choice, str) else f"metric={metric.title}"
    if isinstance(metric, CustomMetric) and (score[1] is None) == (error[1] is None):
        raise UsageError(f"{what} needs one budget: {score[0]}= if higher is better, {error[0]}= if lower is")
    (name, limit), (other, misplaced) = (score, error) if metric.higher_is_better else (error, score)
    if misplaced is not None:
        kind = "a score" if metric.higher_is_better else "an error"
        raise UsageError(f"{what} is {kind}: give {name}= instead of {other}=")
    if limit is None:
        raise UsageError(f"{what} needs a budget: give {name}=")
    return name, limit


def _check_budget(metric: Metric[Any], name: str, limit: float, *, is_plain: bool) -> None:
    """Raise UsageError for a budget that every model, or none, keeps."""
    low, high = metric.limits
    units = " in the units of the target" if metric.of_targets and not metric.higher_is_better else ""
    if name.endswith(("max_drop", "max_rise")):
        span = high - low
        low, high = (0.0 if is_plain and metric.has_exact_change else -span), span
    if low < limit < high:
        return
    if math.isinf(low) and math.isinf(high):
        raise UsageError(f"{name} must be a finite number{units}, got {limit}")
    bounds = [f"above {low:g}"] if math.isfinite(low) else []
    bounds += [f"below {high:g}"] if math.isfinite(high) else ["finite"]
    proportion = f": write {limit} % as {limit / 100:g}" * (high == 1 < limit < 100)
    raise UsageError(f"{name} must be {' and '.join(bounds)}{units}, got {limit}{proportion}")


def check_options(choice: MetricChoice, metric: Metric[Any], output: Output, sampling: Sampling) -> None:
    """Raise UsageError for options that do not apply to the metric, and for one that it needs."""
    what = f"metric={choice!r}" if isinstance(choice, str) else "a callable as metric="
    given = {
        "decode": output.decode,
        "scores": output.scores,
        "pos_label": output.pos_label,
        "sample_weight": sampling.sample_weight,
    }
    for name, value in given.items():
        if value is not None and name not in metric.options:
            raise UsageError(f"{name} is not supported by {what}: remove it")
    if "scores" in metric.options and output.scores is None:
        raise UsageError(
            f"{what} reads probabilities: give output=ms.Output(scores='logits') or "
            "output=ms.Output(scores='probabilities')"
        )
