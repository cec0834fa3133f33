"""Tables of columns from arrays, mappings, data frames, and CSV and Parquet files."""

from __future__ import annotations

import csv
import glob
import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, MissingDependencyError, unknown_choice
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column, Kind, as_column, as_columns, lengths
from pytest_modelserve.progress import progress

if TYPE_CHECKING:
    import narwhals
    import polars


class Frame(Protocol):
    """A data frame of a library that narwhals supports; the package depends on none of them."""

    @property
    def columns(self) -> Any:
        """The columns or their names."""


Data = NDArray[Any] | Mapping[str, ArrayLike] | Frame | str | os.PathLike[str]
"""An array (n, features); a mapping of columns (n,) or embeddings (n, d) by name; a pandas, Polars or PyArrow frame; or
the path of a .csv or .parquet file, or a pattern such as "logs/2026-*.parquet" for many."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of one data set in order, all of the same length, and its name in messages."""

    name: str
    columns: tuple[Column, ...]

    @property
    def rows(self) -> int:
        """The number of rows, at least 1."""
        return len(self.columns[0].values)

    def with_lengths_of(self, names: Container[str | None]) -> Table:
        """Return this table with the lengths of the texts in columns `names` appended, where these hold text.

        Raises InputError if the data have a column of such a name.
        """
        texts = [c for c in self.columns if c.name in names and c.kind in ("category", None)]
        return Table(self.name, _checked([*self.columns, *map(lengths, texts)], self.name)) if texts else self


def read_table(data: Data, *, names: Sequence[str] | None = None, name: str | None = None) -> Table:
    """Read the columns of `data`; those of an array are called `names`, by default column_0, column_1 ….

    `name` is the name of the data in messages: by default the stem of a file, or "data". Numbers are not copied if they
    lie in memory in one piece. None, NaN, NaT and empty CSV fields are null. Times are seconds since 1970 in UTC, also
    those without a time zone; durations are seconds. An embedding of d numbers becomes d columns name[0], name[1] ….

    Raises InputError, naming the column or the file, for data without columns or rows, columns of different lengths or
    of one name, and values that are not numbers, text or times. Raises MissingDependencyError without a needed extra.
    """
    source = name or "the data"
    if isinstance(data, (str, os.PathLike)):
        columns, source, name = _read_files(data), str(data), name or Path(data).stem
    elif isinstance(data, Mapping):
        columns = [column for key, values in data.items() for column in as_columns(key, values)]
    else:
        of_frame = _frame_columns(data)
        columns = _array_columns(data, names) if of_frame is None else of_frame
    return Table(name or "data", _checked(columns, source))


def _array_columns(data: object, names: Sequence[str] | None) -> list[Column]:
    if not isinstance(data, np.ndarray) or data.ndim != 2:
        shown = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(
            "data must be an array (n, features), a dict of columns, a pandas, Polars or PyArrow frame, or the path of "
            f"a .csv or .parquet file; got {shown}"
        )
    if names is not None and len(names) != data.shape[1]:
        raise InputError(f"data has {data.shape[1]} columns, expected {len(names)} ({', '.join(names)})")
    names = [f"column_{index}" for index in range(data.shape[1])] if names is None else names
    return [as_column(name, data[:, index]) for index, name in enumerate(names)]


def _checked(columns: Sequence[Column], source: str) -> tuple[Column, ...]:
    if not columns:
        raise InputError(f"{source}: there are no columns")
    for name, times in Counter(column.name for column in columns).items():
        if times > 1:
            raise InputError(f"{times} columns are called {name!r}: give each its own name")
    first = columns[0]
    for column in columns:
        if len(column.values) != len(first.values):
            raise InputError(
                f"column {column.name!r} has {len(column.values)} rows, and column {first.name!r} has "
                f"{len(first.values)}: all columns need one value for each row"
            )
    if not len(first.values):
        raise InputError(f"{source}: there are no rows")
    return tuple(columns)


# Data frames, through narwhals.

_LIBRARIES = ("pandas", "polars", "pyarrow", "narwhals", "duckdb", "pyspark", "modin", "cudf", "dask", "ibis")
"""Libraries whose frames narwhals reads: the error names the extra if narwhals is missing."""


