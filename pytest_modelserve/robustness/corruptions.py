"""Corruptions of tables and images at graded severities, which leave the labels of the rows as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError

Corrupt = Callable[[NDArray[Any], float, np.random.Generator], NDArray[Any]]
"""Rows (n, ...), a severity and a generator → rows of the same shape and dtype. Must not change its argument."""
Axes = tuple[int, int]

_PROPORTIONS = (0.01, 0.05, 0.1, 0.25, 0.5)
_RANGE_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True, slots=True)
class Corruption:
    """A named corruption of rows at several severities.

    It applies to one input of a model with labels. A severity fails where the accuracy drops by more than its budget in
    `assert_corruption_accuracy`. The functions of `ms.corruptions` return corruptions; your own is one call.

    Args:
        name: Name in reports; unique within one assertion.
        corrupt: Function of the rows (n, ...), a severity and a numpy generator that returns new rows of the same shape
            and dtype.
        severities: Finite numbers, mildest first.
        unit: Unit of the severities, for reports.

    Raises:
        UsageError: `severities` is empty, repeats a number, or holds one that is not finite.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> def flip(rows, proportion, rng):
        ...     return np.where(rng.random(len(rows))[:, None] < proportion, rows[:, ::-1], rows)
        >>> ms.corruptions.Corruption("flipped", flip, [0.1, 0.5], unit="of rows").label(0.5)
        'flipped 0.5 of rows'
    """

    name: str
    corrupt: Corrupt
    severities: Sequence[float]
    unit: str = ""

    def __post_init__(self) -> None:
        severities = tuple(map(float, self.severities))
        object.__setattr__(self, "severities", severities)
        if not severities or not all(map(math.isfinite, severities)):
            raise UsageError(f"severities of {self.name} must be one or more finite numbers, got {severities}")
        if len(set(severities)) < len(severities):
            raise UsageError(f"severities of {self.name} must differ, got {severities}")

    def at(self, rows: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
        """Return the corrupted rows.

        Args:
            rows: Rows (n, ...); they stay as they are.
            severity: How much, in `unit`.
            rng: Source of randomness.

        Returns:
            Rows of the same shape and dtype.

        Raises:
            InputError: `corrupt` returned another shape or dtype.
        """
        corrupted = np.asarray(self.corrupt(rows, severity, rng))
        if corrupted.shape != rows.shape or corrupted.dtype != rows.dtype:
            raise InputError(
                f"corruption {self.name!r} must return rows of shape {rows.shape} and dtype {rows.dtype}, got shape "
                f"{corrupted.shape} and dtype {corrupted.dtype}"
            )
        return corrupted

    def label(self, severity: float) -> str:
        """Return the name with one severity, such as "blur 1 px"."""
        return f"{self.name} {severity:g}" + (f" {self.unit}" if self.unit else "")


# Columns of a table


def missing_feature(features: Sequence[int], *, fill: float, severities: Sequence[float] = _PROPORTIONS) -> Corruption:
    """Replace features by `fill` in a proportion of the rows, as a failed join does.

    Applies to numeric rows (n, features). All `features` of an affected row are replaced together.

    Args:
        features: Column numbers; negative ones count from the end.
        fill: The value that the serving code puts there: NaN for a model that imputes, or a default such as 0.
        severities: Proportions of affected rows, in (0, 1].

    Returns:
        The corruption "missing feature". Applied to rows without these columns, or of a dtype that cannot hold `fill`,
        it raises `InputError`.

    Raises:
        UsageError: A severity is not in (0, 1].

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> lost = ms.corruptions.missing_feature([1], fill=np.nan)
        >>> np.isnan(lost.at(np.ones((4, 2)), 0.5, np.random.default_rng(0))).sum(axis=0).tolist()
        [0, 2]
    """
    features = tuple(features)

    def corrupt(rows: NDArray[Any], proportion: float, rng: np.random.Generator) -> NDArray[Any]:
        columns = _columns(rows, features)
        if rows.dtype.kind not in "fiub" or (
            rows.dtype.kind != "f" and not np.can_cast(np.min_scalar_type(fill), rows.dtype)
        ):
            raise InputError(f"fill={fill} cannot be stored in rows of {rows.dtype}")
        changed = rows.copy()
        changed[np.ix_(_affected(rows, proportion, rng), columns)] = fill
        return changed

    return Corruption("missing feature", corrupt, _proportions("missing_feature", severities), "of rows")


def lagged_feature(features: Sequence[int], *, severities: Sequence[float] = (1, 2, 5, 10, 50)) -> Corruption:
    """Replace features by their values some rows earlier, as a late job does.

    Applies to rows (n, features) in order of time. The first rows, which have no earlier row, keep their values.

    Args:
        features: Column numbers; negative ones count from the end.
        severities: Lags in whole rows, at least 1.

    Returns:
        The corruption "lagged feature". Applied to rows without these columns, or to no more rows than the lag, it
        raises `InputError`.

    Raises:
        UsageError: A severity is not a whole number of at least 1.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.arange(4.0).reshape(4, 1)
        >>> ms.corruptions.lagged_feature([0]).at(rows, 2, np.random.default_rng(0)).ravel().tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    features = tuple(features)
    if not all(float(rows).is_integer() and rows >= 1 for rows in severities):
        raise UsageError(f"severities of lagged_feature must be whole numbers of at least 1, got {tuple(severities)}")

    def corrupt(rows: NDArray[Any], lag: float, _: np.random.Generator) -> NDArray[Any]:
        columns = _columns(rows, features)
        if lag >= len(rows):
            raise InputError(f"rows must be more than the lag of {lag:g}, got {len(rows)}")
        changed = rows.copy()
        changed[int(lag) :, columns] = rows[: -int(lag), columns]
        return changed

    return Corruption("lagged feature", corrupt, severities, "rows late")


