"""Channels of an output: the indices of every axis but the first, each with its own scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LISTED = 5
# Axes with more indices hold positions, such as samples of audio, and no channels.
_MAX_CHANNELS = 2**16
# From so many values on, the magnitude of a channel is known: 16 normal values are all below 0.4 standard deviations
# once in 10,000 channels.
KNOWN_VALUES = 16
# A channel that is so small beside the largest value holds a residue, such as the exponential of a masked score. A
# price of 60,000 and a variance of 1e-5 are both a signal.
NEGLIGIBLE = 1e-10


@dataclass(frozen=True, slots=True)
class Channel:
    """One index of an axis that does not hold the rows."""

    axis: int
    index: int

    def __str__(self) -> str:
        return f"channel {self.index} of axis {self.axis}"


def channel_axes(shape: Sequence[int | None]) -> tuple[int, ...]:
    """Return the axes of an output that hold channels: all but the first, which holds the rows.

    An axis with one index is the whole output.
    """
    return tuple(axis for axis in range(1, len(shape)) if 1 < (shape[axis] or 0) <= _MAX_CHANNELS)


def feature_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of `channel_axes` that hold features and no positions of an image or a volume.

    Of up to three axes, all but the first do. Of more, axis 1 does, and the last one behind two equal sizes or if it is
    smaller than the one before it; in (n, h, h, c) axis 1 does not. A pixel that never holds an object is not lost.
    """
    axes = channel_axes(shape)
    if len(shape) <= 3:
        return axes
    before, width, last = shape[-3:]
    is_last = last != width and (before == width or last < width)
    is_first = len(shape) > 4 or not (shape[1] == shape[2] != shape[3])
    return tuple(axis for axis in axes if (axis == 1 and is_first) or (axis == len(shape) - 1 and is_last))


def describe_channels(axis: int, indices: Sequence[int]) -> str:
    """Return "channel 4 of axis 1", or up to five: "channels 4, 5, 6, 7, 8 and 3 more of axis 1"."""
    if len(indices) == 1:
        return str(Channel(axis, indices[0]))
    more = f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else ""
    return f"channels {', '.join(map(str, indices[:_LISTED]))}{more} of axis {axis}"


def few_values_factor(values: int) -> float:
    """Return the factor by which the magnitude of a channel with few values may be too small by chance.

    `values` normal numbers are all below 1 / factor standard deviations once in 10,000 channels: the probability of one
    is about 0.8 / factor, so that the factor is about 10 ** (4 / values). From 16 values on it is 1.
    """
    return 1.0 if values >= KNOWN_VALUES else float(10 ** (4 / max(values, 1)))


