"""The data under test, column by column: from rows in memory, or from counts made elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.column_profile import (
    AlignedCounts,
    CategoricalColumn,
    NumericColumn,
    ProfiledColumn,
    hash_bucket_counts,
)
from pytest_modelserve.monitoring.columns import Column, Kind
from pytest_modelserve.monitoring.dependence import Dependence, estimate_dependence
from pytest_modelserve.monitoring.duplicates import RepeatedRows, repeated_rows
from pytest_modelserve.monitoring.histogram import Floats, Integers, chunks, count_values
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names
from pytest_modelserve.monitoring.profiler import (
    backward_rows,
    count_categories,
)
from pytest_modelserve.monitoring.readers import Data, Frame, Table, is_lazy, read_table
from pytest_modelserve.monitoring.schema import match_columns, restricted, with_columns
from pytest_modelserve.serving.substitution import active

Pairs = tuple[tuple["WindowColumn", ProfiledColumn], ...]
"""Columns of the data with those of the profile, in the profile's order."""


@dataclass(frozen=True, slots=True)
class Window:
    """The data under test: the columns that match the profile, and a message for each that does not.

    `table` holds rows in memory and `profile` counts made elsewhere: one of them is None.
    """

    name: str
    rows: int
    pairs: Pairs
    schema_errors: tuple[str, ...]
    table: Table | None = None
    profile: ReferenceProfile | None = None

    def comparable(self, profile: ReferenceProfile) -> tuple[Window, ReferenceProfile]:
        """Return this window and the profile with the columns that have values on both sides.

        Columns without a finite value join those that do not match the profile. Raises InputError if nothing but times
        is left because of them.
        """
        causes = {True: "null in every row", False: "infinite in every non-null row"}
        empty = {
            column.name: f"column {column.name!r} is {causes[column.kind is None]}"
            for column, _ in self.without_times()
            if not column.has_values()
        }
        errors = (*self.schema_errors, *empty.values())
        pairs = tuple(pair for pair in self.pairs if pair[1].name not in empty)
        names = {reference.name for _, reference in pairs}
        window = replace(self, pairs=pairs, schema_errors=errors)
        if errors and not window.without_times():
            raise InputError(f"{self.name} has no column to compare with {profile.name!r}: {'; '.join(errors)}")
        counts = with_columns(self.profile, names) if self.profile is not None else None
        return replace(window, profile=counts), with_columns(profile, names)

    def without_times(self) -> Pairs:
        """Return the pairs of columns except times, which always advance."""
        return tuple(pair for pair in self.pairs if pair[1].kind != "datetime")

    def repeated_rows(self) -> RepeatedRows | None:
        """Return the number of rows that equal an earlier one; None if it was not counted."""
        if self.table is not None:
            return repeated_rows(self.table.columns)
        return self.profile.duplicates if self.profile is not None else None


def window_of_gate(
    data: Data | ReferenceProfile, profile: ReferenceProfile, *, name: str | None, whole: ReferenceProfile
) -> tuple[Window, ReferenceProfile]:
    """Return the window of a gate and its profile: those given, unless a self-test replaces them."""
    substitution = active()
    if substitution is not None:
        data, profile = substitution.data(data, profile, whole, name)
    return read_window(data, profile, name=name, whole=whole), profile


def read_window(
    data: Data | Table | ReferenceProfile,
    profile: ReferenceProfile,
    *,
    name: str | None = None,
    whole: ReferenceProfile | None = None,
) -> Window:
    """Read `data` for a comparison with `profile`; columns that do not match are schema errors of the window.

    `data` are rows (`read_table`) or a table of them, a lazy frame that its engine counts (`scan_like`), or a profile
    made `like` this one. `name` is their name in messages. `whole` is the profile before columns were chosen. Raises
    InputError for data that cannot be read and other edges, and NoRowsError for data without rows.
    """
    if isinstance(data, ReferenceProfile):
        if data.min_count > 1:
            raise UsageError(
                f"data is the profile {data.name!r}, which was saved with min_count={data.min_count}: small counts are "
                "missing. Pass the rows, or a profile that was saved without min_count"
            )
        return _counted_window(restricted(data, profile.reading), profile, name or data.name)
    if isinstance(data, Table):
        table = data
    elif is_lazy(data):
        return _scanned_window(cast(Frame, data), profile, name or "data")
    else:
        names = array_names(whole or profile)
        table = read_table(data, names=names, name=name, options=profile.reading, kinds=profile.kinds)
    table = table.with_lengths_of(profile.length_sources)
    matching = match_columns(table, profile)
    pairs: Pairs = tuple((RowsColumn(column), reference) for column, reference in matching.pairs)
    return Window(table.name, table.rows, pairs, matching.errors, table=table)