def unit_error(features: Sequence[int], *, factor: float, severities: Sequence[float] = _PROPORTIONS) -> Corruption:
    """Multiply features by `factor` in a proportion of the rows, as a wrong unit does.

    Applies to rows (n, features) of integers or floats. Values that the dtype cannot hold become its limit.

    Args:
        features: Column numbers; negative ones count from the end.
        factor: 1000 turns meters into millimeters, for instance.
        severities: Proportions of affected rows, in (0, 1].

    Returns:
        The corruption "unit error". Applied to rows without these columns, or without numbers, it raises `InputError`.

    Raises:
        UsageError: A severity is not in (0, 1].

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> ms.corruptions.unit_error([0], factor=1000).at(np.ones((1, 2)), 1.0, np.random.default_rng(0)).tolist()
        [[1000.0, 1.0]]
    """
    features = tuple(features)

    def corrupt(rows: NDArray[Any], proportion: float, rng: np.random.Generator) -> NDArray[Any]:
        if rows.dtype.kind not in "fiu":
            raise InputError(f"unit_error needs rows of integers or floats, got {rows.dtype}")
        cells = np.ix_(_affected(rows, proportion, rng), _columns(rows, features))
        changed = rows.copy()
        info = np.finfo(rows.dtype) if rows.dtype.kind == "f" else np.iinfo(rows.dtype)
        changed[cells] = np.clip(rows[cells].astype(np.float64) * factor, float(info.min), float(info.max))
        return changed

    return Corruption("unit error", corrupt, _proportions("unit_error", severities), "of rows")


# Images and other signals on a grid. All take `low` and `high`, the range of a pixel, and clip to it. The severities
# are milder and stronger versions of the families of Hendrycks and Dietterich (2019, ICLR, "Benchmarking neural network
# robustness to common corruptions and perturbations").


def noise(*, low: float, high: float, severities: Sequence[float] = _RANGE_FRACTIONS) -> Corruption:
    """Add independent Gaussian noise to every value.

    Applies to numeric rows (n, ...) of any shape.

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        severities: Standard deviations as fractions of `high - low`.

    Returns:
        The corruption "noise".

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> noise = ms.corruptions.noise(low=0, high=1)
        >>> bool(noise.at(np.full((1, 8, 8), 0.5), 0.1, np.random.default_rng(0)).std() > 0.05)
        True
    """
    width = _width(low, high)

    def corrupt(rows: NDArray[Any], fraction: float, rng: np.random.Generator) -> NDArray[Any]:
        return _clipped(rows + rng.normal(scale=fraction * width, size=rows.shape), rows, low, high)

    return Corruption("noise", corrupt, severities, "of range")


