"""The rows that a search starts from, and what it may put in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, flat, row_count
from pytest_modelserve.robustness.domains import Domain, Limits, Values, check_domain
from pytest_modelserve.robustness.ranges import Ranges, limits_of, outside


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Base rows, their coordinates, and by input where other values come from."""

    base: Feed
    coordinates: Coordinates
    values: Mapping[str, Values]
    domain: tuple[Domain, ...]
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """What is declared of the coordinates of some inputs."""

    @classmethod
    def around(
        cls,
        rows: Mapping[str, NDArray[Any]],
        domain: Domain | Sequence[Domain],
        *,
        whole: Collection[str] = (),
        ranges: Ranges | None = None,
    ) -> Space:
        """The space around rows (n, ...); InputError where there are none.

        Inputs in `whole` come from a base row as they are, and no edit touches them; no edit leaves `ranges`.
        """
        chosen = check_domain(domain)
        base = {name: _readable(array) for name, array in rows.items()}
        if row_count(base) == 0:
            raise InputError("there are no rows to start from: the inputs are empty")
        coordinates = Coordinates.of(base)
        limits = limits_of(ranges, coordinates) if ranges else {}
        values = {
            name: Values.of(array, whole=name in whole, limits=limits.get(name)) for name, array in flat(base).items()
        }
        return cls(base, coordinates, values, chosen, limits)

    def holds(self, rows: Feed) -> NDArray[np.bool_]:
        """Which rows (n, ...) lie within what is declared."""
        if not self.limits:
            return np.ones(row_count(rows), np.bool_)
        return np.asarray(~outside(rows, self.limits).any(axis=1))

    @property
    def rows(self) -> int:
        """How many base rows there are."""
        return row_count(self.base)


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """Text as objects, the only form into which text of any length can be edited."""
    return array.astype(object) if array.dtype.kind in "UT" else array
