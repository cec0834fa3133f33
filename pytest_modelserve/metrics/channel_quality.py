"""Signal quality by channel: powers of signal and noise, destroyed channels, and quality row by row."""

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
    feature_axes,
    few_values_factor,
)
from pytest_modelserve.metrics.losses import SUM_TOLERANCE


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
MIN_VALUES = 4


@dataclass(slots=True, eq=False)
class ChannelPowers:
    """Sums over the `values` values of each channel of one axis, (channels,), and the ranges of both models."""

    values: int
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    candidate: NDArray[np.float64]
    product: NDArray[np.float64]
    total: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    reference_low: NDArray[np.float64]
    reference_high: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> ChannelPowers:
        """Return the sums of `channels` channels without values."""
        lows, highs = np.full((2, channels), np.inf), np.full((2, channels), -np.inf)
        signal, noise, candidate, product, total = np.zeros((5, channels))
        return cls(0, signal, noise, candidate, product, total, lows[0], highs[0], lows[1], highs[1])

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
        self.reference_low = np.minimum(self.reference_low, reference.min(axis=others))
        self.reference_high = np.maximum(self.reference_high, reference.max(axis=others))
        self.values += reference.size // reference.shape[axis]

    def is_constant(self) -> NDArray[np.bool_]:
        """Return which channels hold one value in the candidate."""
        constant: NDArray[np.bool_] = self.low == self.high
        return constant

    def is_constant_in_reference(self) -> NDArray[np.bool_]:
        """Return which channels hold one value in the reference."""
        constant: NDArray[np.bool_] = self.reference_low == self.reference_high
        return constant

    def is_silent(self) -> NDArray[np.bool_]:
        """Return which channels have next to no signal beside the strongest one."""
        silent: NDArray[np.bool_] = self.signal <= self.signal.max() * NEGLIGIBLE**2
        return silent

    def is_destroyed(self) -> NDArray[np.bool_]:
        """Return which channels have a noise as large as their signal."""
        if self.values < MIN_VALUES:
            return np.zeros(len(self.signal), np.bool_)
        destroyed: NDArray[np.bool_] = (self.noise >= _DESTROYED * self.signal) & ~self.is_silent()
        return destroyed

    def is_lost(self) -> NDArray[np.bool_]:
        """Return which channels vary in the reference and are constant in the candidate."""
        if self.values < MIN_VALUES:
            return np.zeros(len(self.signal), np.bool_)
        varies = self._variation() > _VARIES**2 * self.signal
        lost: NDArray[np.bool_] = self.is_constant() & varies & ~self.is_silent()
        return lost

    def reference_power(self) -> NDArray[np.float64]:
        """Return the power with which the noise of each channel is compared."""
        power = self.signal * _POWER_ALLOWANCE * few_values_factor(self.values) ** 2
        power = np.where(self.is_lost(), self._variation(), power)
        power = np.where(self.is_destroyed(), self.signal, power)
        return np.where(self.is_silent(), self.signal.mean(), power)

    def decibels(self) -> NDArray[np.float64]:
        """Return the signal-to-quantization-noise ratio of each channel."""
        return ratio_db(self.reference_power(), self.noise)

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


def is_distribution(array: NDArray[Any], axis: int) -> bool:
    """Return whether the values along `axis` are probabilities that add up to 1, so that they share one scale."""
    with np.errstate(invalid="ignore"):
        if not (array >= 0).all():
            return False
        return bool((np.abs(array.sum(axis=axis, dtype=np.float64) - 1) <= SUM_TOLERANCE).all())


def ratio_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 10 log10(signal / noise): inf without noise, -inf without signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise == 0, np.inf, 10 * (np.log10(signal) - np.log10(noise)))


@dataclass(slots=True)
class RowSignalQuality:
    """Power of the signal and of the noise of one output in each row, and by axis in each channel of each row.

    Axes of another size in another batch hold no channels, nor do those over which the output is a distribution.
    """

    signals: list[NDArray[np.float64]] = field(default_factory=list)
    noises: list[NDArray[np.float64]] = field(default_factory=list)
    channels: dict[int, ChannelPowers] = field(default_factory=dict)
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
                self.channels[axis], self.by_row[axis] = ChannelPowers.empty(expected.shape[axis]), []
        for axis in list(self.channels):
            if not self._has_channels(axis, expected):
                del self.channels[axis]
                continue
            self.channels[axis].add(expected + error, expected, axis)
            others = tuple(each for each in range(1, expected.ndim) if each != axis)
            self.by_row[axis].append(np.stack([np.square(each).sum(axis=others) for each in (expected, error)]))

    def _has_channels(self, axis: int, expected: NDArray[np.float64]) -> bool:
        is_same = axis in feature_axes(expected.shape) and expected.shape[axis] == len(self.channels[axis].signal)
        return is_same and not is_distribution(expected, axis)

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
        rows = ratio_db(signal[signal > 0], noise[signal > 0])
        return float(max(np.median(rows), ratio_db(signal.sum(keepdims=True), noise.sum(keepdims=True))[0]))

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
                    by_row = ratio_db(signal[has_signal, index], noise[has_signal, index])
                    found[index] = max(found[index], np.median(by_row))
            if powers.signal.any():
                figures[axis] = found
        return ChannelFigure.lowest(whole, figures)


def _row_powers(array: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.atleast_1d(array)
    powers: NDArray[np.float64] = np.square(rows).sum(axis=tuple(range(1, rows.ndim)))
    return powers