def blur(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.5)
) -> Corruption:
    """Blur each image with a Gaussian filter.

    Applies to numeric rows (n, ..., height, width), or to others with `axes`. Beyond the edge, the nearest pixel is
    repeated (`scipy.ndimage.gaussian_filter`, mode "nearest").

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        axes: Height and width among the axes of the rows.
        severities: Standard deviations of the filter, in pixels.

    Returns:
        The corruption "blur". Applied to rows without these axes, it raises `InputError`.

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> blur = ms.corruptions.blur(low=0, high=1)
        >>> bool(blur.at(np.eye(8)[None], 1.0, np.random.default_rng(0)).max() < 0.7)
        True
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], sigma: float, _: np.random.Generator) -> NDArray[Any]:
        from scipy.ndimage import gaussian_filter

        blurred = gaussian_filter(rows.astype(np.float64), sigma, mode="nearest", axes=_spatial(rows, axes))
        return _clipped(blurred, rows, low, high)

    return Corruption("blur", corrupt, severities, "px")


def shift(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0)
) -> Corruption:
    """Shift each image in a random direction of its own.

    Applies to numeric rows (n, ..., height, width), or to others with `axes`. New pixels at the edge are `low`; between
    pixels it interpolates bilinearly (`scipy.ndimage.shift`, order 1).

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        axes: Height and width among the axes of the rows.
        severities: Distances in pixels; fractions of a pixel are allowed.

    Returns:
        The corruption "shift". Applied to rows without these axes, it raises `InputError`.

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> shift = ms.corruptions.shift(low=0, high=1)
        >>> bool(shift.at(np.eye(8)[None], 2.0, np.random.default_rng(0)).sum() < 8)
        True
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], pixels: float, rng: np.random.Generator) -> NDArray[Any]:
        from scipy import ndimage

        spatial = _spatial(rows, axes)
        shifted = np.empty(rows.shape)
        for index, angle in enumerate(rng.uniform(0, 2 * math.pi, len(rows))):
            offsets = np.zeros(rows.ndim - 1)
            offsets[[axis - 1 for axis in spatial]] = pixels * math.sin(angle), pixels * math.cos(angle)
            shifted[index] = ndimage.shift(rows[index].astype(np.float64), offsets, order=1, mode="constant", cval=low)
        return _clipped(shifted, rows, low, high)

    return Corruption("shift", corrupt, severities, "px")


