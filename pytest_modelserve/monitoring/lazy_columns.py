"""Columns of lazy frames (Polars, DuckDB, PySpark), as expressions that their engine evaluates through narwhals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.monitoring.column_profile import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Kind
from pytest_modelserve.monitoring.frames import Frame, is_lazy, read_names
from pytest_modelserve.monitoring.read_options import ReadOptions

if TYPE_CHECKING:
    import narwhals
    import polars


@dataclass(frozen=True, slots=True)
class LazyRows:
    """A lazy frame, and its name in messages."""

    frame: narwhals.LazyFrame[Any]
    name: str

    @classmethod
    def of(cls, frame: Frame, name: str, options: ReadOptions, *, profiling: bool = False) -> LazyRows:
        """Return the rows of a lazy frame of any library that narwhals supports, without excluded columns.

        Raises InputError for anything else, and UsageError if `profiling` for options that only text in memory has.
        """
        if not is_lazy(frame):
            raise InputError(f"frame must be a lazy frame; got {type(frame).__name__}: use reference_profile")
        import narwhals

        rows = cls(narwhals.from_native(frame), name)
        names = list(rows.schema())
        declared = set(options.types.values()) - {"category"}
        if profiling and (declared or replace(options, exclude=(), types={}) != ReadOptions()):
            raise UsageError(
                "a lazy frame takes only exclude= and types= of categories of the options of reading: convert columns "
                "in the query"
            )
        kept = read_names(names, options, profiling=profiling)
        return rows if kept == names else cls(rows.frame.select(*kept), name)

    def schema(self) -> dict[str, Any]:
        """Return the type of each column by name."""
        with self._engine_errors():
            return dict(self.frame.collect_schema())

    def collect(self, query: narwhals.LazyFrame[Any]) -> polars.DataFrame:
        """Return the result of a query over these rows; InputError with the first line of the engine's error."""
        with self._engine_errors():
            result: polars.DataFrame = query.collect(backend="polars").to_native()
            return result

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except (ModelServeError, MemoryError):
            raise
        except Exception as error:  # each engine has its own exception classes, which may not be imported here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name} cannot be scanned: {reason}") from error


@dataclass(frozen=True, slots=True)
class LazyColumn:
    """A column as an expression: numbers as doubles, times as seconds since 1970.

    `kind` is None for the null type, and for values that cannot be read; `error` then says why.
    """

    name: str
    kind: Kind | None
    values: narwhals.Expr
    error: str = ""


def lazy_columns(rows: LazyRows, *, profiling: bool) -> list[LazyColumn]:
    """Return all columns of `rows`.

    Raises InputError, naming the column, for values that are not numbers, text or times, for embeddings, and for times
    in the zone of a session that is not UTC, of which engines give only the local hours. Unless `profiling`, the column
    holds the error.
    """
    import narwhals

    schema = rows.schema()
    if not schema:
        raise InputError(f"{rows.name}: there are no columns")
    columns = []
    for name, dtype in schema.items():
        try:
            columns.append(_column(rows, name, dtype))
        except InputError as error:
            if profiling:
                raise
            columns.append(LazyColumn(name, None, narwhals.col(name).is_null(), str(error)))
    return columns


def _column(rows: LazyRows, name: str, dtype: Any) -> LazyColumn:
    import narwhals

    column = narwhals.col(name)
    if dtype == narwhals.Boolean:
        return LazyColumn(name, "boolean", column.cast(narwhals.Float64))
    if dtype.is_numeric():
        return LazyColumn(name, "integer" if dtype.is_integer() else "float", column.cast(narwhals.Float64))
    if dtype in (narwhals.String, narwhals.Categorical, narwhals.Enum):
        return LazyColumn(name, "category", column.cast(narwhals.String))
    if isinstance(dtype, narwhals.Datetime) or dtype == narwhals.Date:
        return LazyColumn(name, "datetime", _seconds(rows, name, dtype))
    if isinstance(dtype, narwhals.Duration):
        return LazyColumn(name, "float", column.dt.total_microseconds().cast(narwhals.Float64) / 1e6)
    if dtype == narwhals.Unknown:  # the type of an all-null column, and of all types that narwhals does not support
        return LazyColumn(name, None, column)
    if isinstance(dtype, (narwhals.List, narwhals.Array)):
        raise InputError(
            f"{rows.name}: column {name!r} holds embeddings: collect the frame first, or remove the column"
        )
    raise InputError(f"{rows.name}: column {name!r} holds {dtype}, not numbers, text or times: convert or remove it")


def _seconds(rows: LazyRows, name: str, dtype: Any) -> narwhals.Expr:
    """Return seconds since 1970 in UTC, to the microsecond; times without a zone are UTC."""
    import narwhals

    column = narwhals.col(name)
    if dtype == narwhals.Date:
        column = column.cast(narwhals.Datetime("us"))
    since_1970 = column.dt.timestamp("us").cast(narwhals.Float64)
    try:
        rows.frame.select(since_1970)
    except NotImplementedError:
        zone = getattr(dtype, "time_zone", None)
        if zone not in (None, "UTC", "Etc/UTC"):
            raise InputError(
                f"{rows.name}: column {name!r} has times in the session's time zone, {zone}: set it to UTC"
            ) from None
        return _from_calendar(column) / 1e6
    # The divisor is a column: Polars turns division by a constant into multiplication by its reciprocal, which rounds
    # twice.
    return since_1970 / (since_1970 * 0 + 1e6)