def is_lazy(data: object) -> bool:
    """Return True if `data` is a frame whose rows are not in memory, such as a query."""
    frame = _wrapped(data)
    if frame is None:
        return False
    import narwhals

    return isinstance(frame, narwhals.LazyFrame)


def _frame_columns(data: object, *, source: str | None = None) -> list[Column] | None:
    """Read the columns of a data frame in memory; None if `data` is not a frame. `source` is its name in messages."""
    frame = _wrapped(data)
    if frame is None:
        return None
    if is_lazy(data):
        raise InputError(f"data is a lazy {type(data).__name__}, whose rows are not in memory: collect it first")
    _check_names(frame.columns)
    where = f"{source}: " if source else ""
    return [column for name in frame.columns for column in _series_columns(where, name, frame[name])]


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
        _check_names(getattr(data, "column_names", data.columns))  # PyArrow's `columns` are not names
        raise
    return frame if isinstance(frame, (narwhals.DataFrame, narwhals.LazyFrame)) else None


def _check_names(names: Iterable[object]) -> None:
    """Refuse names that pandas and PyArrow allow."""
    for name, times in Counter(names).items():
        if not isinstance(name, str):
            raise InputError(f"names of columns must be text; got {name!r}")
        if times > 1:
            raise InputError(f"{times} columns are called {name!r}: give each its own name")


def _series_columns(where: str, name: str, series: narwhals.Series[Any]) -> list[Column]:
    import narwhals

    dtype = series.dtype
    nulls = series.null_count()
    if len(series) and nulls == len(series) and not isinstance(dtype, (narwhals.Array, narwhals.List)):
        return [Column(name, None, np.full(len(series), np.nan))]
    if dtype.is_numeric() or dtype == narwhals.Boolean:
        return [_numeric_column(name, series, nulls)]
    if dtype in (narwhals.String, narwhals.Categorical, narwhals.Enum):
        text = series.cast(narwhals.String)
        values = np.array(text.to_numpy(), dtype=object)  # a copy: pandas lends its own
        if nulls:
            values[text.is_null().to_numpy()] = None
        return [Column(name, "category", values)]
    if isinstance(dtype, (narwhals.Datetime, narwhals.Date, narwhals.Duration, narwhals.Array, narwhals.List)) or (
        dtype in (narwhals.Date, narwhals.Object, narwhals.Unknown)
    ):
        return as_columns(name, series.to_numpy())
    raise InputError(f"{where}column {name!r} holds {dtype}, not numbers, text or times: convert or remove it")


def _numeric_column(name: str, series: narwhals.Series[Any], nulls: int) -> Column:
    """Return the numbers uncopied, or as floats if some are null or numpy has no type for them."""
    import narwhals

    dtype = series.dtype
    if nulls or dtype.is_decimal() or dtype in (narwhals.Int128, narwhals.UInt128):
        series = series.cast(narwhals.Float64)
    values = series.to_numpy()
    if dtype == narwhals.Boolean:
        return Column(name, "boolean", values)
    if dtype.is_integer():
        return Column(name, "integer", values)
    return as_columns(name, values)[0]


# Files, by Polars.

_SUFFIXES = (".csv", ".parquet")
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
"""Dates in ISO 8601, as logs write them; 03/04/2026 is ambiguous."""


def _read_files(path: str | os.PathLike[str]) -> list[Column]:
    """Read a .csv file with a header, a .parquet file, or all files that match a pattern, sorted, as one data set.

    Empty fields of a CSV file are null, and a column of ISO dates only holds dates.
    """
    paths = matching_files(path)
    files = progress(paths, "reading files", total=len(paths)) if len(paths) > 1 else paths
    return _concatenated([(str(file), _read_file(file)) for file in files])


