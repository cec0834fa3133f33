"""Columns from CSV and Parquet files, read by Polars."""

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
from pytest_modelserve.monitoring.columns import KIND_WORDS, Column, Kind, as_column, as_columns, is_length, lengths
from pytest_modelserve.progress import progress

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.column_profile import ProfiledColumn

if TYPE_CHECKING:
    import narwhals
    import polars


# Columns of data frames, read through narwhals: pandas, Polars, PyArrow and whatever else it knows.


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


# Columns of several files as those of one data set.


def joined(parts: Sequence[tuple[str, list[Column]]]) -> list[Column]:
    """The columns of all parts, each with its name and at least one row, one after the other; of one part uncopied.

    InputError, naming the column and both parts, where one lacks a column, has another or one of another kind. Whole
    numbers join fractions, and a column that is all null joins every kind.
    """
    first_name, first = parts[0]
    if len(parts) == 1:
        return first
    found = [(name, {column.name: column for column in columns}) for name, columns in parts]
    wanted = {column.name for column in first}
    for name, columns in found[1:]:
        for missing in [column.name for column in first if column.name not in columns]:
            raise InputError(f"{name} has no column {missing!r}, which {first_name} has")
        for extra in [column for column in columns if column not in wanted]:
            raise InputError(f"{name} has a column {extra!r}, which {first_name} has not")
    return [_joined([(name, columns[column.name]) for name, columns in found]) for column in first]


def _joined(parts: Sequence[tuple[str, Column]]) -> Column:
    first = parts[0][1]
    kind = _kind(first.name, [(name, column.kind) for name, column in parts if column.kind is not None])
    nulls = np.nan if kind != "category" else None
    values = [np.full(len(c.values), nulls) if c.kind is None else c.values for _, c in parts]
    return Column(first.name, kind, np.concatenate(values), first.source)


def _kind(column: str, known: Sequence[tuple[str, Kind]]) -> Kind | None:
    """The kind of a column that is known to be of these kinds in the parts so named; None where it is in none."""
    kinds = {kind for _, kind in known}
    if not kinds:
        return None
    if kinds <= {"integer", "float"}:
        return "float" if "float" in kinds else "integer"
    name, kind = known[0]
    for other_name, other in known[1:]:
        if other != kind:
            raise InputError(
                f"column {column!r} holds {KIND_WORDS[kind]} in {name} and {KIND_WORDS[other]} in {other_name}"
            )
    return kind


_SUFFIXES = (".csv", ".parquet")
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
"""Dates as ISO 8601 and every log writes them; of 03/04/2026 nobody knows which is the month."""


def read_files(path: str | os.PathLike[str]) -> list[Column]:
    """The columns of a .csv file with a header, a .parquet file, or all files that a pattern with *, ? or [] matches.

    Files that match are one data set, in the order of their sorted names. Empty fields of a CSV file are null, and a
    column of it whose values are all ISO dates holds dates.

    Raises InputError, naming the file, where it is missing, of another kind, empty, damaged, has a line that is too
    short or too long or holds a column that is neither numbers nor text nor times, where no file matches and where the
    columns of two files differ; MissingDependencyError without Polars and narwhals.
    """
    paths = matching_files(path)
    files = progress(paths, "reading files", total=len(paths)) if len(paths) > 1 else paths
    return joined([(str(file), _read(file)) for file in files])


def matching_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `path` is or matches, sorted; InputError, naming it, where there is none or one of another kind.

    What is the name of a file is that file, whatever characters it has.
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


def stem(path: str | os.PathLike[str]) -> str:
    """What the data of such a file or pattern are called."""
    return Path(path).stem


def _read(path: Path) -> list[Column]:
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {path} needs polars, which is not installed: pip install 'pytest-modelserve[data]'"
        ) from error
    is_csv = path.suffix.lower() == ".csv"
    try:
        frame = _csv(path) if is_csv else polars.read_parquet(path, glob=False)
    except (polars.exceptions.PolarsError, UnicodeDecodeError, csv.Error, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as {'CSV' if is_csv else 'Parquet'}: {reason}") from error
    columns = frame_columns(frame, source=str(path))
    assert columns is not None
    if not columns or not len(columns[0].values):
        raise InputError(f"there are no {'rows' if columns else 'columns'} in {path}")
    return columns


def _csv(path: Path) -> polars.DataFrame:
    import polars

    _check_header(path)
    # The whole column is looked at before its type is chosen: a fraction may come after a million whole numbers.
    frame = polars.read_csv(path, infer_schema_length=None, glob=False)
    if frame.width > 1 and frame.to_series(-1).null_count():
        _check_lines(path, frame)
    return frame.with_columns(_dates(series) for series in frame if series.dtype == polars.String)


def _check_header(path: Path) -> None:
    """Refuse names that stand twice in the header, which Polars would rename."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"{path}: {times} columns are called {name!r}: give each a name of its own")


def _check_lines(path: Path, frame: polars.DataFrame) -> None:
    """Refuse a line with fewer fields than the header, which Polars would fill up with nulls.

    Only a file whose last column has a null can hold one. One without quotes is whole if it has as many commas as its
    rows need: counting them costs less than reading the file did.
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
                    f"{path}: line {reader.line_num} has {len(fields)} of the header's {frame.width} fields: "
                    "mend it, and write a field that is empty as nothing between two commas"
                )


