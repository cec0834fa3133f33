"""Named columns of numbers or categories, from arrays and lists, and embeddings of other data."""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Predictor, Servable, named_outputs
from pytest_modelserve.serving.serve import as_predictor, is_torch_module
from pytest_modelserve.settings import shown_value

Number = Literal["float", "integer", "boolean", "datetime"]
Kind = Literal["float", "integer", "boolean", "datetime", "category"]
KIND_NAMES = {
    "float": "numbers",
    "integer": "whole numbers",
    "boolean": "booleans",
    "datetime": "dates",
    "category": "categories",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column (n,): numbers with NaN as null, or str objects with None as null.

    Times are numbers: seconds since 1970 in UTC. `kind` is None if every row is null. `source` is the column of the
    data from which this one was derived: the text whose lengths it holds, or the embedding that it is a number of.

    `exact` holds the integers of a column with nulls, which `values` rounds to doubles, if one is beyond 2⁵³; 0 is
    null. `declared` says that text was declared as categories. `error` says why the values could not be read; they are
    then null.
    """

    name: str
    kind: Kind | None
    values: NDArray[Any]
    source: str | None = None
    exact: NDArray[Any] | None = None
    declared: bool = False
    error: str = ""


def unreadable(name: str, rows: int, error: str) -> Column:
    """Return a column of `rows` values that could not be read."""
    return Column(name, None, np.full(rows, np.nan), error=error)


_EXACT = 2**53
"""Doubles hold every integer up to this size."""


def integer_column(name: str, values: NDArray[Any], null: NDArray[np.bool_] | None = None) -> Column:
    """Return the column of integers (n,) of at most 64 bits, of which those where `null` is True are null."""
    if null is None or not null.any():
        return Column(name, "integer", values)
    exact = np.where(null, 0, values)
    numbers = exact.astype(np.float64)
    numbers[null] = np.nan
    large = exact.size and (int(exact.max()) > _EXACT or int(exact.min()) < -_EXACT)
    return Column(name, "integer", numbers, exact=exact if large else None)


# Derived columns: the lengths of texts, and the numbers of an embedding.

EMBEDDING_BINS = 32
"""Bins of each number of an embedding, of which there are hundreds: 1 KB each, 750 KB for an embedding of 768. If a
normal distribution moves or widens, its largest distance at 31 even quantiles is over 0.997 of that anywhere."""


class Derivable(Protocol):
    """A column of data or of a profile."""

    @property
    def name(self) -> str:
        """The name of the column."""

    @property
    def source(self) -> str | None:
        """The column from which it was derived."""


def is_length(column: Derivable) -> bool:
    """Return True if a column holds the lengths of another column's texts."""
    return column.source is not None and column.name == length_name(column.source)


def length_name(source: str) -> str:
    """Return the name of the column with the lengths of the texts in `source`."""
    return f"{source} (length)"


def lengths(column: Column) -> Column:
    """Return the number of characters of each text in `column`, NaN for null."""
    known = (np.nan if text is None else len(text) for text in column.values)
    values = np.fromiter(known, dtype=np.float64, count=len(column.values)) if column.kind else column.values
    return Column(length_name(column.name), column.kind and "integer", values, source=column.name, error=column.error)


# Arrays, lists and masked arrays.

_ValueKind = Kind | Literal["duration"]
_KINDS_OF_VALUES = {
    "category": "text",
    "boolean": "booleans",
    "datetime": "dates",
    "duration": "durations",
    "float": "numbers",
}
_ONE_KIND = (
    "a column must hold only numbers, only text, only booleans, only dates, or only durations: repair it, or leave it "
    "out with exclude="
)


def as_columns(name: object, values: ArrayLike, *, null_values: Collection[str] = ()) -> list[Column]:
    """Return the column of `values` (n,), or the d columns name[0], name[1] … of an embedding (n, d).

    An embedding may also be a column (n,) of rows of d numbers, some of them null. Texts among `null_values` are null.
    Raises InputError, naming the column, for values that are not numbers, text or times.
    """
    check_name(name)
    assert isinstance(name, str)
    array = _array(values)
    if null_values and array.dtype.kind in "OUT":
        array = array.astype(object)
        array[np.array([isinstance(v, str) and v in null_values for v in array.flat]).reshape(array.shape)] = None
    rows = _embedding_of_objects(name, array) if array.dtype.kind == "O" else None
    if rows is not None:
        array = rows
    if array.ndim == 2 and array.shape[1] and array.dtype.kind in "fiubO":
        return [_embedding_column(name, index, array[:, index]) for index in range(array.shape[1])]
    if array.ndim != 1:
        raise InputError(
            f"column {name!r} has shape {array.shape}, expected (n,) for a column or (n, d) for an embedding: turn "
            "images and texts into embeddings with `with_embedding`"
        )
    return [_array_column(name, array)]


def check_name(name: object) -> None:
    """Raise InputError for a name that is not text, or that no file can hold."""
    if not isinstance(name, str):
        raise InputError(f"names of columns must be text; got {name!r}")
    if name != escaped(name):
        raise InputError(f"the name of column {name!r} has half of a character (a surrogate): rename it")


def escaped(text: str) -> str:
    """Return `text` with surrogates, which no file can hold, written as escapes: text cut inside an emoji has one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def as_column(name: object, values: ArrayLike, *, null_values: Collection[str] = ()) -> Column:
    """Return the column of `values` (n,): numbers unchanged, text as objects, times in seconds since 1970.

    Raises InputError for anything else, and for an embedding.
    """
    columns = as_columns(name, values, null_values=null_values)
    if len(columns) != 1 or columns[0].source is not None:
        raise InputError(f"column {name!r} holds {len(columns)} numbers a row, expected one")
    return columns[0]


def _array(values: ArrayLike) -> NDArray[Any]:
    if isinstance(values, np.ma.MaskedArray):  # np.asarray would reveal the masked values
        array = np.asarray(values).astype(object)
        array[np.ma.getmaskarray(values)] = None
        return array
    try:
        array = np.asarray(values)
        # numpy turns ["a", 1] into two texts.
        return np.asarray(values, dtype=object) if array.dtype.kind == "U" and array is not values else array
    except ValueError:  # rows of different lengths
        array = np.empty(len(values), dtype=object)  # type: ignore[arg-type]
        array[:] = list(values)  # type: ignore[arg-type]
        return array


def _embedding_column(name: str, index: int, values: NDArray[Any]) -> Column:
    column = _array_column(f"{name}[{index}]", values)
    if column.kind == "category":
        raise InputError(f"column {name!r} has two axes and holds text, expected numbers for an embedding")
    return Column(column.name, column.kind, column.values, source=name)


def _array_column(name: str, array: NDArray[Any]) -> Column:
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
            return _object_column(name, array)
    raise InputError(f"column {name!r} holds {array.dtype}, not numbers, text or times: convert or remove it")


def _seconds(array: NDArray[Any]) -> NDArray[np.float64]:
    """Convert times or durations to seconds, to the microsecond; NaT to NaN."""
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


def _object_column(name: str, values: NDArray[Any]) -> Column:
    null = np.fromiter(map(_is_null, values), dtype=np.bool_, count=len(values))
    known = values[~null].tolist()
    if not known:
        return Column(name, None, np.full(len(values), np.nan))
    kinds = Counter(map(_kind_of, known))
    _check_kinds(name, values, null, kinds)
    if "category" in kinds:
        text = values.copy()
        text[null] = None
        return Column(name, "category", text)
    kind = "float" if "float" in kinds else next(kind for kind in kinds if kind is not None)
    if kind == "integer":
        dtype = np.int64 if min(known) < 0 else np.uint64
        limits = np.iinfo(dtype)
        if limits.min <= min(known) and max(known) <= limits.max:
            exact = np.zeros(len(values), dtype=np.int64 if max(known) < 2**63 else dtype)
            exact[~null] = known
            return integer_column(name, exact, null)
    numeric = np.full(len(values), np.nan)
    if kind in ("datetime", "duration"):
        known = [_seconds_of(value) for value in known]
    numeric[~null] = known
    return Column(name, "float" if kind == "duration" else kind, numeric)


def _check_kinds(name: str, values: NDArray[Any], null: NDArray[np.bool_], kinds: Counter[_ValueKind | None]) -> None:
    """Raise InputError, with the row and the value, for values of several kinds or of none."""
    if None not in kinds and (len(kinds) == 1 or kinds.keys() <= {"integer", "float"}):
        return
    if None in kinds:
        row = next(row for row in np.flatnonzero(~null).tolist() if _kind_of(values[row]) is None)
        types = " and ".join(sorted({type(value).__name__ for value in values[~null].tolist()}))
        value = shown_value(name, f"{values[row]!r:.60}")
        raise InputError(f"column {name!r} holds {types} ({value} in row {row}): {_ONE_KIND}")
    numeric = {"integer", "float"}
    grouped = Counter[str]()
    for kind, rows in kinds.items():
        grouped["float" if kind in numeric else str(kind)] += rows
    rare = min(grouped, key=lambda kind: grouped[kind])
    row = next(
        row
        for row in np.flatnonzero(~null).tolist()
        if _kind_of(values[row]) == rare or (rare == "float" and _kind_of(values[row]) in numeric)
    )
    others = " and ".join(_KINDS_OF_VALUES[kind] for kind in sorted(grouped) if kind != rare)
    value = shown_value(name, f"{values[row]!r:.60}")
    raise InputError(
        f"column {name!r} holds {value} in row {row} ({_KINDS_OF_VALUES[rare]} in {grouped[rare]:,} of "
        f"{len(values):,} rows) and {others} in others: {_ONE_KIND}"
    )


def _kind_of(value: object) -> _ValueKind | None:
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
    return "float" if isinstance(value, (numbers.Real, decimal.Decimal)) else None


def _seconds_of(value: Any) -> float:
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return float(_seconds(np.array([value]))[0])
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    return float((value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp())


def _embedding_of_objects(name: str, array: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return the embedding (n, d) in an array of rows of d numbers or nulls; None if the first non-null is no row."""
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
            raise InputError(
                f"column {name!r} holds a row that is not numbers: {shown_value(name, f'{row!r:.60}')}"
            ) from None
        if numbers_.shape == (width,):
            return numbers_
    shown = shown_value(name, f"{row!r:.60}")
    raise InputError(
        f"column {name!r} holds {width} numbers in its first row and {shown} in row {index}: every row of an "
        "embedding needs as many numbers"
    )


def _is_null(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, decimal.Decimal):
        return value.is_nan()  # comparing a signaling NaN raises
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True
    except ValueError:  # an array inside a column: a row of an embedding, or a wrong type, which is reported later
        return False


# Embeddings of images, texts and other data.

Encoder = Servable
"""What `serve` takes: a model, or a function, that takes a batch and returns one row of numbers for each item."""


def with_embedding(
    items: NDArray[Any] | Sequence[Any], encoder: Encoder, *, batch_size: int = 256
) -> dict[str, NDArray[Any]]:
    """Return embeddings of images, texts or other items, as data for `reference_profile` and the gates on data.

    Use the same encoder for the profile and for the data under test.

    Args:
        items: An array (n, ...), of images for example, or a sequence, of texts for example.
        encoder: A function, or any other model that `ms.serve` takes. It takes up to `batch_size` items as a slice, and
            returns an array (rows, d), an array (rows,) for one number each, or several of them by name.
        batch_size: The number of items in each call.

    Returns:
        The embeddings (n, d) by output name; an output without a name is called "output".

    Raises:
        InputError: There are no items, or an output has another shape.
        UsageError: `batch_size` is below 1.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> images = np.arange(48.0).reshape(3, 4, 4)
        >>> ms.with_embedding(images, lambda batch: batch.mean(axis=2))["output"].shape
        (3, 4)
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1; got {batch_size}")
    if not len(items):
        raise InputError("items is empty: there is nothing to encode")
    parts: dict[str, list[NDArray[Any]]] = {}
    starts = range(0, len(items), batch_size)
    is_function = callable(encoder) and not is_torch_module(encoder)
    opened: AbstractContextManager[Any] = nullcontext(encoder) if is_function else as_predictor(encoder)
    with opened as model:
        for start in progress(starts, "encoding", total=len(starts)):
            batch = items[start : start + batch_size]
            for name, rows in _encode(model, batch).items():
                parts.setdefault(name, []).append(rows)
    for name, rows_of in parts.items():
        if len(rows_of) < len(starts):
            raise InputError(f"encoder returned {name!r} for some batches and not for others")
    return {name: np.concatenate(rows_of) for name, rows_of in parts.items()}


def _encode(encoder: Predictor | Callable[[Any], Any], batch: Any) -> dict[str, NDArray[Any]]:
    outputs = encoder.predict(batch) if isinstance(encoder, Predictor) else named_outputs(encoder(batch))
    found = {name: np.asarray(values) for name, values in outputs.items()}
    for name, values in found.items():
        if values.ndim not in (1, 2) or len(values) != len(batch):
            raise InputError(
                f"encoder returned {name!r} with shape {values.shape} for {len(batch)} items, expected (items, d): "
                "average over any other axes"
            )
    return found
