"""What arrays, dicts of columns, data frames and files have in common: named columns of numbers or categories."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.arrays import as_column as as_column, as_columns
from pytest_modelserve.monitoring.derived import is_length, lengths
from pytest_modelserve.monitoring.frames import Frame, frame_columns
from pytest_modelserve.monitoring.kinds import Column as Column, Kind as Kind

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.profiled import ProfiledColumn

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
        from pytest_modelserve.monitoring.files import read_files, stem

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
