"""Boxes of rows, and bounds on the rounding errors of the runtime and of this package.

The runtime computes in float32, in an order of summation that is unknown. Every operator of a certificate therefore
has an error radius: the runtime's result differs from the exact result, on the same inputs, by no more than that.

- A sum of n products: `γ_n Σ|w_i x_i|` with `γ_n = n u / (1 - n u)`, in any order, with fused multiplications or
  without (Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 2.2, 3.1 and 4.2; u is 2^-24
  for float32). Fusions of onnxruntime round each weight once more: `EXTRA_TERMS`.
- Results below the smallest normal number may be flushed to zero: `n` times that number is added (Higham,
  equation 2.8).
- Where a partial sum may exceed the largest number, the radius is infinite.

The certificate itself is computed in float64. Its own error has the same form with u = 2^-53, and is added to the same
radius: a coefficient that this package rounds is multiplied with a value inside the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError

Array = NDArray[np.float64]

EXTRA_TERMS = 8
"""Roundings of a sum beyond its terms: bias, alpha and beta, and weights that a fusion scaled before."""

OWN_UNIT = 2.0**-53
_SAFETY = 4
"""Factor on the error of our own arithmetic, whose terms are counted roughly."""


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Lower and upper bounds of one value of the graph, each (rows, ...) in float64."""

    lower: Array
    upper: Array

    @property
    def magnitude(self) -> Array:
        """The largest absolute value, (rows, ...)."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    @property
    def center(self) -> Array:
        """The midpoint, up to rounding: use it with `radius`."""
        return 0.5 * self.lower + 0.5 * self.upper

    @property
    def radius(self) -> Array:
        """Half of the width, rounded so that center ± radius covers the box."""
        center = self.center
        return np.nextafter(np.maximum(self.upper - center, center - self.lower), np.inf)

    def widened(self, radius: Array | float) -> Box:
        """Return the box with `radius` on each side, rounded outward."""
        return Box(down(self.lower - radius), up(self.upper + radius))

    def meet(self, other: Box) -> Box:
        """Return the intersection; both hold the value, so that a gap can only be a rounding of ours."""
        lower, upper = np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper)
        return Box(np.minimum(lower, upper), np.maximum(lower, upper))

    def rows(self, chosen: Any) -> Box:
        """Return the box of some rows: a slice, a mask or indices."""
        return Box(self.lower[chosen], self.upper[chosen])

    def inside(self, values: Array, dtype: str) -> NDArray[Any]:
        """Return values in `dtype`, rounded into the box, where the box holds a value of that dtype."""
        kind = np.dtype(dtype)
        if kind.kind in "iu":
            return np.clip(np.rint(values), np.ceil(self.lower), np.floor(self.upper)).astype(kind)
        found = values.astype(kind)
        found = np.where(found.astype(np.float64) > self.upper, np.nextafter(found, kind.type(-np.inf)), found)
        found = np.where(found.astype(np.float64) < self.lower, np.nextafter(found, kind.type(np.inf)), found)
        return np.asarray(found, kind)


def up(values: Array) -> Array:
    """Return the next float64 above each of `values`."""
    return np.nextafter(values, np.inf)


def down(values: Array) -> Array:
    """Return the next float64 below each of `values`."""
    return np.nextafter(values, -np.inf)


def unit_roundoff(dtype: str) -> float:
    """Return the unit roundoff of a float dtype by its name: half the distance from 1 to the next number."""
    return _UNITS[dtype]


def smallest_normal(dtype: str) -> float:
    """Return the smallest normal number of a float dtype."""
    return _SMALLEST[dtype]


def gamma(terms: int, dtype: str) -> float:
    """Return Higham's γ_n for a sum of `terms` products in `dtype`.

    Raises:
        UsageError: So many terms that the bound is void.
    """
    product = (terms + EXTRA_TERMS) * unit_roundoff(dtype)
    if product >= 0.5:
        raise UsageError(
            f"artifact sums {terms} terms in {dtype}, for which no bound on the rounding error holds: certify the "
            "float32 model"
        )
    return product / (1 - product)


def sum_error(magnitude: Array, terms: int, dtype: str, *, own_terms: int = 0, gain: float = 1.0) -> Array:
    """Return the error radius of sums of `terms` products.

    Args:
        magnitude: The sums of the products' absolute values.
        terms: Products in each sum.
        dtype: The dtype in which the runtime computes.
        own_terms: Terms of our own sums over the same coefficients, backward ones included.
        gain: Factor by which partial sums are larger than `magnitude`.
    """
    own = _SAFETY * (own_terms + terms + 64) * OWN_UNIT
    error = magnitude * ((gamma(terms, dtype) + own) * (1 + 1e-9)) + (terms + EXTRA_TERMS) * smallest_normal(dtype)
    return np.where(magnitude * (1.01 * gain) < LARGEST[dtype], error, np.inf)


def own_error(magnitude: Array, own_terms: int = 0) -> Array:
    """Return the error radius of operators that the runtime computes exactly, and our own arithmetic does not."""
    return magnitude * (_SAFETY * (own_terms + 64) * OWN_UNIT)


_UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
LARGEST = {"float64": 1e307, "float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.3e38}
"""Beyond these a value may have overflowed, and no bound holds; for float64 our own sums of two have not."""
