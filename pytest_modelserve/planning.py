"""Sample size: how many rows a gate needs, and which rows to label."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from pytest_modelserve import stats
from pytest_modelserve.errors import ModelServeWarning, UsageError, unknown_choice
from pytest_modelserve.metrics import Output
from pytest_modelserve.monitoring import ReferenceProfile, measure_drift
from pytest_modelserve.monitoring.profile import as_profile
from pytest_modelserve.monitoring.quality.gate import plan_rows
from pytest_modelserve.monitoring.results.audited_accuracy import Audit, ScoredPredictions
from pytest_modelserve.monitoring.results.output_columns import read_output
from pytest_modelserve.serving.serve import Servable
from pytest_modelserve.stats.intervals import check_count
from pytest_modelserve.stats.prediction_powered import score_strata, stratified_design

_PROPORTIONS = ("accuracy", "top_k_accuracy", "recall", "label_stability")
_TYPICAL_DISCORDANCE = 0.02
"""Networks on the digits data: 0.001 after int8, 0.011 after int4, 0.010 to 0.017 between two seeds of training
(`python benchmarks/typical_discordance.py`)."""
_MEAN_LOSSES = ("mae", "log_loss", "brier_score")


def rows_needed(
    metric: str,
    margin: float,
    *,
    difference: float = 0.0,
    discordance: float | None = None,
    value: float | None = None,
    positive_rate: float | None = None,
    correlation: float | None = None,
    pilot: ArrayLike | None = None,
    standard_deviation: float | None = None,
    paired: bool = True,
    confidence: float = 0.95,
    alpha: float = 0.001,
    power: float = 0.9,
) -> int:
    """Return about how many rows make an accuracy or label stability gate PASS with probability `power`.

    `paired=True` plans `assert_accuracy_parity`, `paired=False` plans `assert_accuracy`; "label_stability" plans
    `assert_label_stability`, which needs no labels and is never paired. For every other metric run the
    gate on a pilot: where it is INCONCLUSIVE, read `evidence.details["rows_needed"]`. For AUC the variance is that of
    Hanley and McNeil (1982), Radiology 143, 29–36, and (1983), 148, 839–843.

    Args:
        metric: "accuracy", "top_k_accuracy" (any k), "recall", "roc_auc", "mae", "log_loss", "brier_score" or
            "label_stability".
        margin: The gate's `max_drop` or `max_rise`. Unpaired, how far the true value lies inside the budget: 0.02 for a
            model of 92 % and `min_value=0.9`.
        difference: The true drop or rise; 0 for a model equal to its reference.
        discordance: Proportion of rows on which one of two models is right and the other wrong, for accuracy, top-k
            accuracy and recall (there of the positive rows), paired. Default: 0.02, or twice the difference, and a
            warning that says so.
        value: The metric's value. Needed by AUC and label stability, and unpaired by accuracy, top-k accuracy and
            recall.
        positive_rate: Proportion of positive rows. Needed by recall and AUC.
        correlation: Correlation of two AUCs, 0.9 or more for a quantized model. Needed by AUC, paired.
        pilot: One difference of losses a row, (n,); unpaired, one loss a row. Needed by losses.
        standard_deviation: Of those differences or losses, in place of `pilot`: takes them for symmetric.
        paired: Whether the candidate is compared with a reference.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        power: Probability of PASS.

    Returns:
        The number of rows, an approximation.

    Raises:
        UsageError: For an unknown metric, an argument that it lacks or does not take, a value out of range, and a
            difference that is not below the margin.

    Example:
        >>> rows_needed("accuracy", 0.01, discordance=0.02)
        1901
    """
    if metric == "label_stability":
        paired = False
    name = "top_k_accuracy" if metric.startswith("top_") and metric.endswith("_accuracy") else metric
    _check_arguments(
        f"metric={metric!r} with paired={paired}",
        _required(name, paired=paired),
        discordance=discordance,
        value=value,
        positive_rate=positive_rate,
        correlation=correlation,
        pilot=pilot,
        standard_deviation=standard_deviation,
    )
    if metric == "label_stability" and difference:
        raise UsageError("difference is not supported by metric='label_stability', where only the margin counts")
    if positive_rate is not None and not 0 < positive_rate < 1:
        raise UsageError(f"positive_rate must be above 0 and below 1, got {positive_rate}")
    if not margin > difference:
        raise UsageError(f"difference must be below margin={margin}, got {difference}: no number of rows would pass")
    if not paired and difference != 0:
        raise UsageError("difference is not supported with paired=False, where only the margin counts: remove it")
    if name == "roc_auc":
        assert value is not None
        assert positive_rate is not None
        return _rows_for_auc(
            margin - difference, value, positive_rate, correlation, quantiles=float(ndtri(confidence) + ndtri(power))
        )
    if name in _MEAN_LOSSES:
        needed = stats.values_needed(
            _symmetric_sample(standard_deviation) if pilot is None else pilot,
            truth=difference,
            limit=margin,
            confidence=confidence,
            alpha=alpha,
            power=power,
        )
        if needed is None:
            raise UsageError("pilot has one row and thus no variance: give two or more")
        return needed
    if paired:
        if discordance is None:
            discordance = max(_TYPICAL_DISCORDANCE, 2 * abs(difference))
            warnings.warn(
                f"discordance was not given: planned for {discordance:g}, as of a quantized or retrained model that "
                "differs little; measure it on a pilot, as the proportion of rows on which one model alone is right",
                ModelServeWarning,
                stacklevel=2,
            )
        counted: int | None = stats.rows_needed(
            discordance=discordance, margin=margin, difference=difference, confidence=confidence, power=power
        )
    else:
        assert value is not None
        counted = stats.proportion_rows_needed(value, value - margin, confidence=confidence, alpha=alpha, power=power)
    assert counted is not None  # the true value lies inside the budget
    return math.ceil(counted / (1.0 if positive_rate is None else positive_rate))


def rows_for_drift(
    profile: ReferenceProfile | str | os.PathLike[str],
    max_distance: float,
    *,
    alpha: float = 0.01,
    block: int | None = None,
) -> int:
    """Return about how many rows `assert_no_drift` needs: unchanged data of so many pass in 95 % of cases.

    Args:
        profile: The profile of the training data, or its path.
        max_distance: The budget of the gate.
        alpha: The gate's probability that unchanged data fail.
        block: The gate's number of neighboring rows that may depend on each other.

    Returns:
        The number of rows, about that of the advice of an INCONCLUSIVE gate.

    Raises:
        UsageError: The profile is too small for this budget; the message says how many rows it needs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> profile = ms.reference_profile({"age": np.random.default_rng(0).normal(40, 12, 10_000)})
        >>> rows_for_drift(profile, 0.1)
        798
    """
    profile = as_profile(profile, None)
    plan = measure_drift(profile, profile, max_distance=max_distance, alpha=alpha, block=block).details
    if max_distance < plan["floor"]:
        raise UsageError(
            f"max_distance must be at least {plan['floor']:.3g} for this profile, got {max_distance}: pairs and whole "
            "rows are compared on a limited number of rows; or profile without them"
        )
    if plan["sketch_rows"]:
        needed = plan["sketch_rows"]
        raise UsageError(f"profile has too few raw rows for max_distance={max_distance}: pass sketch_rows={needed:,}")
    if plan["rows"] is None:
        raise _too_small(profile, plan["profile_rows"], f"max_distance={max_distance}")
    return int(plan["rows"])


def rows_for_quality(
    profile: ReferenceProfile | str | os.PathLike[str],
    max_rate: float,
    *,
    alpha: float = 0.001,
    closed: Collection[str] = (),
) -> int:
    """Return about how many rows `assert_data_quality` needs: data like the profile's pass in 95 % of cases.

    Args:
        profile: The profile of the training data, or its path.
        max_rate: The budget of the gate.
        alpha: The gate's probability that data like the profile's fail by a rate.
        closed: The gate's columns whose categories are all in the profile.

    Returns:
        The number of rows, about that of the advice of an INCONCLUSIVE gate.

    Raises:
        UsageError: The profile is too small for this budget; the message says how many rows it needs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> profile = ms.reference_profile({"age": np.random.default_rng(0).normal(40, 12, 10_000)})
        >>> rows_for_quality(profile, 0.01)
        473
    """
    profile = as_profile(profile, None)
    plan = plan_rows(profile, max_rate=max_rate, alpha=alpha, closed=closed)
    if plan.rows is None:
        raise _too_small(profile, plan.profile_rows, f"max_rate={max_rate}")
    return plan.rows


_CORRELATED = 0.3
_WORTHWHILE = 0.97
"""The score stratifies if it is expected to narrow the interval at least to this part of the labels' own."""


