"""The monitored columns of new weeks: the level, and the weekly change without its season."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

YEAR = 52
Columns = dict[str, NDArray[np.float64]]


def level(ppm: NDArray[np.float64]) -> Columns:
    """Return the concentration, (n,) in ppm. Neighboring weeks depend on each other: use blocks of a year."""
    return {"level": ppm}


def weekly_change(weeks: NDArray[np.datetime64], ppm: NDArray[np.float64], *, season: NDArray[np.float64]) -> Columns:
    """Return the change from week to week, (n − 1,) in ppm, minus the mean for the week of the year."""
    return {"weekly change": np.diff(ppm) - season[_week_of_year(weeks[1:])]}


def seasonal_change(weeks: NDArray[np.datetime64], ppm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean change of each week of the year, (53,) in ppm."""
    week, change = _week_of_year(weeks[1:]), np.diff(ppm)
    return np.array([change[week == number].mean() for number in range(53)])


def _week_of_year(weeks: NDArray[np.datetime64]) -> NDArray[np.int64]:
    days: NDArray[np.int64] = (weeks - weeks.astype("datetime64[Y]")).astype(np.int64)
    return days // 7
