"""Lost rows: the proportion of rows that a reference predicts correctly and a candidate does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Evidence, Quantity, Verdict
from pytest_modelserve.parity.accuracy.estimates import (
    ROWS_LISTED,
    ErrorRates,
    Estimate,
    Levels,
    Mask,
    Plan,
    Proportion,
)
from pytest_modelserve.parity.accuracy.evaluation import Evaluation
from pytest_modelserve.parity.accuracy.metrics import Accuracy, Rows, metric_named
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import SamplingUnits, proportion_rows_needed

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Unit
    from pytest_modelserve.metrics import Column, Output, Slices
    from pytest_modelserve.serving import Servable
    from pytest_modelserve.stats import Sampling


def measure_lost_rows(
    candidate: Servable,
    reference: Servable,
    inputs: Any = None,
    labels: Any = None,
    *,
    max_lost: float,
    metric: str = "accuracy",
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    slices: Slices | Mapping[str, Column] | None = None,
) -> Evidence:
    """Measure the proportion of rows that the reference has right and the candidate wrong, against a budget.

    Accuracy parity balances lost rows with gained ones: two models of equal accuracy may fail on different rows. Users
    notice the rows that were right before. The proportion is of all rows, and has exact binomial bounds
    (Clopper-Pearson). With groups, blocks or weights it takes those of the delta method, as `measure_accuracy` does.

    Args:
        candidate: The model to test, or its ready outputs: whatever `ms.serve` takes.
        reference: The model that it replaces, or its ready outputs.
        inputs: As in `measure_accuracy`; given to both models.
        labels: As in `measure_accuracy`.
        max_lost: Largest proportion of lost rows that passes: 0.01 is one row in a hundred.
        metric: What makes a row right: "accuracy" (the label is predicted), or "top_5_accuracy" (any k).
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices(..., max_lost=)` tests each slice.

    Returns:
        The evidence; it names lost and gained rows. A row with NaN outputs of the candidate counts as wrong.

    Raises:
        UsageError: For another metric, a budget outside (0, 1), and arguments that do not apply.
        InputError: As `measure_accuracy`, and for NaN outputs of the reference.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> labels = np.arange(2000) % 2
        >>> new, old = labels.copy(), labels.copy()
        >>> new[:100] = 1 - new[:100]  # the candidate is wrong in other rows
        >>> old[100:200] = 1 - old[100:200]
        >>> ms.measure_accuracy_parity(new, old, labels=labels, max_drop=0.02).verdict.name
        'PASS'
        >>> ms.measure_lost_rows(new, old, labels=labels, max_lost=0.02).verdict.name
        'FAIL'
    """
    read_as = metric_named(metric)
    if not isinstance(read_as, Accuracy):
        raise UsageError(f"metric={metric!r} has no right and wrong rows: give 'accuracy' or 'top_5_accuracy' (any k)")
    if not 0 < max_lost < 1:
        raise UsageError(f"max_lost must be above 0 and below 1, got {max_lost}")
    data, labels = labeled_rows(inputs, labels)
    with open_models(candidate, reference, inputs=data, ready=True) as (batch, (new, old)):
        evaluation = Evaluation.of(
            metric,
            batch,
            labels,
            score_budget=("max_lost", max_lost),
            error_budget=("max_lost", None),
            rates=ErrorRates(confidence, alpha),
            output=output,
            sampling=sampling,
            slices=slices,
            data=data,
        )
        before = evaluation.read(old, is_reference=True)
        after = evaluation.read(new)
    lost, gained = before.data & ~after.data, after.data & ~before.data
    evaluation = replace(evaluation, metric=_LostRows())
    rows: Rows[Mask] = replace(after, data=lost)
    evidence = evaluation.evidence(evaluation.estimate(rows), rows, new.subject, old.subject)
    levels = (
        Quantity(f"{name} {read_as.title}", float(np.average(right, weights=evaluation.units.weights)), "proportion")
        for name, right in (("reference", before.data), ("candidate", after.data))
    )
    is_whole = evidence.decisive is evidence.quantities[0]
    summary, advice = evidence.summary, evidence.advice
    if is_whole and evidence.verdict is Verdict.FAIL:
        summary = "more rows are lost than allowed"
        advice = "look at the lost rows: users notice what was right before"
    elif is_whole and evidence.verdict is Verdict.INCONCLUSIVE:
        summary = "not enough rows to decide whether more are lost than max_lost"
    return replace(
        evidence,
        quantities=(evidence.quantities[0], *levels, *evidence.quantities[1:]),
        findings=(f"{lost.sum()} rows lost, {gained.sum()} gained", *evidence.findings),
        summary=summary,
        advice=advice,
        details={
            **evidence.details,
            "lost_rows": np.flatnonzero(lost)[:ROWS_LISTED].tolist(),
            "gained_rows": np.flatnonzero(gained)[:ROWS_LISTED].tolist(),
        },
    )


class _LostRows(Accuracy):
    """The proportion of lost rows, as the error of a model."""

    title = "lost rows"
    unit: Unit = "proportion"
    higher_is_better = False

    def level(self, rows: Rows[Mask], units: SamplingUnits) -> Estimate:
        if not units.is_plain:
            return super().level(rows, units)
        return _LostProportion(rows.data, np.ones(units.n, dtype=np.bool_), self.assumption)


class _LostProportion(Proportion):
    """A proportion with an upper limit, whose rows are listed by the gate."""

    def plan(self, limit: float, rates: ErrorRates) -> Plan:
        kept = 1 - self.value
        return Plan(proportion_rows_needed(kept, 1 - limit, confidence=rates.confidence, alpha=rates.alpha))

    def details(self, levels: Levels) -> dict[str, Any]:
        return {}