def _scanned_window(frame: Frame, profile: ReferenceProfile, name: str) -> Window:
    from pytest_modelserve.monitoring.lazy_profiler import scan_like

    scanned = scan_like(frame, profile, name=name)
    if not scanned.columns:
        raise InputError(f"{name} has no column of the profile {profile.name!r}: {'; '.join(scanned.errors)}")
    pairs: Pairs = tuple((CountedColumn(column), profile.column(column.name)) for column in scanned.columns)
    return Window(name, scanned.columns[0].rows, pairs, scanned.errors, profile=ReferenceProfile(name, scanned.columns))


def _counted_window(data: ReferenceProfile, profile: ReferenceProfile, name: str) -> Window:
    # Values were matched when they were counted, so that columns without values, matched by kind, are enough.
    empty = tuple(
        Column(column.name, column.kind if column.known else None, np.empty(0), column.source)
        for column in data.columns
    )
    matching = match_columns(Table(name, empty), profile)
    pairs: Pairs = tuple((CountedColumn(data.column(column.name)), expected) for column, expected in matching.pairs)
    for column, expected in matching.pairs:
        counted = data.column(column.name)
        if (
            isinstance(expected, NumericColumn)
            and isinstance(counted, NumericColumn)
            and counted.edges != expected.edges
        ):
            raise InputError(
                f"profile {name!r} counts column {column.name!r} between other edges than {profile.name!r}: "
                f"make it with reference_profile(..., like=) that profile"
            )
    return Window(name, data.rows, pairs, matching.errors, profile=data)


@dataclass(frozen=True, slots=True)
class NumericSummary:
    """Rows of a numeric column that are null, infinite, or below or above the profile's range, and the extremes.

    If no value is finite, `minimum` is inf and `maximum` −inf.
    """

    rows: int
    nulls: int
    infinities: int
    below: int
    above: int
    minimum: float
    maximum: float

    @property
    def finite(self) -> int:
        """The number of finite rows."""
        return self.rows - self.nulls - self.infinities


class WindowColumn(ABC):
    """A column of the data under test. Values are computed on each call."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the column."""

    @property
    @abstractmethod
    def kind(self) -> Kind | None:
        """The kind of the values; None if every row is null."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of rows, nulls included."""

    @abstractmethod
    def has_values(self) -> bool:
        """Return whether some row has a category or a finite number."""

    @abstractmethod
    def counts(self, reference: NumericColumn) -> Integers:
        """Count the non-null values in each bin (bins,) of `reference`."""

    @abstractmethod
    def summary(self, reference: NumericColumn) -> NumericSummary:
        """Summarize a numeric column against the range of `reference`."""

    @abstractmethod
    def categories(self) -> Counter[str] | None:
        """Count the rows of each category; None if only counts of hash buckets are known."""

    @abstractmethod
    def align(self, reference: CategoricalColumn) -> AlignedCounts:
        """Count the same categories in `reference` and in the data, or hash buckets if one side has only these."""

    @abstractmethod
    def mean(self) -> float:
        """Return the mean of the finite values; NaN if there are none."""

    @abstractmethod
    def median(self) -> float:
        """Return the median of the finite values, of counts an estimate; NaN if there are none."""

    @abstractmethod
    def dependence(self) -> Dependence:
        """Return the dependence of neighboring rows."""

    @abstractmethod
    def backward(self) -> int | None:
        """Count the times earlier than the row before; None if the order of the rows is not known."""


