"""What happens to rows on their way to a model, at graded severities, without changing what they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError

# One corruption: a change of rows that leaves their labels as they are, and how much of it.


Corrupt = Callable[[NDArray[Any], float, np.random.Generator], NDArray[Any]]
"""Rows (n, ...), a severity and a generator, to rows of the same shape and dtype; the rows given stay as they are."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A named change of rows at `severities`, mildest first, told in `unit`; made by the functions of this room."""

    name: str
    severities: tuple[float, ...]
    unit: str
    corrupt: Corrupt

    def __post_init__(self) -> None:
        if not self.severities or not all(map(math.isfinite, self.severities)):
            raise UsageError(f"{self.name} needs severities, finite numbers, not {self.severities}")
        if len(set(self.severities)) < len(self.severities):
            raise UsageError(f"{self.name} names a severity twice: {self.severities}")

    def at(self, rows: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
        """The `rows` (n, ...) corrupted, of the same shape and dtype; InputError where the function returns others."""
        corrupted = np.asarray(self.corrupt(rows, severity, rng))
        if corrupted.shape != rows.shape or corrupted.dtype != rows.dtype:
            raise InputError(
                f"{self.name} makes rows of shape {corrupted.shape} and dtype {corrupted.dtype} of rows of shape "
                f"{rows.shape} and dtype {rows.dtype}: a corruption changes neither"
            )
        return corrupted

    def label(self, severity: float) -> str:
        """The name and one severity: "blur 1 px"."""
        return f"{self.name} {severity:g}" + (f" {self.unit}" if self.unit else "")


def corruption(name: str, corrupt: Corrupt, severities: Sequence[float], *, unit: str = "") -> Corruption:
    """Your own corruption: `corrupt(rows, severity, rng)` returns changed rows of the same shape and dtype.

    >>> flipped = corruption("flipped", lambda rows, share, rng: np.where(rng.random(len(rows))[:, None] < share,
    ...                                                                   rows[:, ::-1], rows), [0.1, 0.5])
    """
    return Corruption(name, tuple(map(float, severities)), unit, corrupt)


def in_range(values: NDArray[np.float64], like: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """`values` clipped to [low, high] in the dtype of `like`; whole numbers are rounded."""
    kept = np.clip(values, low, high)
    corrupted: NDArray[Any] = (np.rint(kept) if like.dtype.kind in "iu" else kept).astype(like.dtype)
    return corrupted


# Corruptions of a table's columns, (n, features): what a broken join, a late job or a wrong unit make of them.


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


# Corruptions of images and other signals on a grid, in the units of their pixels.
#
# All of them take `low` and `high`, the range of a pixel, and keep to it. The severities are milder and stronger
# versions
# of the families that Hendrycks and Dietterich (2019, ICLR, "Benchmarking neural network robustness to common
# corruptions
# and perturbations") found in practice; a team that knows its cameras gives its own.


Axes = tuple[int, int]
_SHARES_images = (0.05, 0.1, 0.2, 0.3, 0.4)


def noise(*, low: float, high: float, severities: Sequence[float] = _SHARES_images) -> Corruption:
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


def brightness(*, low: float, high: float, severities: Sequence[float] = _SHARES_images) -> Corruption:
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