def matching_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that `path` is or matches, sorted; InputError if there are none, or of another type.

    The name of an existing file is that file, whatever characters it has.
    """
    found = [Path(path)]
    if not found[0].exists() and glob.has_magic(str(path)):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"no file matches {path}")
    for file in found:
        if file.suffix.lower() not in _SUFFIXES:
            raise InputError(f"{file}: {unknown_choice('kind of file', file.suffix, _SUFFIXES)}")
        if not file.is_file():
            raise InputError(f"{file} is not a file")
    return found


def _read_file(path: Path) -> list[Column]:
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {path} needs polars, which is not installed: pip install 'pytest-modelserve[data]'"
        ) from error
    is_csv = path.suffix.lower() == ".csv"
    try:
        frame = _read_csv(path) if is_csv else polars.read_parquet(path, glob=False)
    except (polars.exceptions.PolarsError, UnicodeDecodeError, csv.Error, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as {'CSV' if is_csv else 'Parquet'}: {reason}") from error
    columns = _frame_columns(frame, source=str(path))
    assert columns is not None
    return list(_checked(columns, str(path)))


def _read_csv(path: Path) -> polars.DataFrame:
    import polars

    _check_header(path)
    # The type depends on the whole column: a fraction may follow a million integers.
    frame = polars.read_csv(path, infer_schema_length=None, glob=False)
    if frame.width > 1 and frame.to_series(-1).null_count():
        _check_lines(path, frame)
    return frame.with_columns(_as_dates(series) for series in frame if series.dtype == polars.String)


def _check_header(path: Path) -> None:
    """Refuse repeated names in the header, which Polars would rename."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"{path}: {times} columns are called {name!r}: give each its own name")


def _check_lines(path: Path, frame: polars.DataFrame) -> None:
    """Refuse a line with fewer fields than the header, which Polars would fill with nulls.

    Only a file with a null in the last column can have one. A file without quotes is complete if it has as many commas
    as its rows need; counting them costs less than reading the file did.
    """
    data = path.read_bytes()
    if b'"' not in data and data.count(b",") == (frame.width - 1) * (frame.height + 1):
        return
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        for fields in reader:
            if len(fields) < frame.width:
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(fields)} fields, expected {frame.width} as in the "
                    "header: write an empty field as nothing between two commas"
                )


def _as_dates(series: polars.Series) -> polars.Series:
    """Return dates if all values of a text column are ISO dates of one form, otherwise the column unchanged."""
    import polars

    if not series.str.contains(_ISO).all(ignore_nulls=True) or series.null_count() == len(series):
        return series
    try:
        return series.str.to_datetime(time_unit="us")
    except polars.exceptions.PolarsError:  # 2026-02-30, or forms that differ from row to row
        return series


def _concatenated(parts: Sequence[tuple[str, list[Column]]]) -> list[Column]:
    """Concatenate the columns of all files, each with its name; those of one file are not copied.

    Raises InputError if a file has other columns, or a column of another kind. Integers and floats fit each other, and
    a column that is all null fits every kind.
    """
    first_name, first = parts[0]
    if len(parts) == 1:
        return first
    found = [(name, {column.name: column for column in columns}) for name, columns in parts]
    wanted = {column.name for column in first}
    for name, columns in found[1:]:
        for missing in [column.name for column in first if column.name not in columns]:
            raise InputError(f"{name} has no column {missing!r}, but {first_name} has")
        for extra in [column for column in columns if column not in wanted]:
            raise InputError(f"{name} has a column {extra!r}, but {first_name} has not")
    return [_concatenated_column([(name, columns[column.name]) for name, columns in found]) for column in first]


def _concatenated_column(parts: Sequence[tuple[str, Column]]) -> Column:
    first = parts[0][1]
    kind = _common_kind(first.name, [(name, column.kind) for name, column in parts if column.kind is not None])
    nulls = np.nan if kind != "category" else None
    values = [np.full(len(c.values), nulls) if c.kind is None else c.values for _, c in parts]
    return Column(first.name, kind, np.concatenate(values), first.source)


def _common_kind(column: str, known: Sequence[tuple[str, Kind]]) -> Kind | None:
    """Return the kind of a column with these kinds in the files so named; None if there are none."""
    kinds = {kind for _, kind in known}
    if not kinds:
        return None
    if kinds <= {"integer", "float"}:
        return "float" if "float" in kinds else "integer"
    name, kind = known[0]
    for other_name, other in known[1:]:
        if other != kind:
            raise InputError(
                f"column {column!r} holds {KIND_NAMES[kind]} in {name} and {KIND_NAMES[other]} in {other_name}"
            )
    return kind
