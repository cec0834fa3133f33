"""Columns from CSV and Parquet files, read by Polars."""

from __future__ import annotations

import csv
import glob
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.errors import InputError, MissingDependencyError, unknown_choice
from pytest_modelserve.monitoring.frames import frame_columns
from pytest_modelserve.monitoring.joining import joined
from pytest_modelserve.monitoring.kinds import Column
from pytest_modelserve.progress import progress

if TYPE_CHECKING:
    import polars

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
