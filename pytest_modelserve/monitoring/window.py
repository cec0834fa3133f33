"""The data under test as the gates read them: from their rows, or from a profile that was made of them elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Column, Kind
from pytest_modelserve.monitoring.histogram import Floats, Integers, count_values
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.profiler import NumericFacts, count_categories, lag_of, numeric_facts
from pytest_modelserve.monitoring.readers import Data, Frame, Table, is_lazy, read_table
from pytest_modelserve.monitoring.schema import match_columns

if TYPE_CHECKING:
    from pytest_modelserve.stats.autocorrelation import LagOne

# Which columns of the data answer to those of a profile, and what is wrong with the others.


Beside = tuple[tuple[str | int, ...], tuple[int, ...], tuple[int, ...]]
"""Categories or numbers of pools, their counts in the profile, and their counts in the data."""


class WindowColumn(Protocol):
    """One column of the data under test. Nothing is computed before it is asked for, and nothing is kept."""

    @property
    def name(self) -> str:
        """The column's name."""

    @property
    def kind(self) -> Kind | None:
        """What it holds; None where every row is null."""

    @property
    def rows(self) -> int:
        """All rows, null or not."""

    def counts(self, reference: NumericColumn) -> Integers:
        """How many values lie in each bin (bins,) between the edges of `reference`; null in none."""

    def facts(self, reference: NumericColumn) -> NumericFacts:
        """Nulls, infinities and extremes of a column of numbers, held against the range of `reference`."""

    def categories(self) -> Counter[str] | None:
        """The rows of each category; None where they were counted in pools alone."""

    def beside(self, reference: CategoricalColumn) -> Beside:
        """The categories, or pools where either side has nothing else, with the counts of `reference` and the data."""

    def known(self) -> int:
        """The rows that are not null."""

    def mean(self) -> float:
        """The mean of the finite values of a column of numbers; NaN where there is none."""

    def median(self) -> float:
        """The median of the finite values, of a profile about that; NaN where there is none."""

    def lag(self) -> LagOne:
        """The autocorrelation of neighbouring rows."""


@dataclass(frozen=True, slots=True)
class RowsColumn:
    """A column whose rows lie in memory."""

    column: Column

    @property
    def name(self) -> str:
        """See WindowColumn."""
        return self.column.name

    @property
    def kind(self) -> Kind | None:
        """See WindowColumn."""
        return self.column.kind

    @property
    def rows(self) -> int:
        """See WindowColumn."""
        return len(self.column.values)

    def counts(self, reference: NumericColumn) -> Integers:
        """See WindowColumn."""
        return count_values(self.column.values, reference.edges)

    def facts(self, reference: NumericColumn) -> NumericFacts:
        """See WindowColumn."""
        return numeric_facts(self.column, reference)

    def categories(self) -> Counter[str]:
        """See WindowColumn."""
        return Counter() if self.kind is None else count_categories(self.column)

    def beside(self, reference: CategoricalColumn) -> Beside:
        """See WindowColumn."""
        return reference.beside(self.categories())

    def known(self) -> int:
        """See WindowColumn."""
        if self.kind is None:
            return 0
        if self.kind == "category":
            return self.categories().total()
        return self.rows - int(np.count_nonzero(np.isnan(self.column.values)))

    def mean(self) -> float:
        """See WindowColumn."""
        finite = self._finite()
        return float(finite.mean()) if finite.size else np.nan

    def median(self) -> float:
        """See WindowColumn."""
        finite = self._finite()
        return float(np.median(finite)) if finite.size else np.nan

    def lag(self) -> LagOne:
        """See WindowColumn."""
        return lag_of(self.column)

    def _finite(self) -> Floats:
        values = self.column.values
        finite: Floats = values[np.isfinite(values)].astype(np.float64)
        return finite


