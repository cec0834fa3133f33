"""Corruptions of images and other signals on a grid, in the units of their pixels.

All of them take `low` and `high`, the range of a pixel, and keep to it. The severities are milder and stronger versions
of the families that Hendrycks and Dietterich (2019, ICLR, "Benchmarking neural network robustness to common corruptions
and perturbations") found in practice; a team that knows its cameras gives its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness.corruptions.corruption import Corruption, in_range

Axes = tuple[int, int]
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)


def noise(*, low: float, high: float, severities: Sequence[float] = _SHARES) -> Corruption:
    """Gaussian noise on every value, independent; a severity is its standard deviation as a share of high − low."""
    width = _width(low, high)

    def corrupt(rows: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
        return in_range(rows + rng.normal(scale=share * width, size=rows.shape), rows, low, high)

    return _of("noise", severities, "of range", corrupt)


def blur(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.5)
) -> Corruption:
    """A Gaussian filter along two axes (rows (n, ..., height, width)); a severity is its standard deviation in pixels.

    Beyond the edge the image goes on as its last pixel (`scipy.ndimage.gaussian_filter`, mode "nearest").
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], sigma: float, _: np.random.Generator) -> NDArray[Any]:
        from scipy.ndimage import gaussian_filter

        blurred = gaussian_filter(rows.astype(np.float64), sigma, mode="nearest", axes=_spatial(rows, axes))
        return in_range(blurred, rows, low, high)

    return _of("blur", severities, "px", corrupt)


def shift(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0)
) -> Corruption:
    """Each image moved in a direction of its own, drawn evenly; a severity is the distance in pixels, parts of one too.

    What comes in at the edge is `low`; between pixels bilinear (`scipy.ndimage.shift`, order 1).
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], pixels: float, rng: np.random.Generator) -> NDArray[Any]:
        from scipy.ndimage import shift as moved

        spatial = _spatial(rows, axes)
        shifted = np.empty(rows.shape)
        for index, angle in enumerate(rng.uniform(0, 2 * math.pi, len(rows))):
            offsets = np.zeros(rows.ndim - 1)
            offsets[[axis - 1 for axis in spatial]] = pixels * math.sin(angle), pixels * math.cos(angle)
            shifted[index] = moved(rows[index].astype(np.float64), offsets, order=1, mode="constant", cval=low)
        return in_range(shifted, rows, low, high)

    return _of("shift", severities, "px", corrupt)


def rotation(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (5.0, 10.0, 15.0, 20.0, 30.0)
) -> Corruption:
    """Each image turned about its centre, left or right at random; a severity is the angle in degrees.

    Corners that come in are `low`; between pixels bilinear (`scipy.ndimage.rotate`, order 1).
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], degrees: float, rng: np.random.Generator) -> NDArray[Any]:
        from scipy.ndimage import rotate

        first, second = _spatial(rows, axes)
        turned = np.empty(rows.shape)
        for index, sign in enumerate(rng.choice((-1, 1), len(rows))):
            image = rows[index].astype(np.float64)
            turned[index] = rotate(
                image, sign * degrees, axes=(first - 1, second - 1), reshape=False, order=1, mode="constant", cval=low
            )
        return in_range(turned, rows, low, high)

    return _of("rotation", severities, "°", corrupt)


def brightness(*, low: float, high: float, severities: Sequence[float] = _SHARES) -> Corruption:
    """Every value raised alike; a severity is by how much, as a share of high − low (negative: darker)."""
    width = _width(low, high)

    def corrupt(rows: NDArray[Any], share: float, _: np.random.Generator) -> NDArray[Any]:
        return in_range(rows + share * width, rows, low, high)

    return _of("brightness", severities, "of range", corrupt)


def contrast(*, low: float, high: float, severities: Sequence[float] = (0.8, 0.6, 0.4, 0.3, 0.2)) -> Corruption:
    """Every image drawn towards its own mean; a severity is the share of contrast that is left, 1 for all."""
    _width(low, high)

    def corrupt(rows: NDArray[Any], left: float, _: np.random.Generator) -> NDArray[Any]:
        mean = rows.reshape(len(rows), -1).mean(axis=1).reshape((-1,) + (1,) * (rows.ndim - 1))
        return in_range(mean + left * (rows - mean), rows, low, high)

    return _of("contrast", severities, "left", corrupt)


def _of(name: str, severities: Sequence[float], unit: str, corrupt: Any) -> Corruption:
    return Corruption(name, tuple(map(float, severities)), unit, corrupt)


def _width(low: float, high: float) -> float:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"low and high are the range of a value (0 and 255, say), not {low} and {high}")
    return high - low


def _spatial(rows: NDArray[Any], axes: Axes) -> tuple[int, int]:
    """The two axes counted from the front; InputError where one is missing, or that of the rows."""
    if not all(-rows.ndim <= axis < rows.ndim for axis in axes):
        raise InputError(f"rows of shape {rows.shape} have no axes {axes}: an image needs a height and a width")
    first, second = (axis % rows.ndim for axis in axes)
    if 0 in (first, second) or first == second:
        raise InputError(f"axes {axes} of rows of shape {rows.shape} are not a height and a width beside the rows'")
    return first, second