def audit_rows(
    outputs: Servable,
    count: int | None = None,
    *,
    min_value: float | None = None,
    value: float | None = None,
    correlation: float | None = None,
    inputs: Any = None,
    output: Output | str | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
    power: float = 0.9,
    seed: int = 0,
) -> Audit:
    """Return which rows to label for `assert_audited_accuracy`, and how many: a random part of the outputs.

    The rows are drawn from strata of the score, more where the model is unsure. Where the scores say little, or there
    are none, they are drawn uniformly. Strata of a score that promises much and says nothing widen the interval by 5 to
    8 %: pass the correlation that the last audit found. Equal outputs and seeds give equal rows.

    Args:
        outputs: The outputs of all rows, ready or of a model, as in `assert_audited_accuracy`.
        count: The number of rows to label. Default: the number with which the model passes `min_value` with probability
            `power`.
        min_value: The budget of the gate; needed without `count`.
        value: The true accuracy that is planned for. Default: the mean score.
        correlation: The correlation of score and being right in an earlier audit, from its `details`. Below 0.3 the
            rows are drawn uniformly.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        output: The output to read, by name or as `ms.Output`.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.
        power: Probability of PASS.
        seed: Seed of the draw.

    Returns:
        The audit: `rows` to label, and the `design` by which they were drawn.

    Raises:
        UsageError: Neither `count` nor `min_value`, a count beyond the rows, or a budget that the value does not reach.

    Example:
        >>> import numpy as np
        >>> probability = np.random.default_rng(0).beta(0.3, 0.3, 10_000)
        >>> audit_rows(probability, 500).design
        'stratified'
        >>> audit_rows(probability, min_value=0.82).count
        368
    """
    read = Output.of(output)
    _, values = read_output(outputs, inputs, read)
    scores = ScoredPredictions.of(values, read).scores
    if (count is None) == (min_value is None):
        raise UsageError("audit_rows needs count=, the number of rows to label, or min_value=, the budget of the gate")
    strata = None if scores is None or (correlation is not None and correlation < _CORRELATED) else score_strata(scores)
    if count is None:
        assert min_value is not None
        if value is None:
            if scores is None:
                raise UsageError("value is needed, the accuracy that is planned for: the outputs have no scores")
            value = float(scores.mean())
        if not min_value < value:
            raise UsageError(f"value must be above min_value={min_value} for the model to pass, got {value:.4g}")
        needed = stats.proportion_rows_needed(value, min_value, confidence=confidence, alpha=alpha, power=power)
        assert needed is not None
        count = min(needed, len(values))
        if scores is not None and strata is not None and count >= 2 * (int(strata.max()) + 1):
            count = math.ceil(count * min(stratified_design(scores, strata, count).width_ratio, 1.0) ** 2)
    check_count("count", count)
    if not 3 <= count <= len(values):
        raise UsageError(f"count must be from 3 to the {len(values):,} rows of the outputs, got {count:,}")
    rng = np.random.default_rng(seed)
    if scores is not None and strata is not None and count >= 2 * (int(strata.max()) + 1):
        design = stratified_design(scores, strata, count)
        if design.width_ratio <= _WORTHWHILE:
            drawn = [
                rng.choice(np.flatnonzero(strata == stratum), rows, replace=False)
                for stratum, rows in enumerate(design.rows)
            ]
            return Audit(np.sort(np.concatenate(drawn)), "stratified", design.width_ratio)
    return Audit(np.sort(rng.choice(len(values), count, replace=False)), "uniform", 1.0)