def rotation(
    *, low: float, high: float, axes: Axes = (-2, -1), severities: Sequence[float] = (5.0, 10.0, 15.0, 20.0, 30.0)
) -> Corruption:
    """Rotate each image about its center, left or right at random.

    Applies to numeric rows (n, ..., height, width), or to others with `axes`. New pixels in the corners are `low`;
    between pixels it interpolates bilinearly (`scipy.ndimage.rotate`, order 1).

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        axes: Height and width among the axes of the rows.
        severities: Angles in degrees.

    Returns:
        The corruption "rotation". Applied to rows without these axes, it raises `InputError`.

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rotation = ms.corruptions.rotation(low=0, high=1, severities=[90])
        >>> rotation.at(np.array([[[1, 0], [0, 0]]]), 90, np.random.default_rng(0)).sum().item()
        1
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], degrees: float, rng: np.random.Generator) -> NDArray[Any]:
        from scipy import ndimage

        plane = tuple(axis - 1 for axis in _spatial(rows, axes))
        rotated = np.empty(rows.shape)
        for index, sign in enumerate(rng.choice((-1, 1), len(rows))):
            image = rows[index].astype(np.float64)
            rotated[index] = ndimage.rotate(
                image, sign * degrees, axes=plane, reshape=False, order=1, mode="constant", cval=low
            )
        return _clipped(rotated, rows, low, high)

    return Corruption("rotation", corrupt, severities, "°")


def brightness(*, low: float, high: float, severities: Sequence[float] = _RANGE_FRACTIONS) -> Corruption:
    """Add one constant to every value.

    Applies to numeric rows (n, ...) of any shape.

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        severities: Constants as fractions of `high - low`; negative ones darken.

    Returns:
        The corruption "brightness".

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> brightness = ms.corruptions.brightness(low=0, high=10)
        >>> brightness.at(np.array([[0, 9]]), 0.2, np.random.default_rng(0)).tolist()
        [[2, 10]]
    """
    width = _width(low, high)

    def corrupt(rows: NDArray[Any], fraction: float, _: np.random.Generator) -> NDArray[Any]:
        return _clipped(rows + fraction * width, rows, low, high)

    return Corruption("brightness", corrupt, severities, "of range")


def contrast(*, low: float, high: float, severities: Sequence[float] = (0.8, 0.6, 0.4, 0.3, 0.2)) -> Corruption:
    """Reduce the contrast of each image around its own mean.

    Applies to numeric rows (n, ...) of any shape.

    Args:
        low: Least possible value of a pixel; results are clipped to it.
        high: Greatest possible value of a pixel.
        severities: Remaining fractions of the contrast; 1 changes nothing.

    Returns:
        The corruption "contrast".

    Raises:
        UsageError: `low` and `high` are not finite or not in this order.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> contrast = ms.corruptions.contrast(low=0, high=10)
        >>> contrast.at(np.array([[0, 10]]), 0.2, np.random.default_rng(0)).tolist()
        [[4, 6]]
    """
    _width(low, high)

    def corrupt(rows: NDArray[Any], fraction: float, _: np.random.Generator) -> NDArray[Any]:
        mean = rows.reshape(len(rows), -1).mean(axis=1).reshape((-1,) + (1,) * (rows.ndim - 1))
        return _clipped(mean + fraction * (rows - mean), rows, low, high)

    return Corruption("contrast", corrupt, severities, "left")


def _affected(rows: NDArray[Any], proportion: float, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.permutation(len(rows))[: round(proportion * len(rows))]


def _proportions(name: str, severities: Sequence[float]) -> Sequence[float]:
    if not all(0 < proportion <= 1 for proportion in severities):
        raise UsageError(f"severities of {name} must be proportions of rows in (0, 1], got {tuple(severities)}")
    return severities


def _columns(rows: NDArray[Any], features: tuple[int, ...]) -> NDArray[np.intp]:
    if rows.ndim != 2:
        raise InputError(f"features are columns of rows (n, features), got rows of shape {rows.shape}")
    invalid = [feature for feature in features if not -rows.shape[1] <= feature < rows.shape[1]]
    if invalid or not features:
        raise InputError(f"features must be columns of rows with {rows.shape[1]} features, got {invalid}")
    columns: NDArray[np.intp] = np.array(features, dtype=np.intp) % rows.shape[1]
    return columns


def _clipped(values: NDArray[np.float64], like: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return `values` clipped to [low, high], in the dtype of `like`; integers are rounded."""
    clipped = np.clip(values, low, high)
    corrupted: NDArray[Any] = (np.rint(clipped) if like.dtype.kind in "iu" else clipped).astype(like.dtype)
    return corrupted


def _width(low: float, high: float) -> float:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"low and high must be the finite range of a pixel (0 and 255, for instance), got {low}, {high}"
        )
    return high - low


def _spatial(rows: NDArray[Any], axes: Axes) -> tuple[int, int]:
    if not all(-rows.ndim <= axis < rows.ndim for axis in axes):
        raise InputError(f"axes {axes} do not exist in rows of shape {rows.shape}: an image has a height and a width")
    first, second = (axis % rows.ndim for axis in axes)
    if 0 in (first, second) or first == second:
        raise InputError(f"axes {axes} of rows of shape {rows.shape} must be two different axes, and not the first one")
    return first, second
