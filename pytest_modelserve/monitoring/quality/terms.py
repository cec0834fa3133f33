"""What data are held to besides the profile: budgets, and what their user knows and no row tells."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import check_error_rates
from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.judging import CONFIDENCE
from pytest_modelserve.monitoring.profiled import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.times import epoch_seconds


@dataclass(frozen=True, slots=True)
class Terms:
    """The budget and error rate, the rows that depend on each other, and what was declared.

    `closed` are the columns whose categories the profile has all of; `max_age_s` is how old the newest time of a column
    may be at `now`, in seconds since 1970: NaN where no age is given.
    """

    max_share: float
    alpha: float
    blocks: Blocks
    closed: frozenset[str]
    max_age_s: Mapping[str, float]
    now: float


def quality_terms(
    profile: ReferenceProfile,
    *,
    max_share: float,
    alpha: float,
    closed: Collection[str],
    max_age_s: Mapping[str, float] | None,
    now: datetime | float | None,
) -> Terms:
    """The terms, checked against the columns of the profile; UsageError that says what does not fit."""
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_share < 1:
        raise UsageError(f"max_share is a share between 0 and 1 (0.01, say), not {max_share}")
    if isinstance(closed, str):
        raise UsageError(f"closed is a collection of names of columns: ({closed!r},) for one")
    for name in closed:
        _check_closed(name, _named(profile, name, "closed"))
    if (max_age_s is None) != (now is None):
        raise UsageError("max_age_s and now are given together: an age is counted from a moment that the test chooses")
    for name, seconds in (max_age_s or {}).items():
        if _named(profile, name, "max_age_s").kind != "datetime":
            raise UsageError(f"max_age_s: column {name!r} holds no times in the profile")
        if not 0 < seconds < math.inf:
            raise UsageError(f"max_age_s of {name!r} is a positive number of seconds, not {seconds}")
    return Terms(
        max_share=max_share,
        alpha=alpha,
        blocks=Blocks(profile.block or 1, profile.block or 1),
        closed=frozenset(closed),
        max_age_s=max_age_s or {},
        now=math.nan if now is None else epoch_seconds(now),
    )


def _named(profile: ReferenceProfile, name: str, where: str) -> ProfiledColumn:
    if name not in profile.names:
        raise UsageError(f"{where}: {unknown_choice('column', name, profile.names)}")
    return profile.column(name)


def _check_closed(name: str, column: ProfiledColumn) -> None:
    if not isinstance(column, CategoricalColumn):
        raise UsageError(f"closed: column {name!r} holds no categories in the profile")
    if column.pooled:
        raise UsageError(
            f"closed: column {name!r} has more than 100 categories in the profile, or a long one, and no names are kept"
        )
