"""Rows with some features times a factor, or a step further on, and which of them that says something of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.numerics import kind_of, machine_epsilon
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.features import with_columns
from pytest_modelserve.robustness.violations import Violations

_TINY = float(np.finfo(np.float32).tiny)
"""What goes below this is as good as zero."""


def rescaled(
    rows: Feed, base: Feed, name: str, columns: NDArray[np.intp], *, factor: float = 1.0, offset: float = 0.0
) -> tuple[Feed, NDArray[np.bool_]]:
    """The rows with some columns times `factor` plus `offset`, and which rows hold the result in their dtype.

    UsageError for text and booleans; InputError where not one of the base rows could be judged.
    """
    if kind_of(rows[name].dtype) not in ("real", "exact") or rows[name].dtype == np.bool_:
        raise UsageError(f"input {name!r} is {rows[name].dtype.name}, which has no scale")
    if not _changed(base[name], columns, factor, offset)[1].any():
        raise InputError(f"no base row of input {name!r} holds its features times {factor:g} plus {offset:g}")
    values, fits = _changed(rows[name], columns, factor, offset)
    return with_columns(rows, name, columns, values), fits


def _changed(
    array: NDArray[Any], columns: NDArray[np.intp], factor: float, offset: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    before = array.reshape(len(array), -1)[:, columns].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = before * factor + offset
        values = as_dtype(wanted, array.dtype)
        there = values.astype(np.float64)
        if kind_of(array.dtype) == "exact":
            fits = there == wanted
        else:
            room = machine_epsilon(array.dtype.name) * np.abs(wanted) + _TINY
            fits = (np.abs(there - wanted) <= room) | ~np.isfinite(before)
    return values, fits.all(axis=1)


def only_where(judged: NDArray[np.bool_], found: Violations) -> Violations:
    """The violations of rows that are judged."""
    excess = None if found.excess is None else np.where(judged, found.excess, 0.0)
    return Violations(found.violated & judged, excess, found.told)


def checked_factor(factor: float) -> float:
    """The factor if it changes anything; UsageError for 0, for 1 and for what is not finite."""
    if not math.isfinite(factor) or factor in (0, 1):
        raise UsageError(f"factor is a finite number other than 0 and 1, not {factor}")
    return float(factor)
