"""What arrays, dicts of columns and files have in common: named columns of numbers or categories, some of them null."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError

Kind = Literal["float", "integer", "boolean", "category"]
Data = NDArray[Any] | Mapping[str, ArrayLike] | str | os.PathLike[str]
"""An array (n, features), a mapping of columns (n,) by name, or the path of a .csv or .parquet file."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column (n,): numbers, of which NaN is null, or str objects, of which None is null.

    `kind` is None where every row is null, which is then all that is known of it.
    """

    name: str
    kind: Kind | None
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of one data set in order, all of the same length, and what people call it."""

    name: str
    columns: tuple[Column, ...]

    @property
    def rows(self) -> int:
        """The number of rows, at least 1."""
        return len(self.columns[0].values)


def read_table(data: Data, *, names: Sequence[str] | None = None, name: str | None = None) -> Table:
    """The columns of `data`; those of an array are called `names`, or column_0, column_1 ... without.

    `name` is what messages call the data: without it a file goes by its stem and anything else is "data". Numbers stay
    where they are, uncopied. None, NaN and empty CSV fields are null.

    Raises InputError, naming the column or the file, for data of another kind, no columns, no rows, columns of
    different lengths or the same name, names that are not text, and values that are neither numbers nor text.
    """
    source = name or "the data"
    if isinstance(data, (str, os.PathLike)):
        from pytest_modelserve.monitoring.files import read_file

        columns, source, name = read_file(Path(data)), str(data), name or Path(data).stem
    elif isinstance(data, Mapping):
        columns = [as_column(column, values) for column, values in data.items()]
    else:
        columns = _of_array(data, names)
    return Table(name or "data", _checked(columns, source))


def _of_array(data: object, names: Sequence[str] | None) -> list[Column]:
    if not isinstance(data, np.ndarray) or data.ndim != 2:
        shown = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(
            f"data are an array (n, features), a dict of columns or the path of a .csv or .parquet file, not {shown}; "
            "of a data frame give the columns by name, as in {'age': frame['age']}"
        )
    if names is not None and len(names) != data.shape[1]:
        raise InputError(f"an array of {data.shape[1]} columns does not fit {len(names)} names of columns")
    names = [f"column_{index}" for index in range(data.shape[1])] if names is None else names
    return [as_column(name, data[:, index]) for index, name in enumerate(names)]


def _checked(columns: list[Column], source: str) -> tuple[Column, ...]:
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


def as_column(name: object, values: ArrayLike) -> Column:
    """The column of `values` (n,): numbers as they are, text and null as objects; InputError for anything else."""
    if not isinstance(name, str):
        raise InputError(f"names of columns are text, not {name!r}")
    array = np.asarray(values)
    if isinstance(values, np.ma.MaskedArray):  # np.asarray lays bare what the mask hides
        array = array.astype(object)
        array[np.ma.getmaskarray(values)] = None
    elif array.dtype.kind == "U" and not isinstance(values, np.ndarray):  # and of ["a", 1] it makes two texts
        array = np.asarray(values, dtype=object)
    if array.ndim != 1:
        raise InputError(f"column {name!r} has the shape {array.shape}: a column has one axis")
    match array.dtype.kind:
        case "f":
            all_null = len(array) > 0 and np.isnan(array[0]) and bool(np.isnan(array).all())
            return Column(name, None if all_null else "float", array)
        case "i" | "u":
            return Column(name, "integer", array)
        case "b":
            return Column(name, "boolean", array)
        case "U" | "T":
            return Column(name, "category", array.astype(object))
        case "O":
            return _of_objects(name, array)
    raise InputError(
        f"column {name!r} holds {array.dtype}, which is neither numbers nor text: turn it into one of them, "
        "or leave it out"
    )


def _of_objects(name: str, values: NDArray[Any]) -> Column:
    null = np.fromiter(map(_is_null, values), dtype=np.bool_, count=len(values))
    known = values[~null].tolist()
    if not known:
        return Column(name, None, np.full(len(values), np.nan))
    kinds = {_kind_of(value) for value in known}
    if kinds == {"category"}:
        text = values.copy()
        text[null] = None
        return Column(name, "category", text)
    if None in kinds or ("category" in kinds) or ("boolean" in kinds and len(kinds) > 1):
        types = " and ".join(sorted({type(value).__name__ for value in known}))
        raise InputError(f"column {name!r} holds {types}: a column holds numbers, text or booleans, one of them alone")
    numeric = np.full(len(values), np.nan)
    numeric[~null] = known
    return Column(name, "float" if "float" in kinds else kinds.pop(), numeric)


def _kind_of(value: object) -> Kind | None:
    if isinstance(value, str):
        return "category"
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, numbers.Integral):
        return "integer"
    return "float" if isinstance(value, numbers.Real) else None


def _is_null(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True
    except ValueError:  # an array inside a column: told as the wrong type that it is
        return False