@dataclass(frozen=True, slots=True)
class RowsColumn(WindowColumn):
    """A column with its rows in memory."""

    column: Column

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def kind(self) -> Kind | None:
        return self.column.kind

    @property
    def rows(self) -> int:
        return len(self.column.values)

    def has_values(self) -> bool:
        if self.kind in (None, "category"):
            return self.kind is not None
        return any(np.isfinite(self.column.values[rows]).any() for rows in chunks(len(self.column.values)))

    def counts(self, reference: NumericColumn) -> Integers:
        return count_values(self.column.values, reference.edges)

    def summary(self, reference: NumericColumn) -> NumericSummary:
        return _summarize(self.column, reference)

    def categories(self) -> Counter[str]:
        return Counter() if self.kind is None else count_categories(self.column)

    def align(self, reference: CategoricalColumn) -> AlignedCounts:
        return reference.align(self.categories())

    def mean(self) -> float:
        finite = self._finite()
        return float(finite.mean()) if finite.size else np.nan

    def median(self) -> float:
        finite = self._finite()
        return float(np.median(finite)) if finite.size else np.nan

    def dependence(self) -> Dependence:
        return estimate_dependence(self.column)

    def backward(self) -> int:
        return backward_rows(self.column.values)

    def _finite(self) -> Floats:
        values = self.column.values
        finite: Floats = values[np.isfinite(values)].astype(np.float64)
        return finite


@dataclass(frozen=True, slots=True)
class CountedColumn(WindowColumn):
    """A column that was counted elsewhere, between the edges of the profile that it is compared with."""

    column: ProfiledColumn

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def kind(self) -> Kind | None:
        return self.column.kind if self.column.known else None

    @property
    def rows(self) -> int:
        return self.column.rows

    def has_values(self) -> bool:
        return bool(self.column.finite if isinstance(self.column, NumericColumn) else self.column.known)

    def counts(self, reference: NumericColumn) -> Integers:
        column = self._numbers()
        return np.array(column.counts if column.known else [0] * len(reference.counts), dtype=np.int64)

    def summary(self, reference: NumericColumn) -> NumericSummary:
        column = self._numbers()
        infinities = column.negative_infinities + column.positive_infinities
        if column.known == infinities:
            return NumericSummary(column.rows, column.nulls, infinities, 0, 0, np.inf, -np.inf)
        # The rows may have been counted against another range: at least the row of the extreme is outside this one.
        below = max(column.below, 1) if column.minimum < reference.minimum else 0
        above = max(column.above, 1) if column.maximum > reference.maximum else 0
        return NumericSummary(column.rows, column.nulls, infinities, below, above, column.minimum, column.maximum)

    def categories(self) -> Counter[str] | None:
        if not self.column.known:
            return Counter()
        column = cast(CategoricalColumn, self.column)
        return None if column.hashed else Counter(dict(zip(column.categories, column.counts, strict=True)))

    def align(self, reference: CategoricalColumn) -> AlignedCounts:
        counts = self.categories()
        if counts is not None:
            return reference.align(counts)
        column = cast(CategoricalColumn, self.column)
        buckets = len(reference.counts) if reference.hashed else len(column.counts)
        both = [hash_bucket_counts(each, column.key_check, buckets) for each in (reference, column)]
        return tuple(range(buckets)), both[0], both[1]

    def mean(self) -> float:
        column = self._numbers()
        return column.mean if column.finite else np.nan

    def median(self) -> float:
        column = self._numbers()
        return column.median if column.finite else np.nan

    def dependence(self) -> Dependence:
        return self.column.dependence

    def backward(self) -> int | None:
        return self._numbers().backward

    def _numbers(self) -> NumericColumn:
        return cast(NumericColumn, self.column)


def _summarize(column: Column, reference: NumericColumn) -> NumericSummary:
    nulls = infinities = below = above = 0
    minimum, maximum = math.inf, -math.inf
    for rows in chunks(len(column.values)):
        chunk = column.values[rows]
        low, high = chunk.min(), chunk.max()
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN makes both NaN
            finite = np.isfinite(chunk)
            missing = int(np.count_nonzero(np.isnan(chunk)))
            nulls, infinities = nulls + missing, infinities + int((~finite).sum()) - missing
            chunk = chunk[finite]
            if not chunk.size:
                continue
            low, high = chunk.min(), chunk.max()
        if low < reference.minimum:
            below += int(np.count_nonzero(chunk < reference.minimum))
        if high > reference.maximum:
            above += int(np.count_nonzero(chunk > reference.maximum))
        minimum, maximum = min(minimum, float(low)), max(maximum, float(high))
    return NumericSummary(len(column.values), nulls, infinities, below, above, minimum, maximum)