def _dates(series: polars.Series) -> polars.Series:
    """Dates, where all values of a column of texts are ISO dates of one form; else the column as it is."""
    import polars

    if not series.str.contains(_ISO).all(ignore_nulls=True) or series.null_count() == len(series):
        return series
    try:
        return series.str.to_datetime(time_unit="us")
    except polars.exceptions.PolarsError:  # 2026-02-30, or forms that differ from row to row
        return series


Data = NDArray[Any] | Mapping[str, ArrayLike] | Frame | str | os.PathLike[str]
"""An array (n, features); a mapping of columns (n,) or embeddings (n, d) by name; a pandas, Polars or PyArrow frame; or
the path of a .csv or .parquet file, or a pattern such as "logs/2026-*.parquet" for many."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of one data set in order, all of the same length, and what people call it."""

    name: str
    columns: tuple[Column, ...]

    @property
    def rows(self) -> int:
        """The number of rows, at least 1."""
        return len(self.columns[0].values)

    def with_lengths(self, profiled: Sequence[ProfiledColumn]) -> Table:
        """This table and, at its end, the lengths of texts that `profiled` has of its columns (`with_lengths_of`)."""
        return self.with_lengths_of({column.source for column in profiled if is_length(column)})

    def with_lengths_of(self, names: Container[str | None]) -> Table:
        """This table and, at its end, the lengths of the texts in columns of these names, of those that hold text.

        InputError where a column of the data has such a name already.
        """
        texts = [c for c in self.columns if c.name in names and c.kind in ("category", None)]
        return Table(self.name, _checked([*self.columns, *map(lengths, texts)], self.name)) if texts else self


def read_table(data: Data, *, names: Sequence[str] | None = None, name: str | None = None) -> Table:
    """The columns of `data`; those of an array are called `names`, or column_0, column_1 ... without.

    `name` is what messages call the data: without it a file goes by its stem and anything else is "data". Numbers stay
    where they are, uncopied, where the data are one file or lie in memory in one piece. None, NaN, NaT and empty CSV
    fields are null. Times are seconds since 1970 in UTC, as which those without a time zone are taken; durations are
    seconds. An embedding, `d` numbers a row, is d columns called name[0], name[1] ...

    Raises InputError, naming the column or the file, for data of another kind, no columns, no rows, columns of
    different lengths or the same name, names that are not text, and values that are neither numbers nor text nor times;
    MissingDependencyError for files and frames without the extra that reads them.
    """
    source = name or "the data"
    if isinstance(data, (str, os.PathLike)):
        from pytest_modelserve.monitoring.readers import read_files, stem

        columns, source, name = read_files(data), str(data), name or stem(data)
    elif isinstance(data, Mapping):
        columns = [column for key, values in data.items() for column in as_columns(key, values)]
    else:
        of_frame = frame_columns(data)
        columns = _of_array(data, names) if of_frame is None else of_frame
    return Table(name or "data", _checked(columns, source))


def _of_array(data: object, names: Sequence[str] | None) -> list[Column]:
    if not isinstance(data, np.ndarray) or data.ndim != 2:
        shown = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(
            "data are an array (n, features), a dict of columns, a pandas, Polars or PyArrow frame or the path of a "
            f".csv or .parquet file, not {shown}"
        )
    if names is not None and len(names) != data.shape[1]:
        raise InputError(f"an array of {data.shape[1]} columns does not fit {len(names)} names of columns")
    names = [f"column_{index}" for index in range(data.shape[1])] if names is None else names
    return [as_column(name, data[:, index]) for index, name in enumerate(names)]


def _checked(columns: Sequence[Column], source: str) -> tuple[Column, ...]:
    if not columns:
        raise InputError(f"there are no columns in {source}")
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise InputError(f"two columns are called {column.name!r}: give each a name of its own")
        seen.add(column.name)
    first = columns[0]
    for column in columns:
        if len(column.values) != len(first.values):
            raise InputError(
                f"column {column.name!r} has {len(column.values)} rows and column {first.name!r} {len(first.values)}: "
                "all columns need one value for each row"
            )
    if not len(first.values):
        raise InputError(f"there are no rows in {source}")
    return tuple(columns)
