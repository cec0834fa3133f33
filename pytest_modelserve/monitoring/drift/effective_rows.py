"""Effective rows of a comparison: rows that depend on their neighbors count as fewer independent ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy.special import ndtri

from pytest_modelserve.monitoring.decision import Blocks, Inflations
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.window import Window

SOURCE = "Politis & White 2004, Econometric Reviews 23:53-70; Patton, Politis & White 2009, ER 28:372-375"


DEPENDENCE_ALPHA = 0.01
"""The probability, over all columns, that independent rows are taken for dependent ones. That costs little: the
estimates of most columns are then 1."""
_LENGTHS = 3
"""Block lengths that keep together in a permutation. One length is best for the error of a variance, but neighboring
blocks still depend on each other: six unchanged chains of 0.7 with 400 rows have p-values up to 5 % in 9 % of data sets
with one length, in 6 % with two, and in 4 % with three."""


@dataclass(frozen=True, slots=True)
class EffectiveRows:
    """How many rows of the profile and of the data count as one: `given` for all columns, or estimated for each.

    `reference` and `current` are the estimates by column, without times; empty where rows are independent or `given`.
    """

    given: Blocks = field(default_factory=Blocks)
    reference: Mapping[str, Dependence] = field(default_factory=dict)
    current: Mapping[str, Dependence] = field(default_factory=dict)

    @classmethod
    def of(cls, window: Window, profile: ReferenceProfile, *, block: int | None) -> EffectiveRows:
        """Return the blocks given for the call, the data or the profile, else the estimates.

        Rows are independent unless the autocorrelation at lag one is significant in some column of either side. Then
        the estimates of all columns count.
        """
        given = block or (window.profile.block if window.profile else None)
        if given or profile.block:
            return cls(Blocks(profile.block or given or 1, given or profile.block or 1))
        pairs = window.without_times()
        before = {reference.name: reference.dependence for _, reference in pairs}
        after = {column.name: column.dependence() for column, _ in pairs}
        every = [*before.values(), *after.values()]
        significant = -float(ndtri(DEPENDENCE_ALPHA / max(len(every), 1)))
        return cls(reference=before, current=after) if any(d.z_score > significant for d in every) else cls()

    def blocks(self, column: str) -> Blocks | Inflations:
        """Return the rows of each side that count as one in a column."""
        if not self.reference:
            return self.given
        return Inflations(self.reference[column].inflation, self.current[column].inflation)

    @property
    def lengths(self) -> Blocks:
        """The rows of each side that keep together in a permutation."""
        if not self.reference:
            return self.given
        longest = (max(found.block for found in side.values()) for side in self._sides)
        return Blocks(*(math.ceil(_LENGTHS * block) for block in longest))

    @property
    def dependent(self) -> bool:
        """Whether rows of some column count as fewer, by an estimate."""
        return any(found.inflation > 1 for side in self._sides for found in side.values())

    @property
    def _sides(self) -> tuple[Mapping[str, Dependence], Mapping[str, Dependence]]:
        return self.reference, self.current

    def assumption(self) -> str:
        """Return what the tests assume of the rows."""
        if self.dependent:
            return (
                "rows whose memory is short against the root of their number, and count as many as their estimated "
                "variance inflation leaves"
            )
        in_blocks = f", or in blocks of {self.given.current} (profile: {self.given.reference})"
        return f"independent rows{in_blocks if self.given != Blocks() else ''}"

    def strongest(self) -> dict[str, tuple[str, Dependence]]:
        """Return the column with the largest inflation of each side that depends on its neighbors, and its estimate."""
        found = {}
        for side, columns in zip(("profile", "data"), self._sides, strict=True):
            name = max(columns, key=lambda name: columns[name].inflation, default="")
            if name and columns[name].inflation > 1:
                found[side] = name, columns[name]
        return found

    def describe(self) -> str:
        """Describe the strongest dependence of each side; "" if there is none."""
        parts = [
            f"the {side} in blocks of about {found.block:.0f} in {name!r}, so that {found.rows:,} rows count as "
            f"{_rows(found)}"
            for side, (name, found) in self.strongest().items()
        ]
        return f"neighboring rows depend on each other (estimated): {'; '.join(parts)}" if parts else ""

    def figures(self) -> dict[str, dict[str, object]]:
        """Return the strongest dependence of each side as JSON builtins."""
        return {
            side: {
                "column": name,
                "block": round(found.block, 1),
                "variance_inflation": round(found.inflation, 2),
                "effective_rows": _rows(found),
            }
            for side, (name, found) in self.strongest().items()
        }


def _rows(found: Dependence) -> int:
    return math.floor(found.rows / found.inflation)
