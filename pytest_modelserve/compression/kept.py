"""How much of a model's signal is left in the outputs of another form of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.numerics import signal_to_quantization_noise_db


def worst_sqnr_db(candidate: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> float:
    """The least signal-to-quantization-noise ratio of the floating outputs, in decibels; inf where there are none.

    Each is of all values that are finite in `reference`; -inf where one of these is not in `candidate`.
    """
    return min(
        (_finite_sqnr_db(candidate[name], array) for name, array in reference.items() if array.dtype.kind == "f"),
        default=math.inf,
    )


def _finite_sqnr_db(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    told = np.isfinite(reference)
    if not told.any():
        return math.inf
    if not np.isfinite(candidate[told]).all():
        return -math.inf
    return signal_to_quantization_noise_db(candidate[told], reference[told])


@dataclass(slots=True)
class Kept:
    """The powers of the signal and of the noise of one output, row by row."""

    signals: list[NDArray[np.float64]] = field(default_factory=list)
    noises: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, candidate: NDArray[Any], reference: NDArray[Any]) -> None:
        """Take in rows `(n, ...)`, where `reference` is finite; what is not in `candidate` there is endless noise."""
        told = np.isfinite(reference)
        expected = np.where(told, reference, 0).astype(np.float64)
        error = np.where(told, candidate, 0).astype(np.float64) - expected
        self.signals.append(_row_powers(expected))
        self.noises.append(_row_powers(np.where(np.isfinite(error), error, np.inf)))

    @property
    def sqnr_db(self) -> float:
        """The better of two ratios, in decibels: that of all rows together, and the median over rows with a signal.

        inf where no row has one. Each alone can be low in a model that is sound: all together where one enormous row
        was left out of the ranges on purpose, which is what "entropy" and "percentile" are for; the median where most
        rows are next to nothing beside those that matter, as scores of what is rare.
        """
        signal, noise = np.concatenate(self.signals or [np.zeros(0)]), np.concatenate(self.noises or [np.zeros(0)])
        if not signal.any():
            return math.inf
        rows = _decibels(signal[signal > 0], noise[signal > 0])
        return float(max(np.median(rows), _decibels(signal.sum(keepdims=True), noise.sum(keepdims=True))[0]))


def _row_powers(array: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.atleast_1d(array)
    powers: NDArray[np.float64] = np.square(rows).sum(axis=tuple(range(1, rows.ndim)))
    return powers


def _decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        decibels: NDArray[np.float64] = 10 * (np.log10(signal) - np.log10(noise))
    return decibels
