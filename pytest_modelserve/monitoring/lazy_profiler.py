"""Profiles of rows that stay where they are: of Polars queries, DuckDB relations and PySpark frames, one way for all.

The engine counts, through narwhals, and what comes back is small: a few numbers a column, and how many values lie in
each of some ten thousand cells of its range.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pytest_modelserve.errors import InputError, ModelServeError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Column, Kind, Number, is_length, length_name
from pytest_modelserve.monitoring.histogram import Floats, Integers, choose_edges
from pytest_modelserve.monitoring.lazy_histogram import Cells, edges_and_below
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.monitoring.readers import Frame, Table, is_lazy
from pytest_modelserve.monitoring.schema import match_columns
from pytest_modelserve.progress import progress
from pytest_modelserve.stats.autocorrelation import LagOne

if TYPE_CHECKING:
    import narwhals
    import polars


# Rows that an engine holds, and what it answers.


@dataclass(frozen=True, slots=True)
class LazyRows:
    """A lazy frame, and what messages call it."""

    frame: narwhals.LazyFrame[Any]
    name: str

    @classmethod
    def of(cls, frame: Frame, name: str) -> LazyRows:
        """The rows of a lazy frame of any library that narwhals knows; InputError for anything else."""
        if not is_lazy(frame):
            raise InputError(f"{type(frame).__name__} is no lazy frame: reference_profile reads what lies in memory")
        import narwhals

        return cls(narwhals.from_native(frame), name)

    def schema(self) -> dict[str, Any]:
        """The type of each column, by its name."""
        with self._told():
            return dict(self.frame.collect_schema())

    def answer(self, query: narwhals.LazyFrame[Any]) -> polars.DataFrame:
        """The rows of `query`, which is one over these rows; InputError with the first line of what the engine says."""
        with self._told():
            answer: polars.DataFrame = query.collect(backend="polars").to_native()
            return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (ModelServeError, MemoryError):
            raise
        except Exception as error:  # each engine has errors of its own, and none of their classes is known here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name} cannot be scanned: {reason}") from error


# The columns of a lazy frame as expressions: numbers as doubles, times as seconds since 1970, text as text.


@dataclass(frozen=True, slots=True)
class LazyColumn:
    """A column, what it holds and its values; `kind` is None where its type says that it holds nothing."""

    name: str
    kind: Kind | None
    values: narwhals.Expr


def lazy_columns(rows: LazyRows) -> list[LazyColumn]:
    """All columns of `rows`.

    InputError, naming the column, for what is neither numbers nor text nor times, for embeddings, and for times in the
    zone of a session that is not UTC, of which engines tell the local hours alone.
    """
    schema = rows.schema()
    if not schema:
        raise InputError(f"there are no columns in {rows.name}")
    return [_column(rows, name, kind) for name, kind in schema.items()]


def _column(rows: LazyRows, name: str, kind: Any) -> LazyColumn:
    import narwhals

    column = narwhals.col(name)
    if kind == narwhals.Boolean:
        return LazyColumn(name, "boolean", column.cast(narwhals.Float64))
    if kind.is_numeric():
        return LazyColumn(name, "integer" if kind.is_integer() else "float", column.cast(narwhals.Float64))
    if kind in (narwhals.String, narwhals.Categorical, narwhals.Enum):
        return LazyColumn(name, "category", column.cast(narwhals.String))
    if isinstance(kind, narwhals.Datetime) or kind == narwhals.Date:
        return LazyColumn(name, "datetime", _seconds(rows, name, kind))
    if isinstance(kind, narwhals.Duration):
        return LazyColumn(name, "float", column.dt.total_microseconds().cast(narwhals.Float64) / 1e6)
    if kind == narwhals.Unknown:  # the type of a column of nothing but nulls, and of all that narwhals does not know
        return LazyColumn(name, None, column)
    what = (
        "embeddings, which are read in memory alone"
        if isinstance(kind, (narwhals.List, narwhals.Array))
        else (f"{kind}, which is neither numbers nor text nor times")
    )
    raise InputError(f"{rows.name}: column {name!r} holds {what}: turn it into one of them, or leave it out")


def _seconds(rows: LazyRows, name: str, kind: Any) -> narwhals.Expr:
    """Seconds since 1970 in UTC, as which times without a zone are taken, to the microsecond."""
    import narwhals

    column = narwhals.col(name)
    if kind == narwhals.Date:
        column = column.cast(narwhals.Datetime("us"))
    since_1970 = column.dt.timestamp("us").cast(narwhals.Float64)
    try:
        rows.frame.select(since_1970)
    except NotImplementedError:
        zone = getattr(kind, "time_zone", None)
        if zone not in (None, "UTC", "Etc/UTC"):
            raise InputError(
                f"{rows.name}: the times of column {name!r} are told in the session's time zone, {zone}: set it to UTC"
            ) from None
        return _from_calendar(column) / 1e6
    # By a column: Polars turns a division by a constant into a product with its reciprocal, which rounds twice.
    return since_1970 / (since_1970 * 0 + 1e6)


def _from_calendar(column: narwhals.Expr) -> narwhals.Expr:
    """Microseconds since 1970 from the year, the day in it and the time of day: all that SQL engines are asked for."""
    import narwhals

    years = column.dt.year().cast(narwhals.Float64) - 1
    leap_days = (years / 4).floor() - (years / 100).floor() + (years / 400).floor()
    days = 365 * years + leap_days + column.dt.ordinal_day() - 719_163  # those from the year 1 to 1970
    micros = column.dt.microsecond()
    # Of times before 1970, Spark is asked in a way that counts from the next second, below zero.
    micros = narwhals.when(micros < 0).then(micros + 1_000_000).otherwise(micros)
    seconds = ((days * 24 + column.dt.hour()) * 60 + column.dt.minute()) * 60 + column.dt.second()
    return seconds * 1e6 + micros


# What an engine tells of whole columns at once: rows, nulls, infinities, the range and the moments.


@dataclass(frozen=True, slots=True)
class Totals:
    """A column: all `rows`, the `nulls` among them (NaN too), infinities, and the rest's range, mean and deviation.

    `below` and `above` are the finite values outside the range of the column that it is held against. `stranger` is a
    value that this one's kind cannot hold, the fraction of a whole number say; None where there is none.
    """

    rows: int
    nulls: int
    negative_infinities: int = 0
    positive_infinities: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    below: int = 0
    above: int = 0
    stranger: float | None = None

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.known - self.negative_infinities - self.positive_infinities


def totals(rows: LazyRows, columns: Sequence[LazyColumn], like: Mapping[str, ProfiledColumn]) -> list[Totals]:
    """The totals of each of `columns`, which are one query; `like` are columns by name to hold them against."""
    import narwhals

    asked = [narwhals.len().alias("rows")]
    for index, column in enumerate(columns):
        # As columns of their own, values are computed once for all that is asked of them.
        values = replace(column, values=narwhals.col(str(index)))
        asked += [expression.alias(f"{key} {index}") for key, expression in _asked(values, like).items()]
    frame = rows.frame.select(*(column.values.alias(str(index)) for index, column in enumerate(columns)))
    row = rows.answer(frame.select(*asked)).row(0, named=True)
    told = [{key: row.get(f"{key} {index}") for key in _KEYS} for index in range(len(columns))]
    return [_totals(rows, column, int(row["rows"]), found) for column, found in zip(columns, told, strict=True)]


_KEYS = ("nulls", "finite", "negative", "positive", "minimum", "maximum", "mean", "std", "below", "above", "stranger")


def _asked(column: LazyColumn, like: Mapping[str, ProfiledColumn]) -> dict[str, narwhals.Expr]:
    values = column.values
    asked = {"nulls": values.null_count()}
    if column.kind in (None, "category"):
        return asked
    finite = _finite(values) if column.kind == "float" else values
    asked |= {"minimum": finite.min(), "maximum": finite.max(), "mean": finite.mean(), "std": finite.std(ddof=0)}
    if column.kind == "float":
        # NaN is what is neither null nor finite nor infinite. DuckDB sees none where it is asked for NaN: it takes the
        # range that a Parquet file states of a column, which leaves NaN out, for a proof that there is none.
        asked |= {
            "finite": finite.count(),
            "negative": _count(values == -math.inf),
            "positive": _count(values == math.inf),
        }
    reference = like.get(column.name)
    if isinstance(reference, NumericColumn) and column.kind != "category":
        if reference.finite:
            asked |= {"below": _count(finite < reference.minimum), "above": _count(finite > reference.maximum)}
        if (strange := _strange(column, reference)) is not None:
            asked["stranger"] = strange
    return asked


def _strange(column: LazyColumn, reference: NumericColumn) -> narwhals.Expr | None:
    import narwhals

    values = column.values
    known = narwhals.when(values.is_finite() | (values.abs() == math.inf)).then(values)
    if reference.kind == "boolean" and column.kind != "boolean":
        return narwhals.when((known != 0) & (known != 1)).then(known).min()
    if reference.kind == "integer" and column.kind == "float":
        finite = _finite(values)
        return narwhals.when(finite != finite.floor()).then(finite).min()
    return None


def _finite(values: narwhals.Expr) -> narwhals.Expr:
    import narwhals

    return narwhals.when(values.is_finite()).then(values)


def _count(condition: narwhals.Expr) -> narwhals.Expr:
    """How often a condition holds. Its sum would do, if Spark had sums of conditions."""
    import narwhals

    return narwhals.when(condition).then(1).otherwise(0).sum()


def _totals(rows: LazyRows, column: LazyColumn, n: int, told: Mapping[str, Any]) -> Totals:
    counts = {key: int(told[key] or 0) for key in ("nulls", "negative", "positive", "below", "above")}
    infinite = counts["negative"] + counts["positive"]
    nan = n - counts["nulls"] - infinite - int(told["finite"]) if column.kind == "float" else 0
    minimum, maximum = (float(told[key]) if told[key] is not None else 0.0 for key in ("minimum", "maximum"))
    mean, std = told["mean"], told["std"]
    if minimum == maximum:
        mean, std = minimum, 0.0
    elif not (math.isfinite(mean) and math.isfinite(std)):
        mean, std = _scaled_moments(rows, column, max(-minimum, maximum))
    return Totals(
        rows=n,
        nulls=counts["nulls"] + nan,
        negative_infinities=counts["negative"],
        positive_infinities=counts["positive"],
        minimum=minimum,
        maximum=maximum,
        mean=min(max(float(mean), minimum), maximum),
        std=float(std),
        below=counts["below"],
        above=counts["above"],
        stranger=None if told["stranger"] is None else float(told["stranger"]),
    )


def _scaled_moments(rows: LazyRows, column: LazyColumn, largest: float) -> tuple[float, float]:
    """Mean and deviation where the sum of the squares is beyond what a double holds: of the values over the largest."""
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    values = _finite(column.values) / scale
    mean, std = rows.answer(rows.frame.select(values.mean().alias("mean"), values.std(ddof=0).alias("std"))).row(0)
    return mean * scale, std * scale


# How many rows have each text of a column, and how long these are.


MAX_NAMES = 1_000_000
"""Different texts of one column that come back: about 150 MB, and each goes into its pool by a hash of its own."""


def count_names(rows: LazyRows, column: LazyColumn) -> Counter[str]:
    """How many rows have each text of `column`, null left out.

    InputError, naming the column, for more than MAX_NAMES texts.
    """
    import narwhals

    text = narwhals.col("text")
    answer = rows.answer(
        rows.frame.select(column.values.alias("text"))
        .filter(~text.is_null())
        .group_by("text")
        .agg(narwhals.len().alias("rows"))
        .head(MAX_NAMES + 1)
    )
    if len(answer) > MAX_NAMES:
        raise InputError(
            f"{rows.name}: column {column.name!r} holds more than {MAX_NAMES:,} different texts: leave it out, or keep "
            "of it what rows have in common"
        )
    return Counter(dict(zip(answer["text"].to_list(), answer["rows"].to_list(), strict=True)))


def lengths_of(names: Mapping[str, int], *, rows: int) -> tuple[Totals, Cells]:
    """The letters of all texts, of which so many rows have each."""
    by_length = Counter[int]()
    for name, count in names.items():
        by_length[len(name)] += count
    values = np.array(sorted(by_length), dtype=np.float64)
    counts = np.array([by_length[int(value)] for value in values], dtype=np.int64)
    if not values.size:
        return Totals(rows, rows), Cells.of_values(values, counts)
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    ends = float(values[0]), float(values[-1])
    told = Totals(rows, rows - int(counts.sum()), minimum=ends[0], maximum=ends[1], mean=mean, std=std)
    return told, Cells.of_values(values, counts)


# From what an engine counted to columns of a profile.


_NO_LAG = LagOne(0.0, 0)
"""Rows of a query come in any order, and have no neighbours."""


def numeric(
    rows: LazyRows, column: LazyColumn, told: Totals, *, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """The profile of a column of numbers, between the edges of `like` where it is given."""
    edges = None if like is None else np.array(like.edges)
    if told.finite:
        edges, below = edges_and_below(rows, column.values, low=told.minimum, high=told.maximum, bins=bins, edges=edges)
    elif edges is not None:
        below = np.zeros(edges.size, dtype=np.int64)
    else:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: leave it out")
    # A column without a value is of the profile's kind, whatever type it has.
    kind = cast(Number, column.kind if like is None or told.known else like.kind)
    return _numeric(column.name, kind, told, edges, below)


def column_of_lengths(
    column: LazyColumn, names: Mapping[str, int], *, rows: int, bins: int = 256, like: NumericColumn | None = None
) -> NumericColumn:
    """The profile of the lengths of texts, of which so many of the `rows` have each."""
    told, cells = lengths_of(names, rows=rows)
    if like is None:
        edges = choose_edges(cells.ordered(), bins=bins)
    else:
        edges = np.array(like.edges)
        below, up_to = cells.below(np.array([like.minimum, np.nextafter(like.maximum, np.inf)])).tolist()
        told = replace(told, below=below, above=told.finite - up_to) if like.finite else told
    return _numeric(length_name(column.name), "integer", told, edges, cells.below(edges), source=column.name)


def categorical(
    column: LazyColumn, told: Totals, names: Mapping[str, int], *, like: ProfiledColumn | None = None
) -> CategoricalColumn:
    """The profile of a column of text, of which so many rows have each."""
    if not names and isinstance(like, CategoricalColumn):  # all null: nobody has seen a category, and none is lost
        return CategoricalColumn(column.name, told.rows, told.rows, like.categories, (0,) * len(like.counts), _NO_LAG)
    return CategoricalColumn.of(column.name, names, nulls=told.nulls, lag=_NO_LAG)


def _numeric(
    name: str, kind: Number, told: Totals, edges: Floats, below: Integers, *, source: str | None = None
) -> NumericColumn:
    counts = np.diff(below, prepend=0, append=told.finite)
    counts[0] += told.negative_infinities
    counts[-1] += told.positive_infinities
    return NumericColumn(
        name=name,
        kind=kind,
        rows=told.rows,
        nulls=told.nulls,
        negative_infinities=told.negative_infinities,
        positive_infinities=told.positive_infinities,
        minimum=told.minimum,
        maximum=told.maximum,
        mean=told.mean,
        std=told.std,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        lag=_NO_LAG,
        below=told.below,
        above=told.above,
        source=source,
    )


# From a lazy frame to its profile: a query for the totals of all columns, and one or a few for each column.


_TOGETHER = 32
"""Columns whose totals are one query: a dozen expressions each."""


@dataclass(frozen=True, slots=True)
class Beside:
    """The columns of a lazy frame that fit a profile, counted like it, and a sentence on each that does not."""

    columns: tuple[ProfiledColumn, ...]
    faults: tuple[str, ...]


def scan(
    frame: Frame,
    *,
    name: str = "reference",
    like: ReferenceProfile | None = None,
    block: int | None = None,
    bins: int = 256,
) -> ReferenceProfile:
    """The profile of a lazy frame: a Polars query, a DuckDB relation, a PySpark frame or another one of narwhals'.

    The engine that holds the rows counts them: in one query for every 32 columns, then in one or two for each column of
    numbers and one for each of text. Counts are exactly those of the same rows in memory between the same edges, as
    `like` gives them; without it, edges are chosen from how many values lie in each of about 32,768 cells. The engine
    adds up means and deviations, which rounds (`sums` are None). Rows of a frame have no order: neighbours are not
    compared (`lag` is of no pairs, `backward` None), and there are no associations, no sketch and no duplicates.

    Of a column of text, up to a million different texts come back, and their lengths are counted from these.

    Raises InputError, naming the column, for a type that cannot be profiled (embeddings among them), for a column that
    is null or infinite in every row, for more texts than that, for times that a session tells in another zone than UTC,
    for a frame without rows or, but for `like`, of a single one, and where the engine fails, with what it says.
    """
    if like is None:
        return ReferenceProfile(name, _scanned(LazyRows.of(frame, name), bins), block)
    beside = scan_beside(frame, like, name=name)
    if beside.faults:
        raise InputError(f"{name} does not fit the profile {like.name!r}: {'; '.join(beside.faults)}")
    return ReferenceProfile(name, beside.columns, block)


def scan_beside(frame: Frame, profile: ReferenceProfile, *, name: str = "data") -> Beside:
    """The columns of a lazy frame counted like `profile`, in its order; missing, additional and retyped are faults.

    Raises InputError as `scan` does with `like`.
    """
    rows = LazyRows.of(frame, name)
    references = {column.name: column for column in profile.columns}
    found = {column.name: (column, told) for column, told in _found(rows, references)}
    matching = match_columns(_seen(rows, list(found.values()), profile), profile)
    columns: dict[str, ProfiledColumn] = {}
    fitting = [reference for _, reference in matching.pairs if not is_length(reference)]
    for reference in progress(fitting, f"counting the columns of {name}"):
        column, told = found[reference.name]
        of_lengths = references.get(length_name(reference.name))
        if isinstance(reference, NumericColumn):
            columns[reference.name] = numeric(rows, column, told, like=reference)
        else:
            names = count_names(rows, column) if column.kind else {}
            columns[reference.name] = categorical(column, told, names, like=reference)
            if isinstance(of_lengths, NumericColumn) and is_length(of_lengths):
                columns[of_lengths.name] = column_of_lengths(column, names, rows=told.rows, like=of_lengths)
    return Beside(tuple(columns[reference.name] for _, reference in matching.pairs), matching.faults)


def _scanned(rows: LazyRows, bins: int) -> tuple[ProfiledColumn, ...]:
    found = _found(rows, {})
    if found[0][1].rows < 2:
        raise InputError("one row has no distribution: profile at least 2 rows, better thousands")
    columns: list[ProfiledColumn] = []
    lengths: list[ProfiledColumn] = []
    for column, told in progress(found, f"counting the columns of {rows.name}"):
        if not told.known:
            raise InputError(f"column {column.name!r} is null in every row: leave it out")
        if column.kind != "category":
            columns.append(numeric(rows, column, told, bins=bins))
            continue
        names = count_names(rows, column)
        columns.append(counted := categorical(column, told, names))
        if counted.pooled:
            lengths.append(column_of_lengths(column, names, rows=told.rows, bins=bins))
    return (*columns, *lengths)


def _found(rows: LazyRows, references: Mapping[str, ProfiledColumn]) -> list[tuple[LazyColumn, Totals]]:
    """All columns with their totals, at least one row in each."""
    columns = lazy_columns(rows)
    parts = [columns[start : start + _TOGETHER] for start in range(0, len(columns), _TOGETHER)]
    told = [
        found
        for part in progress(parts, f"adding up the columns of {rows.name}")
        for found in totals(rows, part, references)
    ]
    if not told[0].rows:
        raise InputError(f"there are no rows in {rows.name}")
    for column, found in zip(columns, told, strict=True):
        if column.kind is None and found.known:
            raise InputError(
                f"{rows.name}: column {column.name!r} holds what is neither numbers nor text nor times: turn it into "
                "one of them, or leave it out"
            )
    return list(zip(columns, told, strict=True))


def _seen(rows: LazyRows, found: Sequence[tuple[LazyColumn, Totals]], profile: ReferenceProfile) -> Table:
    """What matching sees of the columns: their kinds, and one value that a column of the profile would not hold."""
    columns = [
        Column(
            column.name,
            column.kind if told.known else None,
            np.empty(0) if told.stranger is None else np.array([told.stranger]),
        )
        for column, told in found
    ]
    texts = {column.name: column.kind for column in columns if column.kind in ("category", None)}
    columns += [
        Column(expected.name, "integer" if texts[expected.source] else None, np.empty(0), expected.source)
        for expected in profile.columns
        if is_length(expected) and expected.source in texts
    ]
    return Table(rows.name, tuple(columns))
