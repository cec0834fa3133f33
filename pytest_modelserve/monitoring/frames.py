"""Columns of data frames, read through narwhals: pandas, Polars, PyArrow and whatever else it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pytest_modelserve.errors import InputError, MissingDependencyError
from pytest_modelserve.monitoring.arrays import as_columns
from pytest_modelserve.monitoring.kinds import Column

if TYPE_CHECKING:
    import narwhals


class Frame(Protocol):
    """A data frame of a library that narwhals knows; the package depends on none of them."""

    @property
    def columns(self) -> Any:
        """The columns or their names."""


_LIBRARIES = ("pandas", "polars", "pyarrow", "narwhals", "duckdb", "pyspark", "modin", "cudf", "dask", "ibis")
"""Where the types of frames come from: to be told what reads them where narwhals is missing."""


def frame_columns(data: object, *, source: str | None = None) -> list[Column] | None:
    """The columns of a data frame whose rows lie in memory; None where `data` is none.

    `source` is what messages call the data. Raises InputError for a frame whose rows lie elsewhere, a column of another
    type than numbers, text, booleans, times, durations and embeddings, and names that are no text or stand twice;
    MissingDependencyError without narwhals.
    """
    frame = _wrapped(data)
    if frame is None:
        return None
    if is_lazy(data):
        raise InputError(f"the rows of a {type(data).__name__} do not lie in memory: collect it first")
    _check_names(frame.columns)
    where = f"{source}: " if source else ""
    return [column for name in frame.columns for column in _columns(where, name, frame[name])]


def is_lazy(data: object) -> bool:
    """Whether `data` is a frame whose rows lie elsewhere, as those of a query do."""
    frame = _wrapped(data)
    if frame is None:
        return False
    import narwhals

    return isinstance(frame, narwhals.LazyFrame)


def _wrapped(data: Any) -> Any:
    if isinstance(data, np.ndarray) or not hasattr(type(data), "columns"):
        return None
    try:
        import narwhals
    except ModuleNotFoundError as error:
        if type(data).__module__.partition(".")[0] not in _LIBRARIES:
            return None
        raise MissingDependencyError(
            f"reading a {type(data).__module__.partition('.')[0]} frame needs narwhals, which is not installed: "
            "pip install 'pytest-modelserve[data]'"
        ) from error
    try:
        frame = narwhals.from_native(data, pass_through=True)
    except narwhals.exceptions.DuplicateError:
        _check_names(getattr(data, "column_names", data.columns))  # PyArrow's `columns` are not names
        raise
    return frame if isinstance(frame, (narwhals.DataFrame, narwhals.LazyFrame)) else None


def _check_names(names: Iterable[object]) -> None:
    """Refuse what pandas and PyArrow allow."""
    for name, times in Counter(names).items():
        if not isinstance(name, str):
            raise InputError(f"names of columns are text, not {name!r}")
        if times > 1:
            raise InputError(f"{times} columns are called {name!r}: give each a name of its own")


def _columns(where: str, name: str, series: narwhals.Series[Any]) -> list[Column]:
    import narwhals

    kind = series.dtype
    nulls = series.null_count()
    if len(series) and nulls == len(series) and not isinstance(kind, (narwhals.Array, narwhals.List)):
        return [Column(name, None, np.full(len(series), np.nan))]
    if kind.is_numeric() or kind == narwhals.Boolean:
        return [_of_numbers(name, series, nulls)]
    if kind in (narwhals.String, narwhals.Categorical, narwhals.Enum):
        text = series.cast(narwhals.String)
        values = np.array(text.to_numpy(), dtype=object)  # a copy: pandas lends its own
        if nulls:
            values[text.is_null().to_numpy()] = None
        return [Column(name, "category", values)]
    if isinstance(kind, (narwhals.Datetime, narwhals.Date, narwhals.Duration, narwhals.Array, narwhals.List)) or (
        kind in (narwhals.Date, narwhals.Object, narwhals.Unknown)
    ):
        return as_columns(name, series.to_numpy())
    raise InputError(
        f"{where}column {name!r} holds {kind}, which is neither numbers nor text nor times: turn it into one of them, "
        "or leave it out"
    )


def _of_numbers(name: str, series: narwhals.Series[Any], nulls: int) -> Column:
    """The numbers as they lie in memory, or as floats where some are null or no type of numpy's holds them."""
    import narwhals

    kind = series.dtype
    if nulls or kind.is_decimal() or kind in (narwhals.Int128, narwhals.UInt128):
        series = series.cast(narwhals.Float64)
    values = series.to_numpy()
    if kind == narwhals.Boolean:
        return Column(name, "boolean", values)
    if kind.is_integer():
        return Column(name, "integer", values)
    return as_columns(name, values)[0]
