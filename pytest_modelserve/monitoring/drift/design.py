"""Raw rows of two data sets as one table of numbers of like scale, which a classifier can read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pytest_modelserve.monitoring.binning import Floats
from pytest_modelserve.stats.autocorrelation import centred_ranks

_CUT = 5.0
_HEAVY = 50.0
"""The kurtosis from which a column's ranks are read instead of its values: a standard deviation says little there."""
_FEWEST = 5
"""Rows of both data sets that a category, or null, needs for a column of its own."""


def design_of(values: Floats, categorical: NDArray[np.bool_]) -> Floats:
    """The table (n, features) of all rows (n, columns) of both data sets together, NaN null, of which `categorical`
    columns (columns,) hold codes.

    Numbers are standardised, or their normal scores where tails are heavy, nulls and infinities put at the median and
    the extremes and told by a column of their own; of categories each frequent one has a column. What does not vary is
    left out. Nothing here knows which data set a row is of, so that labels may be permuted afterwards.
    """
    features = [
        feature for column in range(values.shape[1]) for feature in _features(values[:, column], categorical[column])
    ]
    return np.clip(np.column_stack(features), -_CUT, _CUT) if features else np.zeros((len(values), 1))


def _features(values: Floats, categorical: bool) -> Iterator[Floats]:
    missing = np.isnan(values)
    if min(missing.sum(), (~missing).sum()) >= _FEWEST:
        yield _standard(missing.astype(np.float64))
    if missing.all():
        return
    if categorical:
        codes, counts = np.unique(values[~missing], return_counts=True)
        frequent = codes[counts >= _FEWEST]
        if len(codes) > 1:
            for code in frequent:
                yield _standard((values == code).astype(np.float64)) / math.sqrt(len(frequent))
        return
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    filled = np.clip(np.where(missing, np.median(finite), values), finite.min(), finite.max())
    if filled.min() == filled.max():
        return
    standard = _standard(filled)
    if np.mean(standard**4) > _HEAVY:
        ranks = centred_ranks(filled)
        standard = _standard(ndtri((ranks - ranks.min() + 0.5) / (np.ptp(ranks) + 1)))
    yield standard


def _standard(values: Floats) -> Floats:
    centred = values - values.mean()
    largest = np.abs(centred).max()
    scaled = centred / largest if largest else centred
    deviation = float(np.sqrt(np.mean(scaled**2)))
    standard: Floats = scaled / deviation if deviation else scaled
    return standard
