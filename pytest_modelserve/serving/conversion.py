"""Conversion to numpy without changing a value: tensors, lists, series and data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError

_CHUNK = 32_768
"""Values compared at once: 256 KiB in float64 stay in the cache."""


def as_array(what: str, value: object) -> NDArray[Any]:
    """Return `value` as a numpy array; no value changes. Arrays are returned as they are.

    Tensors of any device, series and lists are converted. InputError for what has no array, such as a masked array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array, and a model ignores the mask: fill it with .filled(...)")
    if isinstance(value, np.ndarray):
        return value
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    if library == "torch" and hasattr(value, "detach"):
        return _from_tensor(what, value)
    if library in ("pandas", "polars") and hasattr(value, "to_numpy") and not is_frame(value):
        return _from_series(value)
    if isinstance(value, (list, tuple)):
        try:
            return _of_strings(np.asarray(value))
        except ValueError as error:
            message = f"{what} is a {kind.__name__} of items of different shapes: pad them to one"
            raise InputError(f"{message} ({error})") from None
    if hasattr(value, "__array__") and not is_frame(value):
        return np.asarray(value)
    others = "or a list; .to_numpy() has all columns" if is_frame(value) else "a list or a frame"
    raise InputError(f"{what} is a {kind.__name__}, not an array: pass a numpy array, a tensor, {others}")


class Frame(Mapping[str, NDArray[Any]]):
    """A pandas or Polars data frame as inputs: its columns as arrays `(rows,)`, and the frame itself as `native`."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self._arrays: dict[str, NDArray[Any]] = {}

    def __getitem__(self, column: str) -> NDArray[Any]:
        if column not in self._arrays:
            self._arrays[column] = as_array(f"column {column!r}", self.native[column])
        return self._arrays[column]

    def __contains__(self, column: object) -> bool:
        return column in list(self.native.columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.native.columns)

    def __len__(self) -> int:
        return len(self.native.columns)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.native)

    def slice_rows(self, first: int, stop: int) -> Frame:
        """Return the rows from `first` to before `stop`."""
        rows = self.native.iloc if hasattr(self.native, "iloc") else self.native
        return Frame(rows[first:stop])

    def take(self, indices: NDArray[np.integer[Any]]) -> Frame:
        """Return the rows with these numbers."""
        return Frame(self.native.iloc[indices] if hasattr(self.native, "iloc") else self.native[indices])

    def matrix(self, dtype: str | None) -> NDArray[Any]:
        """Return all columns in order as an array `(rows, columns)` of `dtype` (default: their common one).

        InputError names the column and the row of the first value that `dtype` does not hold exactly.
        """
        table = self.native.to_numpy()
        if dtype is None and table.dtype == object:  # of numbers, where some columns are booleans
            arrays = [self[name] for name in self]
            return np.stack(arrays, axis=1) if all(each.dtype.kind in "biuf" for each in arrays) else np.asarray(table)
        if dtype is None or dtype == "str" or (table.dtype.kind in "biuf" and table.dtype.name == dtype):
            return np.asarray(table)
        if table.dtype.kind in "biuf" and (exact := cast_exactly(table, dtype)) is not None:
            return exact
        columns = [cast_checked(f"column {name!r}", self[name], dtype) for name in self]
        return np.stack(columns, axis=1)


def is_frame(value: object) -> bool:
    """Return True for a pandas or Polars data frame; nothing is imported."""
    return type(value).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "columns")


def cast_exactly(array: NDArray[Any], dtype: str) -> NDArray[Any] | None:
    """Return `array` as numbers of `dtype`, or None if that changes a value; NaN stays NaN."""
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if np.can_cast(array.dtype, cast.dtype, "safe") or not array.ndim or not array.size:
            return cast
        given, found = array, cast
        if array.flags.forc:  # in one piece, as the cast is, in the same order
            given, found = (each.reshape(-1, order="A") for each in (array, cast))
        step = max(1, _CHUNK * len(given) // given.size)  # values that stay in the cache
        for start in range(0, len(given), step):
            pair = found[start : start + step], given[start : start + step]
            if not (_fits_float32(*pair) or _is_same(*pair)):
                return None
    return cast


def _fits_float32(cast: NDArray[Any], array: NDArray[Any]) -> bool:
    """Return True if all digits of float64 numbers fit float32; False does not say that they do not.

    The last 29 bits of the fraction are 0 in every number, and none leaves the range of normal numbers. This takes half
    of the time of a comparison.
    """
    if array.dtype != np.float64 or cast.dtype != np.float32:
        return False
    if np.bitwise_or.reduce(array.view(np.uint64), axis=None) & (2**29 - 1):
        return False
    sizes = np.abs(cast)
    return bool(sizes.min() >= np.finfo(np.float32).tiny and sizes.max() < np.inf)


def _is_same(cast: NDArray[Any], array: NDArray[Any]) -> bool:
    same = cast.astype(array.dtype) == array
    if array.dtype.kind == "f" and cast.dtype.kind != "f":  # the largest float becomes an integer that wraps back to it
        same &= np.abs(array) < 2.0 ** (8 * cast.itemsize - 1)
    return bool(same.all() or (cast.dtype.kind == "f" and (same | np.isnan(array)).all()))


def cast_numbers(array: NDArray[Any], dtype: str) -> NDArray[Any] | None:
    """Return numbers as `dtype`, or None if that changes a value, and anything else as it is."""
    if dtype == "str" or array.dtype.kind not in "biuf" or np.dtype(dtype).kind not in "biuf":
        return array
    return cast_exactly(array, dtype)


def cast_checked(what: str, array: NDArray[Any], dtype: str, *, how: str = "") -> NDArray[Any]:
    """Return `array` as numbers of `dtype`; InputError names the first value that changes, and `how` to cast it."""
    exact = cast_numbers(array, dtype)
    if exact is not None:
        return exact
    flat = array.reshape(-1)
    row = next(index for index in range(flat.size) if cast_exactly(flat[index : index + 1], dtype) is None)
    raise InputError(
        f"{what} has dtype {array.dtype.name} where the model takes {dtype}, and value {row}, {flat[row]!s}, changes: "
        f"{how or f'cast it with .astype({dtype!r})'} if that is intended"
    )


def _from_tensor(what: str, tensor: Any) -> NDArray[Any]:
    try:
        plain = tensor.detach().cpu()
        if str(plain.dtype) == "torch.bfloat16":  # numpy has no bfloat16 of its own
            import ml_dtypes
            import torch

            return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return plain.numpy()  # type: ignore[no-any-return]
    except (AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{what} is a torch.{type(tensor).__name__} that numpy cannot represent: {error}") from None


def _from_series(series: Any) -> NDArray[Any]:
    array = np.asarray(series.to_numpy())
    if array.dtype.kind != "O" or getattr(series.dtype, "kind", "") not in ("i", "u", "f", "b"):
        return _of_strings(array)
    return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))  # pandas' nullable numbers with missing ones


def _of_strings(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(object) if array.dtype.kind in "UT" else array
