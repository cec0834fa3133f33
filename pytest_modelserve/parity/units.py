"""What is drawn independently of each other: rows, runs of consecutive rows, or groups of rows that share an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.stats import block_ids, unit_values


@dataclass(frozen=True, slots=True)
class Units:
    """The units of `n` rows: `ids` (n,) number them from 0, None where every row is one; `block` as it was given."""

    n: int
    ids: NDArray[np.intp] | None = None
    block: int | None = None

    @classmethod
    def of(cls, n: int, *, block: int | None, groups: ArrayLike | None) -> Units:
        """The units that `block=` or `groups=` make of `n` rows.

        UsageError for both and for a block that is no count; InputError for groups of another shape, or that hold NaN.
        """
        if block is not None and groups is not None:
            raise UsageError(
                "block= is for rows in a sequence and groups= for rows that share an id: give one of them (a series "
                "for each id is one group)"
            )
        if block is not None:
            return cls(n, block_ids(n, block), block)
        if groups is None:
            return cls(n)
        ids = np.asarray(groups)
        if ids.shape != (n,):
            raise InputError(f"groups have shape {ids.shape}; they need one id for each of the {n} rows")
        if ids.dtype.kind == "f" and np.isnan(ids).any():
            raise InputError(f"groups hold NaN in {int(np.isnan(ids).sum())} of {n} rows: give every row an id")
        return cls(n, _numbered(ids.astype(str) if ids.dtype.kind == "O" else ids))

    @property
    def are_rows(self) -> bool:
        """Whether every row is a unit of its own."""
        return self.ids is None

    @property
    def count(self) -> int:
        """The number of units."""
        return self.n if self.ids is None else int(self.ids.max()) + 1

    def values(self, per_row: NDArray[np.float64]) -> NDArray[np.float64]:
        """One value a unit with the same mean, (units,), of one value a row, (n,)."""
        return per_row if self.ids is None else unit_values(per_row, self.ids)

    def over(self, rows: NDArray[np.bool_]) -> Units:
        """The units of the rows that a mask (n,) picks out."""
        kept = int(rows.sum())
        return Units(kept) if self.ids is None else Units(kept, _numbered(self.ids[rows]), self.block)

    def told(self) -> str:
        """How a method is said to have used them: "over 20 blocks of 20 rows", or nothing for rows."""
        if self.ids is None:
            return ""
        return f" over {self.count} groups" if self.block is None else f" over {self.count} blocks of {self.block} rows"


def check_weights(weights: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """The weights as (n,) floats; InputError for another shape, for NaN, infinite or negative ones, and for all 0."""
    if weights is None:
        return None
    values: NDArray[Any] = np.asarray(weights)
    if values.shape != (n,) or values.dtype.kind not in "fiub":
        raise InputError(f"weights have shape {values.shape} and dtype {values.dtype}; {n} rows need one number each")
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < 0))
    if bad.size:
        raise InputError(f"weights are finite and at least 0, unlike {numbers[bad[0]]:g} in row {bad[0]}")
    if not numbers.any():
        raise InputError("all weights are 0: no row counts")
    return numbers


def _numbered(ids: NDArray[Any]) -> NDArray[np.intp]:
    """The ids as numbers from 0 in the order of their first rows."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])
