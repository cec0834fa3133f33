"""Rows that belong together as one unit: runs of consecutive rows, or rows that share an id."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments


def block_ids(n: int, block: int) -> NDArray[np.intp]:
    """The number of each row's block, (n,): n // block runs that differ in length by at most one, at least one run.

    The same runs as those of `block_means`. UsageError for a block that is not a count.
    """
    count = max(n // _arguments.count("block", block, minimum=1), 1)
    starts = np.arange(count) * n // count
    return np.searchsorted(starts, np.arange(n), side="right") - 1


def unit_values(values: ArrayLike, ids: NDArray[np.intp]) -> NDArray[np.float64]:
    """One value a unit, (units,), with the mean of `values` (n,) as their mean and the scatter of the units' sums.

    `ids` (n,) number the units from 0 without a gap. A unit's value is the mean plus its rows' deviations from it,
    added up, over the average size of a unit, so that s/sqrt(units) is the cluster-robust standard error of the mean,
    sqrt(k/(k − 1)·Σ deviation²)/n. Source: Liang and Zeger (1986), Biometrika 73, 13–22; the ratio, Cochran, Sampling
    Techniques, 3rd ed. 1977, section 2.11. UsageError for arrays of different lengths and for no values.
    """
    numbers = _arguments.vector("values", values)
    if numbers.size != ids.size or not numbers.size:
        raise UsageError(f"every value has the number of its unit: {numbers.size} values, {ids.size} numbers")
    mean, units = numbers.mean(), int(ids.max()) + 1
    return np.asarray(mean + np.bincount(ids, weights=numbers - mean, minlength=units) * units / numbers.size)
