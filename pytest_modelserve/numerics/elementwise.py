"""The largest differences between two arrays of one shape, found in one streaming pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.numerics.ulp import has_ulps, ulp_distance

# 2**14 elements keep the dozen float64 temporaries of one chunk (128 KiB each) inside a core's second-level cache.
CHUNK = 2**14


@dataclass(frozen=True, slots=True)
class Differences:
    """What one pass found; indices are flat and in C order, None where there is no such place.

    `max_abs`, `max_rel` and `max_multiple` cover the pairs in which both values are finite. `max_multiple` is the worst
    error as a multiple of its tolerance, `worst` its place and `beyond` the number of pairs whose multiple exceeds 1.
    `nan_differ` counts places where exactly one value is NaN, `inf_differ` those where at least one of two numbers is
    infinite and the other is not the same infinity.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    max_multiple: float = 0.0
    max_ulp: int | None = None
    worst: int | None = None
    beyond: int = 0
    nan_differ: int = 0
    nan_first: int | None = None
    inf_differ: int = 0
    inf_first: int | None = None

    def merged(self, later: Differences) -> Differences:
        """These differences and those of a later chunk as one; at equal multiples the earlier place stays."""
        return Differences(
            max_abs=max(self.max_abs, later.max_abs),
            max_rel=max(self.max_rel, later.max_rel),
            max_multiple=max(self.max_multiple, later.max_multiple),
            max_ulp=later.max_ulp if self.max_ulp is None else max(self.max_ulp, later.max_ulp or 0),
            worst=later.worst if self.worst is None or later.max_multiple > self.max_multiple else self.worst,
            beyond=self.beyond + later.beyond,
            nan_differ=self.nan_differ + later.nan_differ,
            nan_first=later.nan_first if self.nan_first is None else self.nan_first,
            inf_differ=self.inf_differ + later.inf_differ,
            inf_first=later.inf_first if self.inf_first is None else self.inf_first,
        )


def float_differences(
    candidate: NDArray[Any], reference: NDArray[Any], *, rtol: float, atol: float
) -> Differences:
    """Differences of two real arrays of one shape under the tolerance `atol + rtol * |reference|`, in float64.

    A tolerance of 0 makes the multiple of any difference infinite; so does a reference of 0 its relative error.
    `max_ulp` is None unless both dtypes are the same float16, float32 or float64.
    """
    with_ulps = candidate.dtype == reference.dtype and has_ulps(candidate.dtype)
    total = Differences(max_ulp=0 if with_ulps else None)
    with np.errstate(all="ignore"):  # infinities and NaN are found by their results
        for start, a, b in _chunks(candidate, reference):
            if a.tobytes() == b.tobytes() if with_ulps else False:
                continue
            total = total.merged(_float_chunk(start, a, b, rtol, atol, with_ulps))
    return total
