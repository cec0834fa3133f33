"""How many rows are of categories that the profile does not have, and of the profile's that the data do not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.profiled import CategoricalColumn
from pytest_modelserve.monitoring.quality.rates import Rate, share_bound
from pytest_modelserve.monitoring.windows import Beside, WindowColumn
from pytest_modelserve.stats.unseen import unseen_p_value

_CATEGORIES_TOLD = 5


@dataclass(frozen=True, slots=True)
class CountedCategories:
    """The categories of the data beside those of the profile, counted once.

    `named` is False where either side has pools alone.
    """

    reference: CategoricalColumn
    beside: Beside
    named: bool

    @classmethod
    def of(cls, column: WindowColumn, reference: CategoricalColumn) -> CountedCategories:
        """Count the categories of a column."""
        counts = column.categories()
        beside = column.beside(reference) if counts is None else reference.beside(counts)
        return cls(reference, beside, counts is not None and not reference.pooled)

    @property
    def known(self) -> int:
        """The rows of the data that are not null."""
        return sum(self.beside[2])

    def alone(self, *, new: bool) -> list[tuple[str | int, int]]:
        """The categories that the data alone have, or the profile alone, with their rows; the most frequent first."""
        names, then, now = self.beside
        here, there = (now, then) if new else (then, now)
        found = [(name, n) for name, n, other in zip(names, here, there, strict=True) if n and not other]
        return sorted(found, key=lambda pair: -pair[1])

    def listed(self, *, new: bool) -> str:
        """The same in words: "'Wien' (12), 'Genf' (3)"."""
        alone = self.alone(new=new)
        told = ", ".join(f"{name!r} ({rows:,})" for name, rows in alone[:_CATEGORIES_TOLD])
        return told + (f" and {len(alone) - _CATEGORIES_TOLD} more" if len(alone) > _CATEGORIES_TOLD else "")


def new_category_rate(counted: CountedCategories, blocks: Blocks) -> Rate:
    """The share of rows whose category the profile, which has names, does not have: 0 in the profile.

    Its chance allows for categories that come in clumps (`unseen_p_value`). Of new rows, as many are to be expected as
    there are rows of categories seen once, over all rows: each would have been new without itself (Good 1953,
    Biometrika 40, 237–264). Data whose categories were counted in pools have at least the rows of the pools that are
    empty in the profile, and nothing bounds how many more.
    """
    reference, (_, then, now) = counted.reference, counted.beside
    unseen, rows = sum(n for _, n in counted.alone(new=True)), counted.known
    least, which = ("", f": {counted.listed(new=True)}") if counted.named else ("at least ", "")
    return Rate(
        column=reference.name,
        fault="new category",
        value=unseen / rows,
        p_value=unseen_p_value(_each_in_blocks(then, blocks.reference), _each_in_blocks(now, blocks.current)),
        high=share_bound(unseen, rows, blocks.current) if counted.named else 1.0,
        usual=reference.counts.count(1) / reference.known,
        told=f"{reference.name!r} of a new category in {least}{unseen:,} of {rows:,} rows{which}",
    )


def lost_category_rate(counted: CountedCategories, blocks: Blocks, *, alpha: float) -> Rate:
    """The share of the profile's rows whose category, which has a name, no row of the data has.

    Rare categories miss a window by chance, each with probability (1 − s)ⁿ. The chance of losing so many rows allows
    for that: it is `unseen_p_value` with the samples exchanged. Where it is at most `alpha` the share is that of all
    lost categories together; else that of the largest alone, whose bound says how large a category may be lost: which
    rows of the profile are lost is decided by the data, so that their number in the profile is binomial.
    """
    reference, (_, then, now) = counted.reference, counted.beside
    lost = [rows for _, rows in counted.alone(new=False)]
    chance = unseen_p_value(_each_in_blocks(now, blocks.current), _each_in_blocks(then, blocks.reference))
    gone = sum(lost) if chance <= alpha else max(lost, default=0)
    share = 100 * sum(lost) / reference.known
    return Rate(
        column=reference.name,
        fault="lost category",
        value=gone / reference.known,
        p_value=chance,
        high=share_bound(gone, reference.known, blocks.reference) if lost else 0.0,
        usual=0.0,
        told=f"{reference.name!r} without {share:.1f} % of the profile's rows, of categories that are gone: "
        f"{counted.listed(new=False)}",
    )


def _each_in_blocks(counts: Sequence[int], block: int) -> list[int]:
    return [max(count // block, 1) if count else 0 for count in counts]
