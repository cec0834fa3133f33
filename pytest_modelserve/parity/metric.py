"""Which metrics there are, and which budget belongs to each: a score has a floor, an error has a ceiling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

from pytest_modelserve.errors import UsageError, unknown_choice

ErrorMetric = Literal["mae", "rmse"]
Metric = Literal["accuracy"] | ErrorMetric
METRICS: tuple[str, ...] = ("accuracy", *get_args(ErrorMetric))


def limit_of(metric: Metric, *, score: Mapping[str, float | None], error: Mapping[str, float | None]) -> float:
    """The budget that `metric` takes, out of the one name and value in `score` and the one in `error`.

    UsageError for an unknown metric, for the budget of the other kind, for none, and for an error that is not finite.
    """
    if metric not in METRICS:
        raise UsageError(unknown_choice("metric", metric, METRICS))
    is_score = metric == "accuracy"
    ((name, limit),), ((other, misplaced),) = (
        kind.items() for kind in ((score, error) if is_score else (error, score))
    )
    kind = "a score" if is_score else "an error"
    if misplaced is not None:
        raise UsageError(f"metric={metric!r} is {kind}, whose budget is {name}=, not {other}=")
    if limit is None:
        raise UsageError(f"metric={metric!r} needs its budget: give {name}=")
    if not is_score and not math.isfinite(limit):
        raise UsageError(f"{name} is a finite number in the units of the target, not {limit}")
    return limit


def refuse_for(metric: Metric, **arguments: bool) -> None:
    """UsageError for the first argument that was given (its value is True) and means nothing to `metric`."""
    for name, given in arguments.items():
        if given:
            raise UsageError(f"{name}= means nothing for metric={metric!r}: leave it out")
