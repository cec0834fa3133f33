"""The columns of a lazy frame as expressions: numbers as doubles, times as seconds since 1970, text as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.kinds import Kind
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows

if TYPE_CHECKING:
    import narwhals


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
