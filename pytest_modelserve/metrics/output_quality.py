"""Quality of one output over rows that arrive in parts: SQNR, cosine similarity, agreement and KL divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics.channel_quality import (
    MIN_VALUES,
    ChannelFigure,
    ChannelPowers,
    is_distribution,
    ratio_db,
)
from pytest_modelserve.metrics.channels import describe_channels, describe_constant, feature_axes
from pytest_modelserve.metrics.losses import Scores
from pytest_modelserve.metrics.signal_quality import (
    MarginAgreement,
    MarginCounts,
    check_pair,
    kl_divergences,
    largest_magnitude,
    row_cosines,
    signal_to_quantization_noise_db,
    top1_matches,
)

_CHUNK = 2**16  # elements read at a time: 512 KiB as float64
# Squares and their sums neither overflow nor underflow between these magnitudes.
_SMALLEST, _LARGEST = 1e-100, 1e100


@dataclass(frozen=True, slots=True)
class Wanted:
    """The figures to compute besides the powers: cosines, agreement, and KL divergence of these `scores`."""

    cosine: bool = False
    agreement: bool = False
    min_margin: float | None = None
    scores: Scores | None = None


@dataclass(slots=True, eq=False)
class OutputQuality:
    """Figures of one output `(n, ...)` of two models; they do not depend on how its rows are divided into parts.

    Rows are summed in chunks of a fixed size, whatever the parts, so that every figure is equal to the last bit. Values
    are divided by `scale`, a power of two, which is 1 unless their squares leave float64 (`needs_scale`).
    """

    wanted: Wanted = Wanted()
    scale: float = 1.0
    rows: int = 0
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    lowest_cosine: float = math.inf
    matches: int = 0
    decisions: int = 0
    margins: MarginCounts | None = None
    divergence: float = 0.0
    distributions: int = 0
    axes: dict[int, ChannelPowers] = field(default_factory=dict)
    _is_distribution: dict[int, bool] = field(default_factory=dict)
    _rest: tuple[NDArray[Any], NDArray[Any]] | None = None

    @classmethod
    def of(cls, candidate: NDArray[Any], reference: NDArray[Any], wanted: Wanted | None = None) -> OutputQuality:
        """Return the figures of all rows; InputError as `add`."""
        check_pair(candidate, reference)
        largest = max(largest_magnitude(candidate), largest_magnitude(reference))
        scale = 1.0 if not largest or _SMALLEST < largest < _LARGEST else 2.0 ** (math.frexp(largest)[1] - 1)
        found = cls(wanted or Wanted(), scale)
        found.add(candidate, reference)
        return found

    @property
    def needs_scale(self) -> bool:
        """Whether the squares of these values need another scale, which `of` gives them."""
        scaled = self.largest / self.scale
        return scaled > 0 and not _SMALLEST < scaled < _LARGEST

    def add(self, candidate: NDArray[Any], reference: NDArray[Any]) -> None:
        """Add rows of both models.

        InputError for no elements, different shapes, NaN, infinities, anything but real numbers, and what a wanted
        figure does not apply to.
        """
        check_pair(candidate, reference)
        self.rows += len(reference)
        for c, r in self._chunks(candidate, reference):
            self._add_chunk(c, r)

    def _chunks(self, candidate: NDArray[Any], reference: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield all rows in chunks, but for the last ones, which do not fill one."""
        step = max(1, _CHUNK * len(reference) // reference.size)
        if self._rest is not None:
            candidate, reference = (
                np.concatenate(pair) for pair in zip(self._rest, (candidate, reference), strict=True)
            )
        full = len(reference) // step * step
        for start in range(0, full, step):
            yield candidate[start : start + step], reference[start : start + step]
        self._rest = (candidate[full:].copy(), reference[full:].copy()) if full < len(reference) else None

    def finish(self) -> OutputQuality:
        """Add the rows that do not fill a chunk, after the last part."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            self._add_chunk(*rest)
        return self

    def _add_chunk(self, candidate: NDArray[Any], reference: NDArray[Any]) -> None:
        self.largest = max(self.largest, largest_magnitude(candidate), largest_magnitude(reference))
        c, r = (array.astype(np.float64, order="C") / self.scale for array in (candidate, reference))
        self.signal += float(np.square(r).sum())
        self.noise += float(np.square(c - r).sum())
        for axis in feature_axes(reference.shape):
            powers = self.axes.setdefault(axis, ChannelPowers.empty(reference.shape[axis]))
            powers.add(c, r, axis)
            self._is_distribution[axis] = self._is_distribution.get(axis, True) and is_distribution(reference, axis)
        if self.wanted.cosine:
            self.lowest_cosine = min(self.lowest_cosine, float(row_cosines(candidate, reference).min()))
        if self.wanted.agreement:
            matches = top1_matches(candidate, reference)
            self.matches, self.decisions = self.matches + int(matches.sum()), self.decisions + matches.size
        if self.wanted.min_margin is not None:
            counts = MarginCounts.of(candidate, reference, min_margin=self.wanted.min_margin)
            self.margins = counts if self.margins is None else self.margins.merged(counts)
        if self.wanted.scores is not None:
            divergences = kl_divergences(candidate, reference, scores=self.wanted.scores)
            self.divergence, self.distributions = (
                self.divergence + float(divergences.sum()),
                self.distributions + divergences.size,
            )

    # Figures, after `finish`.

    @property
    def channels(self) -> Mapping[int, ChannelPowers]:
        """The powers of the channels of each axis over which the output is no distribution, which shares one scale."""
        return {axis: powers for axis, powers in self.axes.items() if not self._is_distribution[axis]}

    def sqnr_db(self) -> ChannelFigure:
        """Return the smallest signal-to-quantization-noise ratio of the output or of one of its channels."""
        whole = float(ratio_db(np.array(self.signal), np.array(self.noise)))
        return ChannelFigure.lowest(whole, {axis: powers.decibels() for axis, powers in self.channels.items()})

    def cosine(self) -> ChannelFigure:
        """Return the lowest cosine similarity of paired rows or of paired channels."""
        channels = {axis: powers.cosines() for axis, powers in self.channels.items() if powers.values >= MIN_VALUES}
        return ChannelFigure.lowest(self.lowest_cosine, channels)

    def agreement(self) -> float:
        """Return the proportion of rows with the same top class."""
        return self.matches / self.decisions

    def agreement_by_margin(self) -> MarginAgreement:
        """Return the agreement of the rows with a clear reference margin; InputError if there are none."""
        assert self.margins is not None
        return self.margins.agreement()

    def mean_kl(self) -> float:
        """Return the mean Kullback-Leibler divergence of the rows, in nats."""
        return self.divergence / self.distributions

    def describe_channels(self) -> tuple[str, ...]:
        """Return sentences on channels that are constant in one of the two models.

        Constant in the candidate only, a channel is destroyed; constant in the reference, its change cannot be judged.
        """
        sentences = []
        for axis, powers in self.axes.items():
            lost = powers.is_constant() & ~powers.is_constant_in_reference()
            if lost.any():
                sentences.append(
                    f"{describe_channels(axis, np.flatnonzero(lost).tolist())}: constant in the candidate and not in "
                    f"the reference; {self.lost_range(axis, lost)}"
                )
        constant = describe_constant(
            {axis: powers.is_constant_in_reference() for axis, powers in self.axes.items()}, rows=self.rows
        )
        return (*sentences, *([f"{constant}, so that they show nothing about it"] if constant else ()))

    def lost_range(self, axis: int, lost: NDArray[np.bool_]) -> str:
        """Return "channel 4 is 0 where the reference goes from 0.49 to 0.557", of the first lost channel."""
        first, powers = int(lost.argmax()), self.axes[axis]
        here, low, high = (
            float(values[first] * self.scale) for values in (powers.low, powers.reference_low, powers.reference_high)
        )
        return f"channel {first} is {here:.4g} where the reference goes from {low:.4g} to {high:.4g}"


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
    return OutputQuality.of(candidate, reference).finish().sqnr_db()


def channel_cosine(candidate: NDArray[Any], reference: NDArray[Any]) -> ChannelFigure:
    """Return the lowest cosine similarity of paired rows `(n, ...)` or of paired channels.

    The error of a channel has the allowance of `channel_sqnr_db`. InputError as there.
    """
    return OutputQuality.of(candidate, reference, Wanted(cosine=True)).finish().cosine()


def describe_channels_of(candidate: NDArray[Any], reference: NDArray[Any]) -> tuple[str, ...]:
    """Return sentences on channels that are constant in one of two outputs; see `OutputQuality.describe_channels`."""
    return OutputQuality.of(candidate, reference).finish().describe_channels()


def destroyed_channel(candidate: NDArray[Any], reference: NDArray[Any]) -> str:
    """Return a sentence on channels that are constant in `candidate` alone and keep none of their signal; "" for none.

    Values that are not finite in `reference` do not count. Fewer than 4 values of a channel show nothing.
    """
    finite = np.isfinite(reference)
    if reference.ndim < 2 or not finite.any():
        return ""
    found = OutputQuality.of(np.where(finite, candidate, 0), np.where(finite, reference, 0)).finish()
    for axis, powers in found.channels.items():
        lost = powers.is_lost() | (powers.is_destroyed() & powers.is_constant())
        if lost.any() and not lost.all():
            return f"{describe_channels(axis, np.flatnonzero(lost).tolist())}: {found.lost_range(axis, lost)}"
    return ""


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
