"""Value domains: what mutations choose values from, and the declared ranges of features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.elementwise import is_builtin_dtype
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, InputSlice, flatten_rows

Domain = Literal["like", "edges", "far", "special"]
"""Where mutations take values from.

"like": values of other rows, and values between a feature's minimum and maximum. "edges": the minimum and the maximum
and, for real numbers, their neighbors one unit in the last place away. "far": values up to a million ranges outside.
"special": zeros of both signs, NaN, infinities, subnormals, the overflow threshold of float16, the smallest and largest
integer, and texts that no row has.
"""

DOMAINS: tuple[Domain, ...] = get_args(Domain)
_UNSEEN_TEXTS = ("", "unseen", " ", "ÅßΩ漢", "\x1b[31m")
_FLOAT16_MAX = 65504.0  # IEEE 754 binary16; 65520 is the smallest number that rounds to infinity there


def check_domain(domain: Domain | Sequence[Domain]) -> tuple[Domain, ...]:
    """Return `domain` as a tuple, and reject unknown and repeated names."""
    given = (domain,) if isinstance(domain, str) else tuple(domain)
    if not given:
        raise UsageError(f"domain is empty: pass one or more of {', '.join(map(repr, DOMAINS))}")
    for name in given:
        if name not in DOMAINS:
            raise UsageError(unknown_choice("domain", name, DOMAINS))
    if len(set(given)) < len(given):
        raise UsageError(f"domain contains a name twice: {given}")
    return given


@dataclass(frozen=True, slots=True)
class Range:
    """The declared values of a feature.

    Args:
        low: The minimum, None for no declared minimum.
        high: The maximum, None for no declared maximum.
        choices: All values that the feature can have, in place of `low` and `high`.

    Raises:
        UsageError: If the range contains no value, or `choices` are combined with `low` or `high`.

    Example:
        >>> import pytest_modelserve as ms
        >>> print(ms.strategies.Range(0, 1))
        Range(0, 1)
        >>> print(ms.strategies.Range(choices=("red", "blue")))
        Range(choices=('red', 'blue'))
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if self.choices is not None and not isinstance(self.choices, tuple):
            object.__setattr__(self, "choices", tuple(self.choices))
        if self.choices is not None and ends:
            raise UsageError(f"{self} has both ends and choices: pass low and high, or choices")
        if not ends and not self.choices:
            raise UsageError("Range is empty: pass low, high or both, or at least one of choices")
        if any(math.isnan(end) for end in ends):
            raise UsageError(f"{self} has a NaN end: pass numbers")
        if len(ends) == 2 and ends[0] > ends[1]:
            raise UsageError(f"{self} contains no value: low is above high")

    def __str__(self) -> str:
        if self.choices is not None:
            return f"Range(choices={self.choices!r})"
        low, high = ("" if end is None else f"{end:g}" for end in (self.low, self.high))
        return f"Range({low}, {high})" if low and high else f"Range({low or f'high={high}'})"


Column = int | tuple[int, ...]
RangeKey = Column | str | tuple[str, Column]
"""A feature by its column or its index in one row, an input's name for all its features, or both, (name, column)."""
Ranges = Mapping[RangeKey, Range]


def check_ranges(ranges: Ranges, domain: tuple[Domain, ...]) -> None:
    """Reject values that are no Range, and domains whose values lie outside every range."""
    for key, declared in ranges.items():
        if not isinstance(declared, Range):
            kind = type(declared).__name__
            raise UsageError(f"ranges[{key!r}] is a {kind}: expected an ms.strategies.Range(low, high)")
    outside = [name for name in domain if name in ("far", "special")]
    if ranges and outside:
        raise UsageError(f"domain {outside[0]!r} has values outside the declared ranges: remove it, or remove ranges=")


