"""What arrays, dicts of columns, data frames and files have in common: named columns of numbers or categories."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Predictor, named_outputs

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.column_profile import ProfiledColumn


# What a column can hold.


Number = Literal["float", "integer", "boolean", "datetime"]
Kind = Literal["float", "integer", "boolean", "datetime", "category"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column (n,): numbers, of which NaN is null, or str objects, of which None is null.

    `kind` is None where every row is null, which is then all that is known of it. Times are numbers too: seconds since
    the start of 1970 in UTC. `source` is the column of the data that this one was made of, if it was: the text whose
    lengths it holds, or the embedding that it is one number of.
    """

    name: str
    kind: Kind | None
    values: NDArray[Any]
    source: str | None = None


# Columns that are made of others: the lengths of texts, and the numbers of an embedding.


EMBEDDING_BINS = 32
"""Bins of each number of an embedding, for there are hundreds of them: 1 KB each, 750 KB of an embedding of 768. Where
a normal distribution moves or widens, its largest distance at 31 even quantiles is over 0.997 of that anywhere."""


def length_name(source: str) -> str:
    """What the lengths of the texts in column `source` are called."""
    return f"{source} (length)"


def part_name(source: str, index: int) -> str:
    """What number `index` of the embedding `source` is called."""
    return f"{source}[{index}]"


def is_length(column: Column | ProfiledColumn) -> bool:
    """Whether a column, of data or of a profile, holds the lengths of another one's texts."""
    return column.source is not None and column.name == length_name(column.source)


def lengths(column: Column) -> Column:
    """The letters of each text in `column`, NaN where it is null."""
    known = (np.nan if text is None else len(text) for text in column.values)
    values = np.fromiter(known, dtype=np.float64, count=len(column.values)) if column.kind else column.values
    return Column(length_name(column.name), column.kind and "integer", values, source=column.name)


# Columns of numpy arrays, lists and masked arrays: what they hold, with one error for what is neither.


_Held = Kind | Literal["duration"]
_ONE_OF_THEM = "a column holds numbers, text, booleans, dates or durations, one of them alone"


def as_columns(name: object, values: ArrayLike) -> list[Column]:
    """The columns of `values` (n,), one, or of an embedding (n, d): d columns called name[0], name[1] ...

    An embedding may also come as a column (n,) of d numbers each, some of them null. InputError, naming the column, for
    anything else than numbers, text and times.
    """
    if not isinstance(name, str):
        raise InputError(f"names of columns are text, not {name!r}")
    array = _array(values)
    rows = _rows_of_objects(name, array) if array.dtype.kind == "O" else None
    if rows is not None:
        array = rows
    if array.ndim == 2 and array.shape[1] and array.dtype.kind in "fiubO":
        return [_part(name, index, array[:, index]) for index in range(array.shape[1])]
    if array.ndim != 1:
        raise InputError(
            f"column {name!r} has the shape {array.shape}: a column has one axis, and an embedding two, of which the "
            "second holds its numbers; of images and texts make embeddings, with `with_embedding`"
        )
    return [_of_array_arrays(name, array)]


def as_column(name: object, values: ArrayLike) -> Column:
    """The one column of `values` (n,): numbers as they are, text and null as objects, times in seconds since 1970.

    InputError for anything else, and for an embedding.
    """
    columns = as_columns(name, values)
    if len(columns) != 1 or columns[0].source is not None:
        raise InputError(f"column {name!r} holds {len(columns)} numbers a row: give one")
    return columns[0]


def _array(values: ArrayLike) -> NDArray[Any]:
    if isinstance(values, np.ma.MaskedArray):  # np.asarray lays bare what the mask hides
        array = np.asarray(values).astype(object)
        array[np.ma.getmaskarray(values)] = None
        return array
    try:
        array = np.asarray(values)
        # Of ["a", 1] numpy makes two texts.
        return np.asarray(values, dtype=object) if array.dtype.kind == "U" and array is not values else array
    except ValueError:  # rows of different lengths
        array = np.empty(len(values), dtype=object)  # type: ignore[arg-type]
        array[:] = list(values)  # type: ignore[arg-type]
        return array


def _part(name: str, index: int, values: NDArray[Any]) -> Column:
    column = _of_array_arrays(part_name(name, index), values)
    if column.kind == "category":
        raise InputError(f"column {name!r} has two axes and holds text: an embedding holds numbers")
    return Column(column.name, column.kind, column.values, source=name)


def _of_array_arrays(name: str, array: NDArray[Any]) -> Column:
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
        case "M" | "m":
            seconds = _seconds(array)
            known = not len(array) or not np.isnan(seconds).all()
            return Column(name, ("datetime" if array.dtype.kind == "M" else "float") if known else None, seconds)
        case "O":
            return _of_objects(name, array)
    raise InputError(
        f"column {name!r} holds {array.dtype}, which is neither numbers nor text: turn it into one of them, "
        "or leave it out"
    )