@dataclass(frozen=True, slots=True)
class CountedColumn:
    """A column that was counted elsewhere, between the edges of the profile it is now held against."""

    column: ProfiledColumn

    @property
    def name(self) -> str:
        """See WindowColumn."""
        return self.column.name

    @property
    def kind(self) -> Kind | None:
        """See WindowColumn."""
        return self.column.kind if self.column.known else None

    @property
    def rows(self) -> int:
        """See WindowColumn."""
        return self.column.rows

    def counts(self, reference: NumericColumn) -> Integers:
        """See WindowColumn."""
        column = self._numbers()
        return np.array(column.counts if column.known else [0] * len(reference.counts), dtype=np.int64)

    def facts(self, reference: NumericColumn) -> NumericFacts:
        """See WindowColumn. Where the range of `reference` is not the one that the rows were counted against, at least
        the one row of the extreme is known to be outside."""
        column = self._numbers()
        infinities = column.negative_infinities + column.positive_infinities
        if column.known == infinities:
            return NumericFacts(column.rows, column.nulls, infinities, 0, 0, np.inf, -np.inf)
        below = max(column.below, 1) if column.minimum < reference.minimum else 0
        above = max(column.above, 1) if column.maximum > reference.maximum else 0
        return NumericFacts(column.rows, column.nulls, infinities, below, above, column.minimum, column.maximum)

    def categories(self) -> Counter[str] | None:
        """See WindowColumn."""
        if not self.column.known:
            return Counter()
        column = cast(CategoricalColumn, self.column)
        return None if column.pooled else Counter(dict(zip(column.categories, column.counts, strict=True)))

    def beside(self, reference: CategoricalColumn) -> Beside:
        """See WindowColumn."""
        counts = self.categories()
        if counts is not None:
            return reference.beside(counts)
        pools = self.column.counts
        return tuple(range(len(pools))), reference.in_pools(), pools

    def known(self) -> int:
        """See WindowColumn."""
        return self.column.known

    def mean(self) -> float:
        """See WindowColumn."""
        return self._numbers().mean if self._has_finite() else np.nan

    def median(self) -> float:
        """See WindowColumn."""
        return self._numbers().median if self._has_finite() else np.nan

    def lag(self) -> LagOne:
        """See WindowColumn."""
        return self.column.lag

    def _has_finite(self) -> bool:
        column = self._numbers()
        return column.known > column.negative_infinities + column.positive_infinities

    def _numbers(self) -> NumericColumn:
        return cast(NumericColumn, self.column)


Pairs = tuple[tuple[WindowColumn, ProfiledColumn], ...]
"""The columns of the data beside those of the profile, in the profile's order."""


@dataclass(frozen=True, slots=True)
class Window:
    """The data under test, held beside a profile: the columns that can be compared, and a sentence on each fault.

    `table` holds the rows where they are in memory, `profile` the counts where they are not: one of them is None.
    """

    name: str
    rows: int
    pairs: Pairs
    faults: tuple[str, ...]
    table: Table | None = None
    profile: ReferenceProfile | None = None

    def whole(self, profile: ReferenceProfile) -> Window:
        """This window where it has no faults; InputError that tells them."""
        if self.faults:
            raise InputError(f"{self.name} does not fit the profile {profile.name!r}: {'; '.join(self.faults)}")
        return self


def read_window(data: Data | ReferenceProfile, profile: ReferenceProfile, *, name: str | None = None) -> Window:
    """The window of `data`, beside `profile`: missing, additional and retyped columns are among its faults.

    `data` are rows, as `read_table` has them; a lazy frame, which its engine counts (`scan_beside`); or the profile of
    rows that were counted elsewhere, `like` this one.
    `name` is what messages call the data.

    Raises InputError for data that cannot be read, and for a profile that was counted between other edges.
    """
    if isinstance(data, ReferenceProfile):
        return _counted_window(data, profile, name or data.name)
    if is_lazy(data):
        return _scanned_window(cast(Frame, data), profile, name or "data")
    table = read_table(data, names=profile.input_names, name=name).with_lengths(profile.columns)
    matching = match_columns(table, profile)
    pairs: Pairs = tuple((RowsColumn(column), reference) for column, reference in matching.pairs)
    return Window(table.name, table.rows, pairs, matching.faults, table=table)


def _scanned_window(frame: Frame, profile: ReferenceProfile, name: str) -> Window:
    from pytest_modelserve.monitoring.lazy_profiler import scan_beside

    beside = scan_beside(frame, profile, name=name)
    if not beside.columns:
        raise InputError(f"{name} has no column of the profile {profile.name!r}: {'; '.join(beside.faults)}")
    pairs: Pairs = tuple((CountedColumn(column), profile.column(column.name)) for column in beside.columns)
    return Window(name, beside.columns[0].rows, pairs, beside.faults, profile=ReferenceProfile(name, beside.columns))


def _counted_window(data: ReferenceProfile, profile: ReferenceProfile, name: str) -> Window:
    # The kinds were matched value by value when the rows were counted: columns without values are matched by kind.
    empty = tuple(
        Column(
            column.name,
            column.kind if column.known else None,
            np.empty(0),
            column.source if isinstance(column, NumericColumn) else None,
        )
        for column in data.columns
    )
    matching = match_columns(Table(name, empty), profile)
    pairs: Pairs = tuple((CountedColumn(data.column(column.name)), expected) for column, expected in matching.pairs)
    _check_edges(pairs, name, profile.name)
    return Window(name, data.rows, pairs, matching.faults, profile=data)


def _check_edges(pairs: Sequence[tuple[WindowColumn, ProfiledColumn]], name: str, reference: str) -> None:
    for column, expected in pairs:
        assert isinstance(column, CountedColumn)
        counted = column.column
        if (
            isinstance(expected, NumericColumn)
            and isinstance(counted, NumericColumn)
            and counted.edges != expected.edges
        ):
            raise InputError(
                f"the profile {name!r} counts column {column.name!r} between other edges than {reference!r}: "
                "make it with like=the profile that it is held against"
            )
