"""Corruptions of a table's columns, (n, features): what a broken join, a late job or a wrong unit make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness.corruptions.corruption import Corruption

_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)


def dropped(features: Sequence[int], *, fill: float, severities: Sequence[float] = _SHARES) -> Corruption:
    """`features`, numbers of columns, lost together and replaced by `fill`; a severity is the share of rows.

    `fill` is what the serving code puts there: NaN for a model that imputes, 0 for one that is handed a default.
    """
    wanted = tuple(features)

    def corrupt(rows: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
        columns = _columns(rows, wanted)
        if rows.dtype.kind not in "fiub" or (
            rows.dtype.kind != "f" and not np.can_cast(np.min_scalar_type(fill), rows.dtype)
        ):
            raise InputError(f"fill={fill} cannot stand in rows of {rows.dtype}")
        changed = rows.copy()
        changed[np.ix_(_hit(rows, share, rng), columns)] = fill
        return changed

    return Corruption("dropped", _shares("dropped", severities), "of rows", corrupt)


def stale(features: Sequence[int], *, severities: Sequence[float] = (1, 2, 5, 10, 50)) -> Corruption:
    """`features`, numbers of columns, as they were some rows ago; a severity is how many, a whole number.

    For rows in the order of time. The first rows, which have nothing before them, keep their values.
    """
    wanted = tuple(features)
    if not all(float(rows).is_integer() and rows >= 1 for rows in severities):
        raise UsageError(f"stale counts whole rows, at least 1, not {tuple(severities)}")

    def corrupt(rows: NDArray[Any], late: float, _: np.random.Generator) -> NDArray[Any]:
        columns = _columns(rows, wanted)
        if late >= len(rows):
            raise InputError(f"{len(rows)} rows are too few to be {late:g} rows late")
        changed = rows.copy()
        changed[int(late) :, columns] = rows[: -int(late), columns]
        return changed

    return Corruption("stale", tuple(map(float, severities)), "rows late", corrupt)


def unit_slip(features: Sequence[int], *, factor: float, severities: Sequence[float] = _SHARES) -> Corruption:
    """`features`, numbers of columns, in another unit: times `factor`; a severity is the share of rows.

    A factor of 1000 is a metre told as millimetres. Values that the dtype cannot hold become its largest.
    """
    wanted = tuple(features)

    def corrupt(rows: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
        if rows.dtype.kind not in "fiu":
            raise InputError(f"rows of {rows.dtype} have no unit: unit_slip needs numbers")
        places = np.ix_(_hit(rows, share, rng), _columns(rows, wanted))
        changed = rows.copy()
        info = np.finfo(rows.dtype) if rows.dtype.kind == "f" else np.iinfo(rows.dtype)
        changed[places] = np.clip(rows[places].astype(np.float64) * factor, float(info.min), float(info.max))
        return changed

    return Corruption("unit slip", _shares("unit_slip", severities), "of rows", corrupt)


def _hit(rows: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.permutation(len(rows))[: round(share * len(rows))]


def _shares(name: str, severities: Sequence[float]) -> tuple[float, ...]:
    if not all(0 < share <= 1 for share in severities):
        raise UsageError(f"{name} counts shares of rows, above 0 and at most 1, not {tuple(severities)}")
    return tuple(map(float, severities))


def _columns(rows: NDArray[Any], features: tuple[int, ...]) -> NDArray[np.intp]:
    if rows.ndim != 2:
        raise InputError(f"features are columns of rows (n, features), not of rows of shape {rows.shape}")
    outside = [feature for feature in features if not -rows.shape[1] <= feature < rows.shape[1]]
    if outside or not features:
        raise InputError(f"rows of {rows.shape[1]} features have none numbered {outside or 'so: features is empty'}")
    columns: NDArray[np.intp] = np.array(features, dtype=np.intp) % rows.shape[1]
    return columns
