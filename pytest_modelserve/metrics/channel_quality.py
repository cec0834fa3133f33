"""Signal quality by channel: the worst channel of an output, destroyed channels, and quality row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics.channels import (
    NEGLIGIBLE,
    Channel,
    by_channel,
    constant_channels,
    describe_channels,
    describe_constant_channels,
    feature_axes,
    few_values_factor,
)
from pytest_modelserve.metrics.losses import SUM_TOLERANCE
from pytest_modelserve.metrics.signal_quality import (
    check_pair,
    largest_magnitude,
    row_cosines,
    signal_to_quantization_noise_db,
)

_CHUNK = 2**16  # elements read at a time: 512 KiB as float64


@dataclass(frozen=True, slots=True)
class ChannelFigure:
    """The worst figure of an output and its channel, None for the output as a whole, whose own figure is `whole`."""

    value: float
    channel: Channel | None
    whole: float

    def below(self, limit: float) -> ChannelFigure:
        """Return the figure that fails `limit`: that of the output if it fails as a whole, else that of the channel."""
        return self if self.whole >= limit else ChannelFigure(self.whole, None, self.whole)

    @classmethod
    def lowest(cls, whole: float, channels: Mapping[int, NDArray[np.float64]]) -> ChannelFigure:
        """Return the lowest of `whole` and of the figures of all channels by axis."""
        worst = cls(whole, None, whole)
        for axis, figures in channels.items():
            index = int(figures.argmin())
            if figures[index] < worst.value:
                worst = cls(float(figures[index]), Channel(axis, index), whole)
        return worst


# The channels of a sound model differ by nature: the noise of the weakest is up to 12 dB (16 times the power) closer to
# its signal than that of the output, so that the ratio of a channel counts with 12 dB added. A destroyed one, whose
# noise has at least 0.8 of the power of its signal, has no such allowance. A channel that is constant in the candidate,
# and varies by more than 1 % of its magnitude in the reference, is destroyed as well: of it only the variation counts.
_POWER_ALLOWANCE = 16.0
_DESTROYED = 0.8
_VARIES = 0.01
# Fewer values can be small by chance without being destroyed.
_MIN_VALUES = 4


def channel_sqnr_db(candidate: NDArray[Any], reference: NDArray[Any]) -> ChannelFigure:
    """Return the smallest signal-to-quantization-noise ratio, in decibels, of an output `(n, ...)` or of its channels.

    A channel is an index of any axis but the first. The channels of a sound model differ by up to 12 dB, which are
    added to the ratio of each, unless its noise has 0.8 of the power of its signal or more: then it is destroyed. A
    channel without signal, below 1e-10 of the largest, is judged with that of the average channel. One of less than 16
    values can be small by chance and has more allowance. Channels over which the output is a distribution share one
    scale and are not judged separately.

    Raises:
        InputError: No elements, different shapes, NaN, infinities, or anything but real numbers.
    """
    powers = _SignalPowers.of(candidate, reference)
    whole = float(_ratio_db(np.array(powers.signal), np.array(powers.noise)))
    return ChannelFigure.lowest(whole, {axis: channels.decibels() for axis, channels in powers.axes.items()})


def channel_cosine(candidate: NDArray[Any], reference: NDArray[Any]) -> ChannelFigure:
    """Return the lowest cosine similarity of paired rows `(n, ...)` or of paired channels.

    The error of a channel has the allowance of `channel_sqnr_db`. InputError as there.
    """
    axes = _SignalPowers.of(candidate, reference).axes
    channels = {axis: powers.cosines() for axis, powers in axes.items() if powers.values >= _MIN_VALUES}
    return ChannelFigure.lowest(float(row_cosines(candidate, reference).min()), channels)


def destroyed_channel(candidate: NDArray[Any], reference: NDArray[Any]) -> str:
    """Return a sentence on channels that are constant in `candidate` alone and keep none of their signal; "" for none.

    Values that are not finite in `reference` do not count. Fewer than 4 values of a channel show nothing.
    """
    finite = np.isfinite(reference)
    if reference.ndim < 2 or not finite.any():
        return ""
    c, r = np.where(finite, candidate, 0), np.where(finite, reference, 0)
    for axis, powers in _SignalPowers.of(c, r).axes.items():
        lost = powers.is_lost() | (powers.is_destroyed() & constant_channels(c, axis))
        if lost.any() and not lost.all():
            return f"{describe_channels(axis, np.flatnonzero(lost).tolist())}: {_lost_range(c, r, axis, lost)}"
    return ""


def _lost_range(candidate: NDArray[Any], reference: NDArray[Any], axis: int, lost: NDArray[np.bool_]) -> str:
    """Return "channel 4 is 0 where the reference goes from 0.49 to 0.557", of the first lost channel."""
    first = int(lost.argmax())
    here, there = (by_channel(array, axis)[first].astype(np.float64) for array in (candidate, reference))
    return f"channel {first} is {here[0]:.4g} where the reference goes from {there.min():.4g} to {there.max():.4g}"


@dataclass(slots=True, eq=False)
class _ChannelPowers:
    """Sums over the `values` values of each channel of one axis, (channels,), and the range of the candidate."""

    values: int
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    candidate: NDArray[np.float64]
    product: NDArray[np.float64]
    total: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> _ChannelPowers:
        signal, noise, candidate, product, total = np.zeros((5, channels))
        low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
        return cls(0, signal, noise, candidate, product, total, low, high)

    def add(self, candidate: NDArray[np.float64], reference: NDArray[np.float64], axis: int) -> None:
        """Add the values of some rows; where the candidate is not finite, its noise is infinite."""
        others = tuple(each for each in range(reference.ndim) if each != axis)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.square(candidate - reference)
            self.noise += np.where(np.isnan(error), np.inf, error).sum(axis=others)
            self.candidate += np.square(candidate).sum(axis=others)
            self.product += (candidate * reference).sum(axis=others)
        self.signal += np.square(reference).sum(axis=others)
        self.total += reference.sum(axis=others)
        self.low = np.minimum(self.low, candidate.min(axis=others))
        self.high = np.maximum(self.high, candidate.max(axis=others))
        self.values += reference.size // reference.shape[axis]

    def is_silent(self) -> NDArray[np.bool_]:
        """Return which channels have next to no signal beside the strongest one."""
        silent: NDArray[np.bool_] = self.signal <= self.signal.max() * NEGLIGIBLE**2
        return silent

    def is_destroyed(self) -> NDArray[np.bool_]:
        """Return which channels have a noise as large as their signal."""
        if self.values < _MIN_VALUES:
            return np.zeros(len(self.signal), np.bool_)
        destroyed: NDArray[np.bool_] = (self.noise >= _DESTROYED * self.signal) & ~self.is_silent()
        return destroyed

    def is_lost(self) -> NDArray[np.bool_]:
        """Return which channels vary in the reference and are constant in the candidate."""
        if self.values < _MIN_VALUES:
            return np.zeros(len(self.signal), np.bool_)
        varies = self._variation() > _VARIES**2 * self.signal
        lost: NDArray[np.bool_] = (self.low == self.high) & varies & ~self.is_silent()
        return lost

    def reference_power(self) -> NDArray[np.float64]:
        """Return the power with which the noise of each channel is compared."""
        power = self.signal * _POWER_ALLOWANCE * few_values_factor(self.values) ** 2
        power = np.where(self.is_lost(), self._variation(), power)
        power = np.where(self.is_destroyed(), self.signal, power)
        return np.where(self.is_silent(), self.signal.mean(), power)

    def decibels(self) -> NDArray[np.float64]:
        """Return the signal-to-quantization-noise ratio of each channel."""
        return _ratio_db(self.reference_power(), self.noise)

    def cosines(self) -> NDArray[np.float64]:
        """Return the cosine similarity of each channel, the error reduced by the allowance; 1 without a signal."""
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = self.product / np.sqrt(self.signal * self.candidate)
            squares = (1 / cosines**2 - 1).clip(0) * self.signal / self.reference_power()
            cosines = np.where(cosines > 0, 1 / np.sqrt(1 + squares), cosines)
        cosines = np.where(self.candidate > 0, cosines, 0.0)
        return np.where(self.is_silent(), 1.0, cosines)

    def _variation(self) -> NDArray[np.float64]:
        """Return the power of the reference without its mean."""
        return np.maximum(self.signal - self.total**2 / max(self.values, 1), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _SignalPowers:
    """Power of the signal and of the noise of an output, and the powers of the channels of each axis."""

    signal: float
    noise: float
    axes: Mapping[int, _ChannelPowers]

    @classmethod
    def of(cls, candidate: NDArray[Any], reference: NDArray[Any]) -> _SignalPowers:
        check_pair(candidate, reference)
        # Powers are taken relative to the largest magnitude: squares of float64 overflow from 1e154 on.
        largest = max(largest_magnitude(candidate), largest_magnitude(reference)) or 1.0
        axes = {
            axis: _ChannelPowers.empty(reference.shape[axis])
            for axis in feature_axes(reference.shape)
            if not _is_distribution(reference, axis)
        }
        signal = noise = 0.0
        step = max(1, _CHUNK * len(reference) // reference.size)
        for start in range(0, len(reference), step):
            c, r = (array[start : start + step].astype(np.float64) / largest for array in (candidate, reference))
            signal += float(np.square(r).sum())
            noise += float(np.square(c - r).sum())
            for axis, powers in axes.items():
                powers.add(c, r, axis)
        return cls(signal, noise, axes)


def _is_distribution(array: NDArray[Any], axis: int) -> bool:
    """Return whether the values along `axis` are probabilities that add up to 1, so that they share one scale."""
    with np.errstate(invalid="ignore"):
        if not (array >= 0).all():
            return False
        return bool((np.abs(array.sum(axis=axis, dtype=np.float64) - 1) <= SUM_TOLERANCE).all())


def _ratio_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 10 log10(signal / noise): inf without noise, -inf without signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise == 0, np.inf, 10 * (np.log10(signal) - np.log10(noise)))


def describe_channels_of(candidate: NDArray[Any], reference: NDArray[Any]) -> tuple[str, ...]:
    """Return sentences on channels that are constant in one of two outputs of real numbers.

    Constant in the candidate only, a channel is destroyed; constant in the reference, its change cannot be judged.
    """
    sentences = []
    for axis in feature_axes(reference.shape):
        lost = constant_channels(candidate, axis) & ~constant_channels(reference, axis)
        if lost.any():
            sentences.append(
                f"{describe_channels(axis, np.flatnonzero(lost).tolist())}: constant in the candidate and not in the "
                f"reference; {_lost_range(candidate, reference, axis, lost)}"
            )
    constant = describe_constant_channels(reference)
    return (*sentences, *([f"{constant}, so that they show nothing about it"] if constant else ()))


def worst_sqnr_db(candidate: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> float:
    """Return the smallest `channel_sqnr_db` of the floating outputs, in decibels; inf without any.

    It covers the values that are finite in `reference`; -inf where one of these is not finite in `candidate`.
    """
    return min(
        (_finite_sqnr_db(candidate[name], array) for name, array in reference.items() if array.dtype.kind == "f"),
        default=math.inf,
    )


def _finite_sqnr_db(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    finite = np.isfinite(reference)
    if not finite.any():
        return math.inf
    if not np.isfinite(candidate[finite]).all():
        return -math.inf
    if reference.ndim == 0:
        return signal_to_quantization_noise_db(candidate[finite], reference[finite])
    return channel_sqnr_db(np.where(finite, candidate, 0), np.where(finite, reference, 0)).value


@dataclass(slots=True)
class RowSignalQuality:
    """Power of the signal and of the noise of one output in each row, and by axis in each channel of each row.

    Axes of another size in another batch hold no channels, nor do those over which the output is a distribution.
    """

    signals: list[NDArray[np.float64]] = field(default_factory=list)
    noises: list[NDArray[np.float64]] = field(default_factory=list)
    channels: dict[int, _ChannelPowers] = field(default_factory=dict)
    by_row: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, candidate: NDArray[Any], reference: NDArray[Any]) -> None:
        """Add rows `(n, ...)` where `reference` is finite; there, other values of `candidate` are infinite noise."""
        finite = np.isfinite(reference)
        expected = np.where(finite, reference, 0).astype(np.float64)
        error = np.where(finite, candidate, 0).astype(np.float64) - expected
        error = np.where(np.isfinite(error), error, np.inf)
        is_first = not self.signals
        self.signals.append(_row_powers(expected))
        self.noises.append(_row_powers(error))
        for axis in feature_axes(expected.shape):
            if is_first:
                self.channels[axis], self.by_row[axis] = _ChannelPowers.empty(expected.shape[axis]), []
        for axis in list(self.channels):
            if not self._has_channels(axis, expected):
                del self.channels[axis]
                continue
            self.channels[axis].add(expected + error, expected, axis)
            others = tuple(each for each in range(1, expected.ndim) if each != axis)
            self.by_row[axis].append(np.stack([np.square(each).sum(axis=others) for each in (expected, error)]))

    def _has_channels(self, axis: int, expected: NDArray[np.float64]) -> bool:
        is_same = axis in feature_axes(expected.shape) and expected.shape[axis] == len(self.channels[axis].signal)
        return is_same and not _is_distribution(expected, axis)

    @property
    def sqnr_db(self) -> float:
        """The larger of two ratios, in decibels: that of all rows together, and the median over rows with a signal.

        inf where no row has a signal. Either can be low in a sound model. That of all rows is low where calibration
        clips one outlying row, as "entropy" and "percentile" do; the median is low where most rows are tiny compared
        with the important ones, as scores of rare events are.
        """
        signal, noise = np.concatenate(self.signals or [np.zeros(0)]), np.concatenate(self.noises or [np.zeros(0)])
        if not signal.any():
            return math.inf
        rows = _ratio_db(signal[signal > 0], noise[signal > 0])
        return float(max(np.median(rows), _ratio_db(signal.sum(keepdims=True), noise.sum(keepdims=True))[0]))

    def worst(self) -> ChannelFigure:
        """Return the smallest figure: that of the output, or of one of its channels as `channel_sqnr_db` judges it.

        Of a channel, too, the median over rows counts if it is larger.
        """
        whole = self.sqnr_db
        figures = {}
        for axis, powers in self.channels.items():
            found, is_lost = powers.decibels(), powers.is_lost()
            signal, noise = np.concatenate(self.by_row[axis], axis=1)
            for index in np.flatnonzero(found < whole):
                has_signal = signal[:, index] > 0
                if has_signal.any() and not is_lost[index]:
                    by_row = _ratio_db(signal[has_signal, index], noise[has_signal, index])
                    found[index] = max(found[index], np.median(by_row))
            if powers.signal.any():
                figures[axis] = found
        return ChannelFigure.lowest(whole, figures)


def _row_powers(array: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.atleast_1d(array)
    powers: NDArray[np.float64] = np.square(rows).sum(axis=tuple(range(1, rows.ndim)))
    return powers
