"""Parameters that take any number of a range, each element by itself: a table by operator and slot, after the
operators' definitions. An index lies below the length of an axis, a divisor is not zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pytest_modelserve.robustness.parameter_call import MOST, Call

Bounds = tuple[Any, Any]


def _index(axis_of: Callable[[Call], int]) -> Callable[[Call], Bounds | None]:
    def bounds(call: Call) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (0, max(shape[axis_of(call)] - 1, 0))

    return bounds


def _index_tuples(call: Call) -> Bounds | None:
    """GatherND and ScatterND: the last axis of the indices counts through the first axes of the data."""
    shape, indices = call.shape(0), call.shape(1)
    if not shape or not indices:
        return None
    first = call.attribute("batch_dims", 0)
    return 0, np.maximum(np.array(shape[first : first + indices[-1]]) - 1, 0)


def _lengths(axis: int) -> Callable[[Call], Bounds | None]:
    def bounds(call: Call) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (1, max(shape[axis if not call.attribute("layout", 0) else 1 - axis], 1))

    return bounds


def _axis(call: Call) -> int:
    return int(call.attribute("axis", 0))


_POSITIVE: Callable[[Call], Bounds | None] = lambda _: (0.5, 2.0)  # noqa: E731  a scale or a variance
_DIVISOR: Callable[[Call], Bounds | None] = lambda _: (1, MOST)  # noqa: E731

BOUNDED: dict[tuple[str, int], Callable[[Call], Bounds | None]] = {
    ("ArrayFeatureExtractor", 1): _index(lambda _: -1),
    ("BatchNormalization", 4): _POSITIVE,
    ("DequantizeLinear", 1): _POSITIVE,
    ("Div", 1): _DIVISOR,
    ("Dropout", 1): lambda _: (0.1, 0.9),
    ("GRU", 4): _lengths(0),
    ("Gather", 1): _index(_axis),
    ("GatherElements", 1): _index(_axis),
    ("GatherND", 1): _index_tuples,
    ("LSTM", 4): _lengths(0),
    ("Loop", 0): lambda _: (0, MOST),
    ("MaxUnpool", 1): lambda call: (0, max(int(np.prod(call.dims())) - 1, 0)),
    ("Mod", 1): _DIVISOR,
    ("NonMaxSuppression", 2): lambda _: (1, MOST),
    ("NonMaxSuppression", 3): lambda _: (0.1, 0.9),
    ("NonMaxSuppression", 4): lambda _: (0.1, 0.9),
    ("OneHot", 1): lambda _: (2, 8),
    ("QuantizeLinear", 1): _POSITIVE,
    ("RNN", 4): _lengths(0),
    ("ReverseSequence", 1): lambda call: (1, call.dims()[call.attribute("time_axis", 0)]),
    ("RoiAlign", 2): _index(lambda _: 0),
    ("ScatterElements", 1): _index(_axis),
    ("ScatterND", 1): _index_tuples,
}
"""The range of a bounded parameter, None where the graph does not tell it."""