def by_channel(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return `array` as one row a channel of `axis`, (channels, values)."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelValues:
    """A value of an output, at least as large as those of all its channels, which `axes` holds by axis."""

    largest: float
    axes: Mapping[int, NDArray[np.float64]]

    def for_shape(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return the value of each element of an output of `shape`, as an array that broadcasts to it.

        An element belongs to one channel of each axis and has the smallest of their values. An axis whose size is not
        the known one does not count.
        """
        smallest = np.full((1,) * len(shape), self.largest)
        for axis, values in self.axes.items():
            if axis < len(shape) and shape[axis] == len(values):
                smallest = np.minimum(smallest, values.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
        return smallest

    def smallest(self) -> tuple[float, Channel | None]:
        """Return the smallest value of a channel, and that channel; None if none is smaller than that of the output."""
        found: tuple[float, Channel | None] = (self.largest, None)
        for axis, own in self.axes.items():
            index = int(own.argmin())
            if own[index] < found[0]:
                found = float(own[index]), Channel(axis, index)
        return found


def channel_scale(*runs: NDArray[Any]) -> ChannelValues:
    """Return the largest finite magnitude of a real output and of each of its channels, over several runs.

    A channel of few values has `few_values_factor` times its magnitude, at most that of the output. A channel of zeros
    has no scale of its own, nor has one below 1e-10 of the largest value: it has that of the output. An axis whose size
    is not the same in all runs holds no channels.
    """
    sizes = [np.abs(run.astype(np.float64)) for run in runs]
    sizes = [np.where(np.isfinite(size), size, 0.0) for size in sizes]
    largest = max((float(size.max(initial=0.0)) for size in sizes), default=0.0)
    axes = {}
    for axis in channel_axes(runs[0].shape) if largest else ():
        if all(run.ndim == runs[0].ndim and run.shape[axis] == runs[0].shape[axis] for run in runs):
            own = np.max([by_channel(size, axis).max(axis=1, initial=0.0) for size in sizes], axis=0)
            values = sum(run.size for run in runs) // runs[0].shape[axis]
            is_residue = own <= NEGLIGIBLE * largest
            axes[axis] = np.where(is_residue, largest, np.minimum(own * few_values_factor(values), largest))
    return ChannelValues(largest, axes)


def constant_channels(array: NDArray[Any], axis: int) -> NDArray[np.bool_]:
    """Return whether each channel of `axis` holds one value only, (channels,)."""
    values = by_channel(array, axis)
    constant: NDArray[np.bool_] = (values == values[:, :1]).all(axis=1)
    return constant


def describe_constant_channels(array: NDArray[Any]) -> str:
    """Return a sentence that names the constant channels of an output, whose change the rows cannot show; "" for none.

    An output that is constant as a whole has none, nor has one of a single row.
    """
    constant = {axis: constant_channels(array, axis) for axis in feature_axes(array.shape)}
    return describe_constant(constant, rows=len(array) if array.ndim else 0)


def describe_constant(channels: Mapping[int, NDArray[np.bool_]], *, rows: int) -> str:
    """Return the sentence of `describe_constant_channels` from the constant channels of each axis."""
    found = [
        describe_channels(axis, np.flatnonzero(constant).tolist())
        for axis, constant in channels.items()
        if rows > 1 and constant.any() and not constant.all()
    ]
    if not found:
        return ""
    return (
        f"{' and '.join(found)} {'is' if found[0].startswith('channel ') and len(found) == 1 else 'are'} constant "
        "on these rows"
    )


def count_by_channel(places: NDArray[np.intp], shape: Sequence[int]) -> dict[int, dict[int, int]]:
    """Return how many of the flat indices `places` lie in each channel: axis to index to count, without zeros."""
    axes = channel_axes(shape)
    where = np.unravel_index(places, tuple(shape)) if axes else ()
    counts = {}
    for axis in axes:
        indices, found = np.unique(where[axis], return_counts=True)
        counts[axis] = dict(zip(indices.tolist(), found.tolist(), strict=True))
    return counts


def add_counts(
    first: Mapping[int, Mapping[int, int]], second: Mapping[int, Mapping[int, int]]
) -> dict[int, dict[int, int]]:
    """Return the sums of two results of `count_by_channel`."""
    sums = {axis: dict(counts) for axis, counts in first.items()}
    for axis, counts in second.items():
        own = sums.setdefault(axis, {})
        for index, count in counts.items():
            own[index] = own.get(index, 0) + count
    return sums


def narrowest(counts: Mapping[int, Mapping[int, int]], shape: Sequence[int | None]) -> tuple[int, list[int]] | None:
    """Return the axis and channels to which the fewest channels belong, None if every channel of every axis does.

    Of equal numbers the axis counts that usually holds the channels: the last of up to three, else axis 1.
    """
    usual = len(shape) - 1 if len(shape) <= 3 else 1
    partial: Iterator[tuple[int, bool, int]] = (
        (len(found), axis != usual, axis) for axis, found in counts.items() if found and len(found) < (shape[axis] or 0)
    )
    best = min(partial, default=None)
    return None if best is None else (best[2], sorted(counts[best[2]]))
