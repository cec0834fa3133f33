"""What is watched of the weeks that come in: the level, and how the week changed beyond what its season explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

YEAR = 52
Columns = dict[str, NDArray[np.float64]]


def level(ppm: NDArray[np.float64]) -> Columns:
    """The concentration itself, (n,) in ppm. Neighbouring weeks say the same: judge it over blocks of a year."""
    return {"level": ppm}


def weekly_change(weeks: NDArray[np.datetime64], ppm: NDArray[np.float64], *, season: NDArray[np.float64]) -> Columns:
    """The change from week to week, (n − 1,) in ppm, less what is usual for the week of the year."""
    return {"weekly change": np.diff(ppm) - season[_week_of_year(weeks[1:])]}


def seasonal_change(weeks: NDArray[np.datetime64], ppm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean change of each week of the year, (53,) in ppm."""
    week, change = _week_of_year(weeks[1:]), np.diff(ppm)
    return np.array([change[week == number].mean() for number in range(53)])


def _week_of_year(weeks: NDArray[np.datetime64]) -> NDArray[np.int64]:
    days: NDArray[np.int64] = (weeks - weeks.astype("datetime64[Y]")).astype(np.int64)
    return days // 7