def check_rows(rows: Feed, ranges: Ranges) -> None:
    """Raise an InputError that names a value of `like` outside its declared range."""
    coordinates = Coordinates.of(rows)
    outside = outside_limits(rows, limits_by_input(ranges, coordinates))
    for key, declared in ranges.items():
        part, columns = _resolve(key, coordinates)
        for row, column in np.argwhere(outside[:, part.offset + columns])[:1]:
            index = tuple(int(i) for i in np.unravel_index(columns[column], part.shape))
            where = f"{part.name}{list(index) if index else ''}"
            raise InputError(
                f"like= has {rows[part.name][(row, *index)]!s} at {where} of row {row}, outside {declared}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """The declared ranges of one input's coordinates.

    `low` and `high` (size,) are infinite where nothing is declared. `choices` are given by coordinate, and their
    minimum and maximum are its `low` and `high`.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    choices: Mapping[int, NDArray[Any]]

    def override(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the declared range of each coordinate, and `low` and `high` where none is declared."""
        ends = np.where(np.isfinite(self.low), self.low, low), np.where(np.isfinite(self.high), self.high, high)
        return as_dtype(ends[0], low.dtype), as_dtype(ends[1], high.dtype)

    def clip(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return `values` (..., size), clipped to the declared ranges."""
        numbers = values.astype(np.float64)
        inside = (numbers >= self.low) & (numbers <= self.high)
        return np.where(inside, values, as_dtype(np.clip(numbers, self.low, self.high), values.dtype))


def limits_by_input(ranges: Ranges, coordinates: Coordinates) -> dict[str, Limits]:
    """Return the declared ranges by input.

    Raises:
        UsageError: If a feature is declared twice, or its dtype cannot represent the declared values.
    """
    low = {part.name: np.full(part.size, -np.inf) for part in coordinates.slices}
    high = {part.name: np.full(part.size, np.inf) for part in coordinates.slices}
    choices: dict[str, dict[int, NDArray[Any]]] = {part.name: {} for part in coordinates.slices}
    declared_by: dict[str, NDArray[np.intp]] = {part.name: np.full(part.size, -1) for part in coordinates.slices}
    keys = list(ranges)
    for number, (key, declared) in enumerate(ranges.items()):
        part, columns = _resolve(key, coordinates)
        twice = columns[declared_by[part.name][columns] >= 0]
        if len(twice):
            before = keys[declared_by[part.name][twice[0]]]
            raise UsageError(f"ranges {before!r} and {key!r} both declare feature {twice[0]} of input {part.name!r}")
        declared_by[part.name][columns] = number
        values = _values_of(declared, part)
        if declared.choices is not None:
            choices[part.name] |= dict.fromkeys(columns.tolist(), values)
        if kind_of(part.dtype) != "text":
            numbers = values.astype(np.float64)
            low[part.name][columns] = -np.inf if declared.low is None and not declared.choices else numbers.min()
            high[part.name][columns] = np.inf if declared.high is None and not declared.choices else numbers.max()
    return {
        name: Limits(low[name], high[name], choices[name])
        for name, numbers in declared_by.items()
        if (numbers >= 0).any()
    }


def clip_to_ranges(rows: Feed, ranges: Ranges, rng: np.random.Generator) -> Feed:
    """Move generated rows into the ranges: the first to the values nearest to zero, or to the first choice."""
    limits = limits_by_input(ranges, Coordinates.of(rows))
    moved = dict(rows)
    for name, array in flatten_rows(rows).items():
        if name not in limits:
            continue
        limit, values = limits[name], array.copy()
        if kind_of(array.dtype) != "text":
            both = np.isfinite(limit.low) & np.isfinite(limit.high)
            wide = np.where(both, limit.high - limit.low, 0)
            spread = np.where(both, limit.low, 0) + rng.random(array.shape) * wide
            spread[0] = 0
            values = np.where(both, as_dtype(spread, array.dtype), values)
            values = limit.clip(values)
        for column, choices in limit.choices.items():
            values[:, column] = choices[rng.integers(0, len(choices), len(values))]
            values[0, column] = choices[0]
        moved[name] = values.astype(array.dtype, copy=False).reshape(rows[name].shape)
    return moved


def outside_limits(rows: Feed, limits: Mapping[str, Limits]) -> NDArray[np.bool_]:
    """Return which values of which rows lie outside their declared range, (n, coordinates)."""
    found = []
    for name, array in flatten_rows(rows).items():
        wrong = np.zeros(array.shape, np.bool_)
        if name in limits:
            if kind_of(array.dtype) != "text":
                numbers = array.astype(np.float64)
                wrong = ~((numbers >= limits[name].low) & (numbers <= limits[name].high))
                wrong &= np.isfinite(limits[name].low) | np.isfinite(limits[name].high)
            for column, choices in limits[name].choices.items():
                wrong[:, column] = ~np.isin(array[:, column], choices)
        found.append(wrong)
    return np.concatenate(found, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class InputValues:
    """The values of one input in the base rows, flat, and the range of every coordinate.

    `seen` (n, size) are the values of the rows. `edges` (edges, size) are the ends of the ranges and, for real numbers,
    their neighbors one unit in the last place away. `choices` are all values that a coordinate can have. An input that
    is `frozen` has no values but those of whole rows.

    A single row has no range. Real numbers then range within their own magnitude (at least 1) around their value.
    Integers range within the whole tensor, because an identifier beyond it may have no row in an embedding table. A
    declared range takes precedence.
    """

    seen: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    edges: NDArray[Any]
    choices: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    frozen: bool = False

    @classmethod
    def of(cls, seen: NDArray[Any], *, frozen: bool = False, limits: Limits | None = None) -> InputValues:
        """Return the values of rows (n, size). NaN and infinities do not extend the ranges."""
        kind = kind_of(seen.dtype)
        choices = limits.choices if limits else {}
        if kind == "text" or seen.size == 0:
            return cls(seen, seen[0], seen[0], seen[:1], choices, frozen)
        low, high = _real_range(seen) if kind == "real" else _integer_range(seen)
        if limits:
            low, high = limits.override(low, high)
        edges = [low, high, *((*_adjacent_floats(low), *_adjacent_floats(high)) if kind == "real" else ())]
        if limits:
            edges = [limits.clip(edge) for edge in edges]
        return cls(seen, low, high, np.array(edges, seen.dtype), choices, frozen)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The input's dtype."""
        return self.seen.dtype

    def range_of(self, columns: NDArray[np.intp] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the minimum and the maximum of each of `columns`, or of all."""
        return (self.low, self.high) if columns is None else (self.low[columns], self.high[columns])

    def apply_choices(
        self, new: NDArray[Any], columns: NDArray[np.intp] | None, rng: np.random.Generator
    ) -> NDArray[Any]:
        """Replace values of `new`, (k,) for `columns` or (k, size), whose coordinate has choices by one of them."""
        for column, choices in self.choices.items():
            place = np.flatnonzero(columns == column) if columns is not None else (slice(None), column)
            new[place] = choices[rng.integers(0, len(choices), new[place].shape)]
        return new

    def edge_values(self, domain: Sequence[Domain], columns: NDArray[np.intp]) -> NDArray[Any]:
        """Return the values to try first at each of `columns`, (values, columns)."""
        if self.frozen:
            return self.seen[:0, columns]
        found: list[NDArray[Any]] = []
        if kind_of(self.dtype) == "text":
            texts = list(dict.fromkeys(self.seen[:, 0].tolist()))[:8] if self.seen.size else []
            texts += _UNSEEN_TEXTS if {"far", "special"} & set(domain) else ()
            found = [np.full(columns.shape, text, object) for text in texts]
        else:
            if {"like", "edges"} & set(domain):
                found += list(self.edges[: None if "edges" in domain else 2, columns])
            if "far" in domain:
                sides = (-0.5, 0.5, -0.999, 0.999)
                found += [out_of_range_values(self, columns, np.full(columns.shape, side)) for side in sides]
            if "special" in domain:
                found += [np.full(columns.shape, value, self.dtype) for value in special_values(self.dtype)]
        values = np.array(found, self.dtype).reshape(len(found), len(columns))
        for column, choices in self.choices.items():
            for place in np.flatnonzero(columns == column):
                values[:, place] = np.resize(choices, len(values))
        return values


def special_values(dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the special values of a dtype, for text those that no row is likely to have."""
    kind = kind_of(dtype)
    if kind == "text":
        return np.array(_UNSEEN_TEXTS, object)
    if dtype == np.bool_:
        return np.array([False, True])
    if kind == "exact":
        least, most = integer_range(dtype)
        return np.array(sorted({0, 1, max(least, -1), least, most}), dtype)
    info = _float_info(dtype)
    numbers = [0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, _FLOAT16_MAX, 65520.0, 1e-10]
    with np.errstate(over="ignore"):
        return np.array([*numbers, info.smallest_subnormal, -info.smallest_subnormal, info.max, info.min]).astype(dtype)


def out_of_range_values(
    values: InputValues, columns: NDArray[np.intp] | None, sides: NDArray[np.float64]
) -> NDArray[Any]:
    """Return numbers outside the range by 1 to a million times its width, uniform on a log scale.

    `sides` lie in (-1, 1): their sign chooses the side, their magnitude the distance. Numbers are clipped to the dtype.
    """
    low, high = (end.astype(np.float64) for end in values.range_of(columns))
    width = np.maximum(high - low, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        distance = width * 10.0 ** (6 * np.abs(sides))
        numbers = np.where(sides < 0, low - distance, high + distance)
    return as_dtype(numbers, values.dtype)


def as_dtype(numbers: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `numbers` in a dtype, clipped to its range, and rounded if it is an integer dtype."""
    if dtype == np.bool_:
        return np.asarray(numbers >= 0.5)
    if kind_of(dtype) == "exact":
        least, most = integer_range(dtype)
        # float64 rounds the largest int64 up to 2**63, which does not fit: one step less does.
        top = np.nextafter(float(most), 0) if most > 2**53 else float(most)
        return np.asarray(np.clip(np.rint(numbers), float(least), top).astype(dtype))
    if numbers.dtype == dtype:
        return numbers
    info = _float_info(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.clip(numbers, float(info.min), float(info.max)).astype(dtype))


def integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the smallest and largest integer of a dtype, also of ml_dtypes (int4)."""
    if not is_builtin_dtype(dtype):
        import ml_dtypes

        info: Any = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        return int(info.min), int(info.max)
    numbers = np.iinfo(dtype)
    return int(numbers.min), int(numbers.max)


def _float_info(dtype: np.dtype[Any]) -> Any:
    if not is_builtin_dtype(dtype):
        import ml_dtypes

        return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.finfo(dtype)


def _integer_range(seen: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if seen.dtype == np.bool_:
        return np.zeros_like(seen[0]), np.ones_like(seen[0])
    whole = seen.astype(np.int8) if not is_builtin_dtype(seen.dtype) else seen  # ml_dtypes' int4 and narrower
    low, high = whole.min(axis=0), whole.max(axis=0)
    if len(seen) == 1:
        low, high = np.full_like(low, whole.min()), np.full_like(high, whole.max())
    return low.astype(seen.dtype), high.astype(seen.dtype)


def _real_range(seen: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    wide = seen if is_builtin_dtype(seen.dtype) else seen.astype(np.float32)
    finite = np.isfinite(wide)
    low = np.where(finite, wide, np.inf).min(axis=0)
    high = np.where(finite, wide, -np.inf).max(axis=0)
    nothing = low > high  # no finite value in the column
    low, high = np.where(nothing, 0, low), np.where(nothing, 0, high)
    if len(seen) == 1:
        reach = np.maximum(np.abs(low), 1)
        low, high = low - reach, high + reach
    return low.astype(seen.dtype), high.astype(seen.dtype)


def _adjacent_floats(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the numbers one unit in the last place below and above."""
    down, up = (np.nextafter(values, np.full_like(values, end)) for end in (-np.inf, np.inf))
    return np.asarray(down), np.asarray(up)


def _resolve(key: RangeKey, coordinates: Coordinates) -> tuple[InputSlice, NDArray[np.intp]]:
    """Return the input that a key names, and the places of its features there."""
    inputs = {part.name: part for part in coordinates.slices}
    name: str | None
    column: Any
    if isinstance(key, str):
        name, column = key, None
    elif isinstance(key, tuple) and key and isinstance(key[0], str):
        name, column = key
    else:
        name, column = None, key
    if name is None:
        if len(inputs) != 1:
            raise UsageError(f"ranges[{key!r}] is ambiguous for a model of {len(inputs)} inputs: use (input, column)")
        name = next(iter(inputs))
    if name not in inputs:
        raise UsageError(unknown_choice("input", name, inputs))
    part = inputs[name]
    if column is None:
        return part, np.arange(part.size)
    try:
        place = np.ravel_multi_index(column, part.shape) if isinstance(column, tuple) else range(part.size)[column]
    except (ValueError, IndexError, TypeError):
        raise InputError(f"input {name!r} has rows of shape {list(part.shape)}: there is no feature {column}") from None
    return part, np.array([place], np.intp)


def _values_of(declared: Range, part: InputSlice) -> NDArray[Any]:
    """Return the choices, or the ends, in the input's dtype."""
    given = declared.choices if declared.choices is not None else (declared.low, declared.high)
    values = [value for value in given if value is not None]
    if kind_of(part.dtype) == "text":
        if declared.choices is None or not all(isinstance(value, str) for value in values):
            raise UsageError(f"input {part.name!r} is text: pass choices of text instead of {declared}")
        return np.array(values, object)
    if not all(isinstance(value, (int, float, np.number)) for value in values):
        raise UsageError(f"input {part.name!r} is {part.dtype.name}: pass numbers instead of {declared}")
    if kind_of(part.dtype) == "exact" and part.dtype != np.bool_:
        least, most = integer_range(part.dtype)
        if declared.choices is None:  # an end between two integers
            values = [math.ceil(v) if v == declared.low and math.isfinite(v) else v for v in values]
            values = [math.floor(v) if v == declared.high and math.isfinite(v) else v for v in values]
        if any(not least <= value <= most or value != int(value) for value in values if math.isfinite(value)):
            raise UsageError(f"input {part.name!r} is {part.dtype.name}, which cannot represent {declared}")
        if declared.choices is None and len(values) == 2 and values[0] > values[1]:
            raise UsageError(f"input {part.name!r} is {part.dtype.name}, and {declared} contains no integer")
    return as_dtype(np.array(values, np.float64), part.dtype)
