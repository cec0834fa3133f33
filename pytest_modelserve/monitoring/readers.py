"""Tables of columns from arrays, mappings, data frames, and CSV and Parquet files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.columns import Column, Kind, lengths
from pytest_modelserve.monitoring.files import read_files
from pytest_modelserve.monitoring.frames import Frame, NoRowsError, frame_columns, is_lazy, read_columns, read_names
from pytest_modelserve.monitoring.read_options import ReadOptions

__all__ = ["Data", "Frame", "NoRowsError", "Table", "is_lazy", "read_table"]

Data = NDArray[np.generic] | Mapping[str, ArrayLike] | Frame | str | os.PathLike[str]
"""An array (n, features); a mapping of columns (n,) or embeddings (n, d) by name; a pandas, Polars or PyArrow frame; or
the path of a .csv or .parquet file, of a folder of such files, or a pattern such as "logs/2026-*.parquet"."""


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


_DEFAULTS = ReadOptions()


def read_table(
    data: Data,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    options: ReadOptions = _DEFAULTS,
    kinds: Mapping[str, Kind] | None = None,
) -> Table:
    """Read the columns of `data`; those of an array are called `names`, by default column_0, column_1 ….

    `name` is the name of the data in messages: by default the stem of a file, or "data". Numbers are not copied if they
    lie in memory in one piece. None, NaN, NaT and empty CSV fields are null. Times are seconds since 1970 in UTC, also
    those without a time zone; durations are seconds. An embedding of d numbers becomes d columns name[0], name[1] ….

    `kinds` are those of a profile: text of CSV files is read as these, and a column that cannot be read holds its error
    instead of raising it.

    Raises InputError, naming the column or the file, for data without columns, columns of different lengths or of one
    name, and values that are not numbers, text or times; NoRowsError for data without rows. Raises
    MissingDependencyError without a needed extra.
    """
    source, profiling = name or "the data", kinds is None
    if isinstance(data, (str, os.PathLike)):
        columns, source, name = read_files(data, options, kinds), str(data), name or Path(data).stem
    elif isinstance(data, Mapping):
        columns = [
            column
            for key in read_names(list(data), options, profiling=profiling)
            for column in read_columns(key, data[key], options, profiling=profiling)
        ]
    else:
        of_frame = frame_columns(data, options, profiling=profiling)
        columns = _array_columns(data, names, options, profiling=profiling) if of_frame is None else of_frame
    return Table(name or "data", _checked(columns, source))


def _array_columns(data: object, names: Sequence[str] | None, options: ReadOptions, *, profiling: bool) -> list[Column]:
    if not isinstance(data, np.ndarray) or data.ndim != 2:
        shown = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(
            "data must be an array (n, features), a dict of columns, a pandas, Polars or PyArrow frame, or the path of "
            f"a .csv or .parquet file; got {shown}"
        )
    if names is not None and len(names) != data.shape[1]:
        raise InputError(f"data has {data.shape[1]} columns, expected {len(names)} ({', '.join(names)})")
    names = [f"column_{index}" for index in range(data.shape[1])] if names is None else names
    places = {name: index for index, name in enumerate(names)}
    if len(places) < len(names):
        return [Column(name, None, data[:, 0]) for name in names]  # refused by _checked
    return [
        column
        for name in read_names(names, options, profiling=profiling)
        for column in read_columns(name, data[:, places[name]], options, profiling=profiling)
    ]


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
        raise NoRowsError(f"{source}: there are no rows")
    return tuple(columns)
