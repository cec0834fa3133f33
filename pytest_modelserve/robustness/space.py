"""The rows that a search starts from, and what it may put in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, flat, row_count
from pytest_modelserve.robustness.domains import Domain, Values, check_domain


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Base rows, their coordinates, and by input where other values come from."""

    base: Feed
    coordinates: Coordinates
    values: Mapping[str, Values]
    domain: tuple[Domain, ...]

    @classmethod
    def around(cls, rows: Mapping[str, NDArray[Any]], domain: Domain | Sequence[Domain]) -> Space:
        """The space around rows (n, ...); InputError where there are none."""
        chosen = check_domain(domain)
        base = {name: _readable(array) for name, array in rows.items()}
        if row_count(base) == 0:
            raise InputError("there are no rows to start from: the inputs are empty")
        return cls(base, Coordinates.of(base), {name: Values.of(array) for name, array in flat(base).items()}, chosen)

    @property
    def rows(self) -> int:
        """How many base rows there are."""
        return row_count(self.base)


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """Text as objects, the only form into which text of any length can be edited."""
    return array.astype(object) if array.dtype.kind in "UT" else array