def _seconds(array: NDArray[Any]) -> NDArray[np.float64]:
    """Times or durations as seconds, to the microsecond; NaT as NaN."""
    unit = np.datetime_data(array.dtype)[0]
    fine = unit in ("ms", "us", "ns", "ps", "fs", "as")
    kind = array.dtype.kind
    # Years and months have no fixed length, and numpy refuses to say how many seconds such a duration has.
    whole = array.astype(f"{kind}8[{'us' if fine else 's'}]", casting="same_kind" if kind == "M" else "unsafe")
    seconds = whole.astype(np.int64).astype(np.float64)
    if fine:
        seconds /= 1e6
    seconds[np.isnat(array)] = np.nan
    return seconds


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
    alone = kinds & {"category", "boolean", "datetime", "duration"}
    if None in kinds or (alone and len(kinds) > 1):
        types = " and ".join(sorted({type(value).__name__ for value in known}))
        raise InputError(f"column {name!r} holds {types}: {_ONE_OF_THEM}")
    numeric = np.full(len(values), np.nan)
    kind = "float" if "float" in kinds else kinds.pop()
    if kind in ("datetime", "duration"):
        known = [_seconds_of(value) for value in known]
    numeric[~null] = known
    return Column(name, "float" if kind == "duration" else kind, numeric)


def _kind_of(value: object) -> _Held | None:
    if isinstance(value, str):
        return "category"
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (datetime.date, np.datetime64)):
        return "datetime"
    if isinstance(value, (datetime.timedelta, np.timedelta64)):  # numpy calls the latter an integer
        return "duration"
    if isinstance(value, numbers.Integral):
        return "integer"
    return "float" if isinstance(value, numbers.Real) else None


def _seconds_of(value: Any) -> float:
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return float(_seconds(np.array([value]))[0])
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    return float((value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp())


def _rows_of_objects(name: str, array: NDArray[Any]) -> NDArray[np.float64] | None:
    """The embedding (n, d) in an array of rows of d numbers or nulls; None where the first that is known is no row."""
    if array.ndim != 1:
        return None
    first = next((value for value in array if not _is_null(value)), None)
    if not isinstance(first, (list, tuple, np.ndarray)):
        return None
    table = np.full((len(array), len(first)), np.nan)
    for index, row in enumerate(array):
        if _is_null(row):
            continue
        table[index] = _row(name, index, row, len(first))
    return table


def _row(name: str, index: int, row: object, width: int) -> NDArray[np.float64]:
    if isinstance(row, (Sequence, np.ndarray)) and not isinstance(row, str):
        try:
            numbers_ = np.asarray(row, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"column {name!r} holds rows of something else than numbers: {row!r:.60}") from None
        if numbers_.shape == (width,):
            return numbers_
    raise InputError(
        f"column {name!r} holds {width} numbers in its first row and {row!r:.60} in row {index}: an embedding has as "
        "many numbers in every row"
    )


def _is_null(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True
    except ValueError:  # an array inside a column: a row of an embedding, or the wrong type that it is told as
        return False


# Images, texts and whatever else is no column: embeddings of them, made by a model.


Encoder = Predictor | Callable[[Any], Any]
"""A served model, or a callable, that takes a batch and returns one row of numbers for each of its items."""


def with_embedding(
    items: NDArray[Any] | Sequence[Any], encoder: Encoder, *, batch_size: int = 256
) -> dict[str, NDArray[Any]]:
    """The embeddings (n, d) of `items` by output name: data for `reference_profile` and every gate on data.

    `items` is an array (n, ...), of images say, or a sequence, of texts say; the encoder gets `batch_size` of them at a
    time, as a slice. It returns an array (rows, d), or (rows,) for one number each, or several such by name; without
    a name it is called "output". With a bar on a terminal where it takes long.

    Use the same encoder for the profile and for what is held against it: another one is another distribution.

    Raises InputError for no items and for an output of another shape; what the encoder raises passes through.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is a number of items, at least 1, not {batch_size}")
    if not len(items):
        raise InputError("there are no items to encode")
    parts: dict[str, list[NDArray[Any]]] = {}
    starts = range(0, len(items), batch_size)
    for start in progress(starts, "encoding", total=len(starts)):
        batch = items[start : start + batch_size]
        for name, rows in _encoded(encoder, batch).items():
            parts.setdefault(name, []).append(rows)
    for name, rows_of in parts.items():
        if len(rows_of) < len(starts):
            raise InputError(f"the encoder gave {name!r} for some batches and not for others")
    return {name: np.concatenate(rows_of) for name, rows_of in parts.items()}


def _encoded(encoder: Encoder, batch: Any) -> dict[str, NDArray[Any]]:
    outputs = encoder.predict(batch) if isinstance(encoder, Predictor) else named_outputs(encoder(batch))
    found = {name: np.asarray(values) for name, values in outputs.items()}
    for name, values in found.items():
        if values.ndim not in (1, 2) or len(values) != len(batch):
            raise InputError(
                f"the encoder gave {name!r} of the shape {values.shape} for {len(batch)} items: an embedding has the "
                "shape (items, numbers); average what has more axes"
            )
    return found


KIND_WORDS = {
    "float": "numbers",
    "integer": "whole numbers",
    "boolean": "booleans",
    "datetime": "dates",
    "category": "categories",
}