def _too_small(profile: ReferenceProfile, needed: int, budget: str) -> UsageError:
    return UsageError(
        f"profile has too few rows ({profile.rows:,}) for {budget}: profile about {needed:,} rows and test as many"
    )


def _required(name: str, *, paired: bool) -> tuple[str, ...]:
    """Return the arguments that a metric needs; "a|b" means one of the two, "a?" that it is optional."""
    if name in _MEAN_LOSSES:
        return ("pilot|standard_deviation",)
    if name == "roc_auc":
        return ("value", "positive_rate", "correlation") if paired else ("value", "positive_rate")
    if name in _PROPORTIONS:
        first = "discordance?" if paired else "value"
        return (first, "positive_rate") if name == "recall" else (first,)
    known = (*_PROPORTIONS, "roc_auc", *_MEAN_LOSSES)
    raise UsageError(
        f"{unknown_choice('metric to plan for', name, known)}; for others run the gate on a pilot and read "
        'evidence.details["rows_needed"]'
    )


def _check_arguments(case: str, required: tuple[str, ...], **given: object) -> None:
    for need in required:
        names = need.split("|")
        if need.endswith("?"):
            continue
        if sum(given[name] is not None for name in names) != 1:
            one_of = "one of " if len(names) > 1 else ""
            raise UsageError(f"{case} needs {one_of}{' and '.join(f'{name}=' for name in names)}")
    allowed = {name for need in required for name in need.removesuffix("?").split("|")}
    for name, value in given.items():
        if value is not None and name not in allowed:
            raise UsageError(f"{name} is not supported by {case}: remove it")


def _symmetric_sample(deviation: float | None) -> ArrayLike:
    """Return a sample with this standard deviation and no skewness."""
    assert deviation is not None
    if not (math.isfinite(deviation) and deviation > 0):
        raise UsageError(f"standard_deviation must be above 0 and finite, got {deviation}")
    return np.array([-1.0, 1.0]) * deviation / math.sqrt(2)


def _rows_for_auc(
    margin: float, area: float, positive_rate: float, correlation: float | None, *, quantiles: float
) -> int:
    """Return the smallest n whose standard error, times the two quantiles, fits into the margin."""
    if not 0.5 <= area < 1:
        raise UsageError(f"value must be at least 0.5 and below 1 for an AUC, got {area}")
    if correlation is not None and not -1 <= correlation < 1:
        raise UsageError(f"correlation must be at least -1 and below 1, got {correlation}")
    both = 1.0 if correlation is None else 2 * (1 - correlation)

    def fits(n: int) -> bool:
        positive = n * positive_rate
        return quantiles * math.sqrt(both * stats.area_variance(area, positive, n - positive)) <= margin

    high = max(math.ceil(2 / positive_rate), math.ceil(2 / (1 - positive_rate)))
    while not fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
