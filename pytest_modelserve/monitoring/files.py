"""Columns from CSV and Parquet files, read by Polars."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import InputError, MissingDependencyError, unknown_choice
from pytest_modelserve.monitoring.columns import Column, as_column

if TYPE_CHECKING:
    import polars

_SUFFIXES = (".csv", ".parquet")


def read_file(path: Path) -> list[Column]:
    """The columns of a .csv file (with a header; fields that are empty or left off at the end of a line are null), or
    of a .parquet file.

    Raises InputError, naming the file, where it is missing, of another kind, empty, damaged or holds a column of dates
    or nested values; MissingDependencyError without Polars.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: {unknown_choice('kind of file', path.suffix, _SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    return [_column(path, series) for series in _frame(path)]


def _frame(path: Path) -> polars.DataFrame:
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {path} needs polars, which is not installed: pip install 'pytest-modelserve[data]'"
        ) from error
    try:
        if path.suffix.lower() == ".parquet":
            return polars.read_parquet(path, glob=False)
        _check_header(path)
        # The whole column is looked at before its type is chosen: a fraction may come after a million whole numbers.
        return polars.read_csv(path, infer_schema_length=None, glob=False)
    except (polars.exceptions.PolarsError, UnicodeDecodeError, csv.Error, OSError) as error:
        kind = "CSV" if path.suffix.lower() == ".csv" else "Parquet"
        raise InputError(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}") from error


def _check_header(path: Path) -> None:
    """Refuse names that stand twice in the header, which Polars would rename."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"{path}: {times} columns are called {name!r}: give each a name of its own")


def _column(path: Path, series: polars.Series) -> Column:
    import polars

    kind = series.dtype
    if series.null_count() == len(series) and len(series):
        return Column(series.name, None, np.full(len(series), np.nan))
    if kind.is_integer():
        return Column(series.name, "integer", _numbers(series))
    if kind == polars.Boolean:
        return Column(series.name, "boolean", _numbers(series))
    if kind.is_float() or kind.is_decimal():
        return as_column(series.name, _numbers(series))
    if kind in (polars.String, polars.Categorical, polars.Enum):
        return Column(series.name, "category", series.cast(polars.String).to_numpy())
    raise InputError(
        f"{path}: column {series.name!r} holds {kind}, which is neither numbers nor text: read the file yourself and "
        "give its other columns as a dict"
    )


def _numbers(series: polars.Series) -> Any:
    """The numbers as they lie in memory, or as floats where some are null or no type of numpy's holds them."""
    import polars

    plain = series.null_count() == 0 and not series.dtype.is_decimal() and series.dtype not in (polars.Int128,)
    return (series if plain else series.cast(polars.Float64)).to_numpy()
