"""One corruption: a change of rows that leaves their labels as they are, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError

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
