"""Sampling units: which rows are drawn independently of each other, and how often each counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.stats.means import block_ids, unit_values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """How the rows of a data set were drawn. Without arguments every row is independent and counts once.

    `groups` and `block` exclude each other: a series for each id is one group.

    Args:
        groups: One id a row, (n,). Rows that share an id (a patient, a user) may depend on each other; groups are
            independent. NaN is refused.
        block: Number of consecutive rows that depend on each other: 52 for weekly rows with a yearly season.
        sample_weight: How often each row counts, (n,): finite, at least 0 and not all 0.

    Example:
        >>> Sampling(groups=["ann", "ann", "bob"]).units(3).count
        2
    """

    groups: ArrayLike | None = None
    block: int | None = None
    sample_weight: ArrayLike | None = None

    @staticmethod
    def of(sampling: Sampling | None) -> Sampling:
        """Return the sampling of a gate's argument; independent rows for None.

        Raises:
            UsageError: For anything else.
        """
        if sampling is None or isinstance(sampling, Sampling):
            return sampling or Sampling()
        raise UsageError(
            "sampling must be ms.Sampling(groups=ids), ms.Sampling(block=52) or ms.Sampling(sample_weight=weights), "
            f"got {type(sampling).__name__}"
        )

    def units(self, n: int) -> SamplingUnits:
        """Return the sampling units of `n` rows.

        Raises:
            UsageError: For groups together with a block, and for a block that is not a count.
            InputError: For groups or weights of another shape, NaN among them, and weights that are negative, infinite
                or all 0.
        """
        if self.block is not None and self.groups is not None:
            raise UsageError(
                "block is for consecutive rows and groups for rows that share an id: give one of them (a series for "
                "each id is one group)"
            )
        weights = self._weights(n)
        if self.block is not None:
            return SamplingUnits(n, block_ids(n, self.block), self.block, weights)
        if self.groups is None:
            return SamplingUnits(n, weights=weights)
        ids: NDArray[Any] = np.asarray(self.groups)
        if ids.shape != (n,):
            raise InputError(f"groups have shape {ids.shape}; they need one id for each of the {n} rows")
        if ids.dtype.kind == "f" and np.isnan(ids).any():
            raise InputError(f"groups hold NaN in {int(np.isnan(ids).sum())} of {n} rows: give every row an id")
        return SamplingUnits(n, _numbered(ids.astype(str) if ids.dtype.kind == "O" else ids), weights=weights)

    def _weights(self, n: int) -> NDArray[np.float64] | None:
        if self.sample_weight is None:
            return None
        values: NDArray[Any] = np.asarray(self.sample_weight)
        if values.shape != (n,) or values.dtype.kind not in "fiub":
            raise InputError(
                f"sample_weight has shape {values.shape} and dtype {values.dtype}; {n} rows need one number each"
            )
        numbers = values.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < 0))
        if bad.size:
            raise InputError(f"sample_weight is finite and at least 0; got {numbers[bad[0]]:g} in row {bad[0]}")
        if not numbers.any():
            raise InputError("sample_weight is 0 in every row: no row counts")
        return numbers


@dataclass(frozen=True, slots=True)
class SamplingUnits:
    """The sampling units of `n` rows: `ids` (n,) number them from 0, None where every row is one.

    `weights` (n,) say how often each row counts, None where each counts once.
    """

    n: int
    ids: NDArray[np.intp] | None = None
    block: int | None = None
    weights: NDArray[np.float64] | None = None

    @property
    def are_rows(self) -> bool:
        """Whether every row is a unit of its own."""
        return self.ids is None

    @property
    def is_plain(self) -> bool:
        """Whether every row is independent and counts once, so that exact methods for counts hold."""
        return self.ids is None and self.weights is None

    @property
    def count(self) -> int:
        """The number of units."""
        return self.n if self.ids is None else int(self.ids.max()) + 1

    def values(self, per_row: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one value a unit, (units,), with the same mean as one value a row, (n,)."""
        return per_row if self.ids is None else unit_values(per_row, self.ids)

    def over(self, rows: NDArray[np.bool_]) -> SamplingUnits:
        """Return the units of the rows that a mask (n,) selects."""
        if rows.all():
            return self
        ids = None if self.ids is None else _numbered(self.ids[rows])
        weights = None if self.weights is None else self.weights[rows]
        return SamplingUnits(int(rows.sum()), ids, self.block, weights)

    def __str__(self) -> str:
        """Return how a method used them: " over 20 blocks of 20 rows", or "" for rows."""
        if self.ids is None:
            return ""
        return f" over {self.count} groups" if self.block is None else f" over {self.count} blocks of {self.block} rows"


def _numbered(ids: NDArray[Any]) -> NDArray[np.intp]:
    """Return the ids as numbers from 0 in the order of their first rows."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])
