"""Columns of data frames (pandas, Polars, PyArrow), through narwhals."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from pytest_modelserve.errors import InputError, MissingDependencyError, UsageError, unknown_choice
from pytest_modelserve.monitoring.columns import Column, Kind, as_columns, check_name, integer_column, unreadable
from pytest_modelserve.monitoring.read_options import ReadOptions, converted

if TYPE_CHECKING:
    import narwhals


class Frame(Protocol):
    """A data frame of a library that narwhals supports; the package depends on none of them."""

    @property
    def columns(self) -> Any:
        """The columns or their names."""


class NoRowsError(InputError):
    """Data without rows: an error for a profile, and a FAIL for data under test."""


def check_names(names: Iterable[object]) -> None:
    """Refuse names that pandas and PyArrow allow."""
    for name, times in Counter(names).items():
        check_name(name)
        if times > 1:
            raise InputError(f"{times} columns are called {name!r}: give each its own name")


_INDEX = re.compile(r"__index_level_\d+__")
"""The name that pandas gives an index without a name when it writes a file."""


def read_names(names: Sequence[str], options: ReadOptions, *, profiling: bool) -> list[str]:
    """Return the names of the columns to read: without excluded ones, and without an index of pandas.

    Raises UsageError if `profiling` and `types` names an unknown column, or `exclude` nearly a known one.
    """
    if profiling:
        for name in options.types:
            if name not in names:
                raise UsageError(f"types: {unknown_choice('column', name, names)}")
        for name in options.exclude:  # later data may have it
            if name not in names and difflib.get_close_matches(name, names):
                raise UsageError(f"exclude: {unknown_choice('column', name, names)}")
    return [name for name in names if options.reads(name) and not _INDEX.fullmatch(str(name))]


def index_names(metadata: bytes | str | None) -> set[str]:
    """Return the index columns in the metadata that pandas writes to Parquet files and PyArrow tables."""
    if not metadata:
        return set()
    try:
        columns = json.loads(metadata)["index_columns"]
    except (ValueError, KeyError, TypeError):
        return set()
    return {name for name in columns if isinstance(name, str)}


def read_columns(name: str, values: ArrayLike, options: ReadOptions, *, profiling: bool) -> list[Column]:
    """Read the column of `values`, converted to its declared kind.

    Raises InputError for values that cannot be read if `profiling`; otherwise the column holds the error.
    """
    try:
        columns = as_columns(name, values, null_values=options.null_values)
        return [converted(column, options.types.get(name), options) for column in columns]
    except InputError as error:
        if profiling or not isinstance(name, str):
            raise
        return [unreadable(name, len(np.atleast_1d(np.asarray(values, dtype=object))), str(error))]


_LIBRARIES = ("pandas", "polars", "pyarrow", "narwhals", "duckdb", "pyspark", "modin", "cudf", "dask", "ibis")
"""Libraries whose frames narwhals reads: the error names the extra if narwhals is missing."""


def is_lazy(data: object) -> bool:
    """Return True if `data` is a frame whose rows are not in memory, such as a query."""
    frame = _wrapped(data)
    if frame is None:
        return False
    import narwhals

    return isinstance(frame, narwhals.LazyFrame)


def frame_columns(
    data: object,
    options: ReadOptions,
    *,
    profiling: bool,
    source: str | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> list[Column] | None:
    """Read the columns of a data frame in memory; None if `data` is not a frame. `source` is its name in messages.

    `kinds` are kinds that columns are converted to besides the declared ones.
    """
    frame = _wrapped(data)
    if frame is None:
        return None
    if is_lazy(data):
        raise InputError(f"data is a lazy {type(data).__name__}, whose rows are not in memory: collect it first")
    check_names(frame.columns)
    indexes = index_names((getattr(getattr(data, "schema", None), "metadata", None) or {}).get(b"pandas"))
    where = f"{source}: " if source else ""
    declared = {**(kinds or {}), **options.types}
    columns: list[Column] = []
    for name in read_names(frame.columns, options, profiling=profiling and source is None):
        if name in indexes:
            continue
        try:
            found = _series_columns(where, name, frame[name], options)
            columns += [converted(column, declared.get(name), options) for column in found]
        except InputError as error:
            if profiling:
                raise
            columns.append(unreadable(name, len(frame), str(error)))
    return columns


def _wrapped(data: Any) -> Any:
    if isinstance(data, np.ndarray) or not hasattr(type(data), "columns"):
        return None
    try:
        import narwhals
    except ModuleNotFoundError as error:
        library = type(data).__module__.partition(".")[0]
        if library not in _LIBRARIES:
            return None
        raise MissingDependencyError(
            f"reading a {library} frame needs narwhals, which is not installed: pip install 'pytest-modelserve[data]'"
        ) from error
    try:
        frame = narwhals.from_native(data, pass_through=True)
    except narwhals.exceptions.DuplicateError:
        check_names(getattr(data, "column_names", data.columns))  # PyArrow's `columns` are not names
        raise
    return frame if isinstance(frame, (narwhals.DataFrame, narwhals.LazyFrame)) else None


def _series_columns(where: str, name: str, series: narwhals.Series[Any], options: ReadOptions) -> list[Column]:
    import narwhals

    dtype = series.dtype
    nulls = series.null_count()
    if len(series) and nulls == len(series) and not isinstance(dtype, (narwhals.Array, narwhals.List)):
        return [Column(name, None, np.full(len(series), np.nan))]
    if dtype.is_numeric() or dtype == narwhals.Boolean:
        return [_numeric_column(name, series, nulls)]
    if dtype in (narwhals.String, narwhals.Categorical, narwhals.Enum):
        text = series if dtype == narwhals.String else series.cast(narwhals.String)
        values = np.array(text.to_numpy(), dtype=object)  # a copy: pandas lends its own
        if nulls:
            values[text.is_null().to_numpy()] = None
        column = as_columns(name, values, null_values=options.null_values)[0] if options.null_values else None
        return [column or Column(name, "category", values, declared=dtype != narwhals.String)]
    if isinstance(dtype, (narwhals.Datetime, narwhals.Date, narwhals.Duration, narwhals.Array, narwhals.List)) or (
        dtype in (narwhals.Date, narwhals.Object, narwhals.Unknown)
    ):
        return as_columns(name, series.to_numpy(), null_values=options.null_values)
    raise InputError(f"{where}column {name!r} holds {dtype}, not numbers, text or times: convert or remove it")


def _numeric_column(name: str, series: narwhals.Series[Any], nulls: int) -> Column:
    """Return the numbers uncopied, or as floats if some are null or numpy has no type for them."""
    import narwhals

    dtype = series.dtype
    if dtype in (narwhals.Int128, narwhals.UInt128):
        low, high = series.min(), series.max()
        if low is not None and low >= 0 and high < 2**64:
            series = series.cast(narwhals.UInt64)
            dtype = series.dtype
        elif low is not None and low >= -(2**63) and high < 2**63:
            series = series.cast(narwhals.Int64)
            dtype = series.dtype
    if dtype.is_integer() and nulls and dtype not in (narwhals.Int128, narwhals.UInt128):
        known = series.fill_null(0).to_numpy()
        unsigned = dtype in (narwhals.UInt8, narwhals.UInt16, narwhals.UInt32, narwhals.UInt64)
        whole = known.astype(np.uint64 if unsigned else np.int64)
        return integer_column(name, whole, np.asarray(series.is_null().to_numpy(), dtype=np.bool_))
    if nulls or dtype.is_decimal() or dtype in (narwhals.Int128, narwhals.UInt128):
        series = series.cast(narwhals.Float64)
    values = series.to_numpy()
    if dtype == narwhals.Boolean:
        return Column(name, "boolean", values)
    if dtype.is_integer():
        return Column(name, "integer", values)
    return as_columns(name, values)[0]
