"""Which coordinates of a row a relation is about, and rows in which they have other values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.coordinates import Feed

Feature = int | tuple[int, ...]
"""A column of a row's flat input, or its index in one row of a higher-dimensional one."""


def as_features(features: Feature | Iterable[Feature]) -> tuple[Feature, ...]:
    """One or several features as a tuple; UsageError for none, and for what is no whole number."""
    given: tuple[Any, ...] = (features,) if isinstance(features, int) else tuple(features)
    if not given:
        raise UsageError("features is empty: name one or more by their columns")
    for feature in given:
        parts = feature if isinstance(feature, tuple) else (feature,)
        if not parts or any(isinstance(part, bool) or not isinstance(part, int) for part in parts):
            raise UsageError(f"a feature is a column (int) or an index in one row (tuple of ints), not {feature!r}")
    return given


def input_of(rows: Feed, name: str | None) -> str:
    """The input that is meant; UsageError for an unknown one, and without a name where there are several."""
    if name is None:
        if len(rows) > 1:
            raise UsageError(f"the model has {len(rows)} inputs: say which one by input=, one of {', '.join(rows)}")
        return next(iter(rows))
    if name not in rows:
        raise UsageError(unknown_choice("input", name, rows))
    return name


def columns_of(array: NDArray[Any], features: Sequence[Feature], name: str) -> NDArray[np.intp]:
    """The flat columns of features in rows (n, ...); InputError for one that a row does not have."""
    shape = array.shape[1:]
    found = []
    for feature in features:
        try:
            index = feature if isinstance(feature, tuple) else np.unravel_index(feature, shape or (1,))
            found.append(int(np.ravel_multi_index(index, shape or (1,))))
        except ValueError:
            raise InputError(f"input {name!r} has rows of shape {list(shape)}: there is no feature {feature}") from None
    return np.array(found, np.intp)


def with_columns(rows: Feed, name: str, columns: NDArray[np.intp], values: NDArray[Any]) -> Feed:
    """The rows with other values (n, columns) in one input."""
    array = np.array(rows[name])
    array.reshape(len(array), -1)[:, columns] = values
    return {**rows, name: array}