def _from_calendar(column: narwhals.Expr) -> narwhals.Expr:
    """Return microseconds since 1970 from year, day of the year and time of day, which all SQL engines have."""
    import narwhals

    years = column.dt.year().cast(narwhals.Float64) - 1
    leap_days = (years / 4).floor() - (years / 100).floor() + (years / 400).floor()
    days = 365 * years + leap_days + column.dt.ordinal_day() - 719_163  # days from the year 1 to 1970
    micros = column.dt.microsecond()
    # For times before 1970, the query for Spark counts back from the next second.
    micros = narwhals.when(micros < 0).then(micros + 1_000_000).otherwise(micros)
    seconds = ((days * 24 + column.dt.hour()) * 60 + column.dt.minute()) * 60 + column.dt.second()
    return seconds * 1e6 + micros


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of a column: `rows`, `nulls` (with NaN), infinities, and the range and moments of finite values.

    `below` and `above` count finite values outside the range of the reference column. `invalid` is a value that does
    not fit the reference's kind, such as a fraction in a column of integers; None if there is none.
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
    invalid: float | None = None

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.known - self.negative_infinities - self.positive_infinities


def totals(rows: LazyRows, columns: Sequence[LazyColumn], like: Mapping[str, ProfiledColumn]) -> list[Totals]:
    """Return the totals of `columns` by one query; `like` are reference columns by name."""
    import narwhals

    expressions = [narwhals.len().alias("rows")]
    for index, column in enumerate(columns):
        # As separate columns, values are computed once for all expressions.
        values = replace(column, values=narwhals.col(str(index)))
        expressions += [expression.alias(f"{key} {index}") for key, expression in _expressions(values, like).items()]
    frame = rows.frame.select(*(column.values.alias(str(index)) for index, column in enumerate(columns)))
    row = rows.collect(frame.select(*expressions)).row(0, named=True)
    results = [{key: row.get(f"{key} {index}") for key in _KEYS} for index in range(len(columns))]
    return [_totals(rows, column, int(row["rows"]), result) for column, result in zip(columns, results, strict=True)]


_KEYS = ("nulls", "finite", "negative", "positive", "minimum", "maximum", "mean", "std", "below", "above", "invalid")


def _expressions(column: LazyColumn, like: Mapping[str, ProfiledColumn]) -> dict[str, narwhals.Expr]:
    values = column.values
    found = {"nulls": values.null_count()}
    if column.kind in (None, "category"):
        return found
    finite = _finite(values) if column.kind == "float" else values
    found |= {"minimum": finite.min(), "maximum": finite.max(), "mean": finite.mean(), "std": finite.std(ddof=0)}
    if column.kind == "float":
        # NaN is counted as neither null, finite nor infinite. DuckDB finds no NaN: it trusts the range in a Parquet
        # file's statistics, which ignores NaN.
        found |= {
            "finite": finite.count(),
            "negative": _count(values == -math.inf),
            "positive": _count(values == math.inf),
        }
    reference = like.get(column.name)
    if isinstance(reference, NumericColumn) and column.kind != "category":
        if reference.finite:
            found |= {"below": _count(finite < reference.minimum), "above": _count(finite > reference.maximum)}
        if (invalid := _invalid(column, reference)) is not None:
            found["invalid"] = invalid
    return found


def _invalid(column: LazyColumn, reference: NumericColumn) -> narwhals.Expr | None:
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
    """Count how often a condition holds; Spark has no sum of conditions."""
    import narwhals

    return narwhals.when(condition).then(1).otherwise(0).sum()


def _totals(rows: LazyRows, column: LazyColumn, n: int, result: Mapping[str, Any]) -> Totals:
    counts = {key: int(result[key] or 0) for key in ("nulls", "negative", "positive", "below", "above")}
    infinite = counts["negative"] + counts["positive"]
    nan = n - counts["nulls"] - infinite - int(result["finite"]) if column.kind == "float" else 0
    minimum, maximum = (float(result[key]) if result[key] is not None else 0.0 for key in ("minimum", "maximum"))
    mean, std = result["mean"], result["std"]
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
        invalid=None if result["invalid"] is None else float(result["invalid"]),
    )


def _scaled_moments(rows: LazyRows, column: LazyColumn, largest: float) -> tuple[float, float]:
    """Return mean and standard deviation if the sum of squares overflows, by scaling the values."""
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    values = _finite(column.values) / scale
    mean, std = rows.collect(rows.frame.select(values.mean().alias("mean"), values.std(ddof=0).alias("std"))).row(0)
    return mean * scale, std * scale


MAX_TEXTS = 1_000_000
"""The most different texts of one column: about 150 MB; each is hashed into its bucket in this process."""


def count_texts(rows: LazyRows, column: LazyColumn) -> Counter[str]:
    """Count the rows of each text of `column`, without null; InputError for more than MAX_TEXTS texts."""
    import narwhals

    text = narwhals.col("text")
    result = rows.collect(
        rows.frame.select(column.values.alias("text"))
        .filter(~text.is_null())
        .group_by("text")
        .agg(narwhals.len().alias("rows"))
        .head(MAX_TEXTS + 1)
    )
    if len(result) > MAX_TEXTS:
        raise InputError(
            f"{rows.name}: column {column.name!r} holds more than {MAX_TEXTS:,} different texts: remove or group them"
        )
    return Counter(dict(zip(result["text"].to_list(), result["rows"].to_list(), strict=True)))
