"""The gate on the results of a model: valid outputs that are distributed as those of a profile."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    worst_verdict,
)
from pytest_modelserve.metrics import Output
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn
from pytest_modelserve.monitoring.decision import CONFIDENCE, in_blocks
from pytest_modelserve.monitoring.drift import measure_drift
from pytest_modelserve.monitoring.drift.column_tests import compare_categories
from pytest_modelserve.monitoring.drift.effective_rows import EffectiveRows
from pytest_modelserve.monitoring.formats import format_rate_change
from pytest_modelserve.monitoring.profile import ReferenceProfile, as_profile
from pytest_modelserve.monitoring.quality import measure_data_quality
from pytest_modelserve.monitoring.results.output_columns import Columns, kind_of, read_output, threshold_of
from pytest_modelserve.monitoring.window import read_window
from pytest_modelserve.serving.serve import Servable
from pytest_modelserve.stats.proportions import rate_increase_bound

_ALPHA_RATES, _ALPHA_ALERTS = 0.2, 0.2
"""The parts of alpha for rates of faulty outputs, and for the rate of alerts; distances have the rest."""
_MAX_CLASSES = 20


def measure_results(
    outputs: Servable | ReferenceProfile,
    profile: ReferenceProfile | str | os.PathLike[str],
    *,
    max_distance: float,
    max_alert_change: float | None = None,
    max_rate: float | None = None,
    inputs: Any = None,
    output: Output | str | None = None,
    alpha: float = 0.01,
    block: int | None = None,
    name: str | None = None,
) -> Evidence:
    """Measure whether the outputs of a model are valid and distributed as in a profile of earlier outputs; no labels.

    The profile is `reference_profile(output_columns(outputs))`. Three things are compared. Every output must be finite
    and, of probabilities, from 0 to 1 with a sum of 1: one invalid row is FAIL. `max_distance` bounds the drift gate's
    distances of classes, confidence, entropy, probabilities and alerts. `max_alert_change` also bounds the change of
    the alert rate. `max_rate` bounds the rates of the data-quality gate: constant outputs, a repeated default, and
    outputs outside the profile's range.

    FAIL: an invalid row, another number of classes, a broken rule, or a difference that is significant and exceeds its
    budget. Unchanged outputs fail with probability at most `alpha`, of which distances have 60 %, or 80 % without
    `max_alert_change`. PASS: every upper bound is within its budget.

    Args:
        outputs: Ready outputs, or a model: whatever `ms.serve` takes; or a profile of outputs made with `like=`.
        profile: The profile of earlier outputs, or the path of its file.
        max_distance: The largest allowed distance, between 0 and 1: for classes the change of a class's proportion.
        max_alert_change: The largest allowed change of the rate of alerts. Needs a profile made with `alert_at=`.
        max_rate: The largest allowed increase of a rate of faulty outputs. Default: `max_distance`.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`, as in `output_columns`.
        alpha: The probability that unchanged outputs fail.
        block: The number of neighboring rows that may depend on each other, as in `measure_drift`.
        name: The name of the outputs in reports. Default: that of the model or file.

    Returns:
        The evidence. `details` holds the distances and rates, and the proportion of each class, before and now.

    Raises:
        InputError: Outputs of another kind, or a single row.
        UsageError: A profile that was not made of outputs, and a budget out of range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile(ms.output_columns(rng.beta(2, 5, 10_000), alert_at=0.5))
        >>> ms.measure_results(rng.beta(3, 4, 2_000), profile, max_distance=0.1).verdict.name
        'FAIL'
    """
    started = time.perf_counter()
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    profile = as_profile(profile, outputs)
    kind, threshold = kind_of(profile), threshold_of(profile)
    for budget, value in (("max_rate", max_rate), ("max_alert_change", max_alert_change)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{budget} must lie between 0 and 1 (0.01, for example); got {value}")
    if max_alert_change is not None and threshold is None:
        raise UsageError("max_alert_change needs a profile with alerts: make it with output_columns(..., alert_at=)")
    data: Data
    found: Columns | None = None
    if isinstance(outputs, ReferenceProfile):
        kind_of(outputs)
        subject, data = Subject(name or outputs.name), outputs
    else:
        read = Output.of(output)
        subject, values = read_output(outputs, inputs, read, reads_labels=kind == "labels")
        found = Columns.of(values, read, kind=kind, alert_at=None if threshold is None else threshold[1])
        subject, data = subject if name is None else Subject(name), found.columns
    parts: dict[str, Evidence] = {}
    quantities: list[Quantity] = []
    alert = ""
    if found is None or not found.invalid.all():
        rates, alerts = _ALPHA_RATES, 0.0 if max_alert_change is None else _ALPHA_ALERTS
        parts["distance"] = measure_drift(
            data, profile, max_distance=max_distance, alpha=alpha * (1 - rates - alerts), block=block, name=str(subject)
        )
        parts["faulty outputs"] = measure_data_quality(
            data, profile, max_rate=max_rate or max_distance, alpha=alpha * rates, name=str(subject)
        )
        quantities = [*parts["distance"].quantities, *parts["faulty outputs"].quantities]
        if threshold is not None and max_alert_change is not None:
            change, alert = _alert_change(
                data, profile, threshold[0], limit=max_alert_change, alpha=alpha * alerts, block=block
            )
            quantities.insert(1, change)
    invalid = 0 if found is None else int(found.invalid.sum())
    checked = Quantity("invalid rows", invalid, "count", budget=Budget("at_most", 0))
    quantities.insert(0 if invalid else len(quantities), checked)
    verdict = worst_verdict(quantities)
    beyond = [quantity.name for quantity in quantities if quantity.verdict is verdict]
    ranked = sorted(parts.values(), key=lambda part: part.verdict is not verdict)
    findings = [found.describe_invalid()] if found is not None and invalid else []
    findings += [alert] * bool(alert) + [finding for part in ranked for finding in part.findings]
    return Evidence(
        gate="results",
        subject=subject,
        reference=Subject(profile.name, sha256=profile.digest),
        quantities=tuple(quantities),
        n=invalid + (data.rows if isinstance(data, ReferenceProfile) else max(map(len, data.values()), default=0)),
        n_unit="rows",
        method=_method(parts.values()),
        summary=_SUMMARIES[verdict] + ("" if verdict is Verdict.PASS else f": {', '.join(beyond)}"),
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=tuple(dict.fromkeys(findings)),
        advice=_advice(verdict, invalid, ranked[0].advice if ranked else ""),
        details={
            "class_shares": _class_shares(data, profile),
            "means": _means(data, profile),
            **{name.replace(" ", "_"): dict(part.details) for name, part in parts.items()},
        },
        duration_s=time.perf_counter() - started,
    )


Data = Mapping[str, NDArray[Any]] | ReferenceProfile
_SUMMARIES = {
    Verdict.PASS: "every output is valid, and outputs differ from the profile's by no more than the budgets",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether outputs are beyond a budget",
    Verdict.FAIL: "outputs are invalid, or differ from the profile's by more than a budget",
}


def _alert_change(
    data: Data, profile: ReferenceProfile, name: str, *, limit: float, alpha: float, block: int | None
) -> tuple[Quantity, str]:
    """Return the change of the rate of alerts, and the sentence on it."""
    alone = ReferenceProfile(profile.name, (profile.column(name),), profile.block)
    if isinstance(data, ReferenceProfile):
        data = ReferenceProfile(data.name, (data.column(name),), data.block)
    compared = read_window(data if isinstance(data, ReferenceProfile) else {name: data[name]}, alone)
    window, _ = compared.comparable(alone)
    ((column, reference),) = window.pairs
    assert isinstance(reference, NumericColumn)
    blocks = EffectiveRows.of(window, alone, block=block).blocks(name)
    n, before_n = column.rows, reference.known
    now, before = round(column.mean() * n), round(reference.mean * before_n)
    test = compare_categories(name, [before_n - before, before], [n - now, now], blocks=blocks)
    sides = (now, n, blocks.current), (before, before_n, blocks.reference)
    upper = max(
        rate_increase_bound(*in_blocks(*one, up=True), *in_blocks(*other, up=False), level=CONFIDENCE)
        for one, other in (sides, sides[::-1])
    )
    low = test.distance if test.p_value <= alpha else 0.0
    interval = Interval(low, max(upper, test.distance), 1 - alpha, CONFIDENCE)
    budget = Budget.of("max_alert_change", limit)
    change = Quantity("alert rate change", test.distance, "proportion_difference", interval, budget)
    return change, f"{name!r}: {format_rate_change(before / before_n, now / n)}"


def _method(parts: Collection[Evidence]) -> Method:
    if not parts:
        return Method("every row checked")
    names, sources, assumptions = zip(
        *((part.method.name, part.method.source, part.method.assumptions) for part in parts), strict=True
    )
    return Method(
        "tests of no change within one alpha",
        "; ".join((*sources, "rate of alerts: Fisher 1935, Newcombe 1998")),
        "; ".join((*names, *assumptions)),
    )


def _advice(verdict: Verdict, invalid: int, of_worst: str) -> str:
    if invalid:
        return (
            "trace the first such row through the model node by node; for logits give output=ms.Output(scores='logits')"
        )
    if verdict is Verdict.FAIL:
        return (
            "compare the inputs with their own profile (assert_no_drift): if these are unchanged, the model or its "
            "runtime changed; otherwise label some rows (assert_audited_accuracy)"
        )
    return of_worst


def _class_shares(data: Data, profile: ReferenceProfile) -> dict[str, list[float]]:
    """Return the proportion of each class in the profile and now, the most frequent ones first."""
    if "class" not in profile.names:
        return {}
    shares = [_shares(profile.column("class")), _current_shares(data)]
    names = sorted({*shares[0], *shares[1]}, key=lambda name: -max(share.get(name, 0) for share in shares))
    return {name: [round(share.get(name, 0.0), 5) for share in shares] for name in names[:_MAX_CLASSES]}


def _shares(column: object) -> dict[str, float]:
    if not isinstance(column, CategoricalColumn) or column.hashed:
        return {}
    return {name: count / column.known for name, count in zip(column.labels, column.counts, strict=True)}


def _current_shares(data: Data) -> dict[str, float]:
    if isinstance(data, ReferenceProfile):
        return _shares(data.column("class"))
    if "class" not in data:
        return {}
    names, counts = np.unique(data["class"], return_counts=True)
    return {str(name): int(count) / len(data["class"]) for name, count in zip(names, counts, strict=True)}


def _means(data: Data, profile: ReferenceProfile) -> dict[str, list[float]]:
    """Return the mean of each number in the profile and now."""
    found = {}
    for column in profile.columns:
        if not isinstance(column, NumericColumn) or "[" in column.name:
            continue
        if isinstance(data, ReferenceProfile):
            current = data.column(column.name)
            now = current.mean if isinstance(current, NumericColumn) else float("nan")
        elif column.name in data:
            now = float(np.mean(data[column.name]))
        else:
            continue
        found[column.name] = [float(f"{column.mean:.6g}"), float(f"{now:.6g}")]
    return found
