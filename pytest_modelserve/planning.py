"""Choosing before and above the gates: how many labelled rows a gate needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from pytest_modelserve import stats
from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.stats import area_variance

# How many labelled rows a gate needs, before anything is labelled: `ms.planning.rows_needed`.


_MEAN_LOSSES = ("mae", "log_loss", "brier_score")
_SHARES = ("accuracy", "top_k_accuracy", "recall")


def rows_needed(
    metric: str,
    margin: float,
    *,
    difference: float = 0.0,
    discordance: float | None = None,
    value: float | None = None,
    positive_share: float | None = None,
    correlation: float | None = None,
    pilot: ArrayLike | None = None,
    standard_deviation: float | None = None,
    paired: bool = True,
    confidence: float = 0.95,
    alpha: float = 0.001,
    power: float = 0.9,
) -> int:
    """About how many labelled rows make a gate say PASS with probability `power`, for a model well inside its budget.

    `paired=True` plans `assert_accuracy_parity`: `margin` is its `max_drop` or `max_rise`, and `difference` the true
    drop or rise (0: a model as good as its reference). `paired=False` plans `assert_accuracy`: `margin` is how far the
    model's true `value` lies inside the budget (0.02 for a model of 92 % and `min_value=0.9`).

    What has to be known besides, from a pilot or an earlier release:

    - "accuracy", "top_k_accuracy", "recall": `discordance`, the share of rows on which one of the two models is right
    and the other wrong (for recall among the positive rows, which `positive_share` of all rows are); unpaired, `value`.
    - "mae", "log_loss", "brier_score": `pilot` (n,), one difference of losses a row (unpaired, one loss a row), which
    is what the gate itself plans with, or their `standard_deviation` alone, which takes them for symmetric.
    - "roc_auc": `value`, `positive_share` and, paired, the `correlation` of the two areas (0.9 or more for a quantised
    model and its reference), by the variance of Hanley and McNeil (1982), Radiology 143, 29–36, and (1983), 148,
    839–843.

    For every other metric run the gate on a pilot: `evidence.details["rows_needed"]`. Approximations; for accuracy see
    `stats.rows_needed`. Raises UsageError for an unknown metric, for what lacks or means nothing to it, and for a
    difference that is not below the margin.
    """
    given = {
        "discordance": discordance,
        "value": value,
        "positive_share": positive_share,
        "correlation": correlation,
        "pilot": pilot,
        "standard_deviation": standard_deviation,
    }
    plan = _plan_for(metric, paired=paired)
    _check(metric, plan, given, paired=paired)
    if not margin > difference:
        raise UsageError(f"no number of rows makes PASS likely: the difference {difference} is not below {margin}")
    if not paired and difference != 0:
        raise UsageError("difference= is that of two models: leave it out with paired=False, where the margin is all")
    return plan.rows(
        _Case(margin, difference, confidence, alpha, power), {k: v for k, v in given.items() if v is not None}
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """What every plan takes."""

    margin: float
    difference: float
    confidence: float
    alpha: float
    power: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which arguments a metric needs, of which groups it needs exactly one, and what it makes of them."""

    needs: tuple[str, ...]
    rows: Callable[[_Case, dict[str, Any]], int]
    one_of: tuple[str, ...] = ()


def _plan_for(metric: str, *, paired: bool) -> _Plan:
    name = "top_k_accuracy" if metric.startswith("top_") and metric.endswith("_accuracy") else metric
    if name in _MEAN_LOSSES:
        return _Plan((), _of_mean, one_of=("pilot", "standard_deviation"))
    if name == "roc_auc":
        return _Plan(("value", "positive_share", *(("correlation",) if paired else ())), _of_area)
    if name in _SHARES:
        base = ("positive_share",) if name == "recall" else ()
        return _Plan(("discordance", *base), _of_drop) if paired else _Plan(("value", *base), _of_share)
    known = (*_SHARES, "roc_auc", *_MEAN_LOSSES)
    raise UsageError(
        f"{unknown_choice('metric to plan for', metric, known)}; for others run the gate on a pilot and read "
        'evidence.details["rows_needed"]'
    )


def _check(metric: str, plan: _Plan, given: dict[str, Any], *, paired: bool) -> None:
    told = f"metric={metric!r} with paired={paired}"
    for name in plan.needs:
        if given[name] is None:
            raise UsageError(f"{told} needs {name}=")
    if plan.one_of and sum(given[name] is not None for name in plan.one_of) != 1:
        raise UsageError(f"{told} needs one of {'= and '.join(plan.one_of)}=")
    for name, value in given.items():
        if value is not None and name not in (*plan.needs, *plan.one_of):
            raise UsageError(f"{name}= means nothing for {told}: leave it out")
    share = given["positive_share"]
    if share is not None and not 0 < share < 1:
        raise UsageError(f"positive_share is a share between 0 and 1, not {share}")


def _of_drop(case: _Case, given: dict[str, Any]) -> int:
    counted = stats.rows_needed(
        discordance=given["discordance"],
        margin=case.margin,
        difference=case.difference,
        confidence=case.confidence,
        power=case.power,
    )
    return math.ceil(counted / float(given.get("positive_share", 1.0)))


def _of_share(case: _Case, given: dict[str, Any]) -> int:
    counted = stats.proportion_rows_needed(
        given["value"], given["value"] - case.margin, confidence=case.confidence, alpha=case.alpha, power=case.power
    )
    assert counted is not None  # the value lies above the limit
    return math.ceil(counted / float(given.get("positive_share", 1.0)))


def _of_mean(case: _Case, given: dict[str, Any]) -> int:
    needed = stats.values_needed(
        given["pilot"] if "pilot" in given else _two_values(given["standard_deviation"]),
        truth=case.difference,
        limit=case.margin,
        confidence=case.confidence,
        alpha=case.alpha,
        power=case.power,
    )
    if needed is None:
        raise UsageError("a pilot of one row tells no scatter: give two or more")
    return needed


def _two_values(deviation: float) -> NDArray[np.float64]:
    """A sample with this standard deviation and no skewness."""
    if not (math.isfinite(deviation) and deviation > 0):
        raise UsageError(f"standard_deviation is a finite number above 0, not {deviation}")
    return np.array([-1.0, 1.0]) * deviation / math.sqrt(2)


def _of_area(case: _Case, given: dict[str, Any]) -> int:
    """The smallest n whose standard error, times the two quantiles, fits into the margin."""
    area, share, correlation = float(given["value"]), float(given["positive_share"]), given.get("correlation")
    if not 0.5 <= area < 1:
        raise UsageError(f"value is an area under the ROC curve, from 0.5 to below 1, not {area}")
    if correlation is not None and not -1 <= correlation < 1:
        raise UsageError(f"correlation lies from -1 to below 1, not {correlation}")
    both = 1.0 if correlation is None else 2 * (1 - correlation)
    reach = float(ndtri(case.confidence)) + float(ndtri(case.power))

    def fits(n: int) -> bool:
        positive = n * share
        error = math.sqrt(both * area_variance(area, positive, n - positive))
        return reach * error <= case.margin - case.difference

    high = max(math.ceil(2 / share), math.ceil(2 / (1 - share)))
    while not fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
