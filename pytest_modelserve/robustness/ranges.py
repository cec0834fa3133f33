"""What is declared of features: the range or the choices that each of them has, whatever rows show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, Part, flat
from pytest_modelserve.robustness.domains import Domain, Limits, as_dtype, integer_range

Column = int | tuple[int, ...]
RangeKey = Column | str | tuple[str, Column]
"""A feature by its column or its index in one row; an input's name for all of its features; or both, (name, column)."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values of a feature: from `low` to `high`, either of which may be left out, or one of `choices`.

    UsageError where the two contradict each other, and for a range or choices without a value.
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if self.choices is not None and ends:
            raise UsageError(f"{self} has ends and choices: give low and high, or choices")
        if self.choices is not None and not isinstance(self.choices, tuple):
            object.__setattr__(self, "choices", tuple(self.choices))
        if not ends and not self.choices:
            raise UsageError("a range says low, high or both, or choices of at least one value")
        if any(math.isnan(end) for end in ends):
            raise UsageError(f"{self} has an end that is no number")
        if len(ends) == 2 and ends[0] > ends[1]:
            raise UsageError(f"{self} holds no value: low is above high")

    def __str__(self) -> str:
        if self.choices is not None:
            return f"a range of {', '.join(map(repr, self.choices))}"
        low, high = ("any" if end is None else f"{end:g}" for end in (self.low, self.high))
        return f"a range from {low} to {high}"


Ranges = Mapping[RangeKey, Range]


def check_ranges(ranges: Ranges, domain: tuple[Domain, ...]) -> None:
    """UsageError for what is no Range, and for a domain whose values lie outside every range."""
    for key, told in ranges.items():
        if not isinstance(told, Range):
            raise UsageError(f"the range of {key!r} is a {type(told).__name__}: give ms.strategies.Range(low, high)")
    outside = [name for name in domain if name in ("far", "special")]
    if ranges and outside:
        raise UsageError(
            f"domain {outside[0]!r} asks for values outside the declared ranges: leave out the one or the other"
        )


def limits_of(ranges: Ranges, coordinates: Coordinates) -> dict[str, Limits]:
    """The ranges by input, flat; UsageError for a feature that is told twice, and for values that its dtype has not."""
    low = {part.name: np.full(part.size, -np.inf) for part in coordinates.parts}
    high = {part.name: np.full(part.size, np.inf) for part in coordinates.parts}
    choices: dict[str, dict[int, NDArray[Any]]] = {part.name: {} for part in coordinates.parts}
    told: dict[str, NDArray[np.intp]] = {part.name: np.full(part.size, -1) for part in coordinates.parts}
    keys = list(ranges)
    for number, (key, declared) in enumerate(ranges.items()):
        part, columns = _columns(key, coordinates)
        twice = columns[told[part.name][columns] >= 0]
        if len(twice):
            before = keys[told[part.name][twice[0]]]
            raise UsageError(f"ranges {before!r} and {key!r} are both about feature {twice[0]} of input {part.name!r}")
        told[part.name][columns] = number
        values = _values(declared, part)
        if declared.choices is not None:
            choices[part.name] |= dict.fromkeys(columns.tolist(), values)
        if kind_of(part.dtype) != "text":
            numbers = values.astype(np.float64)
            low[part.name][columns] = -np.inf if declared.low is None and not declared.choices else numbers.min()
            high[part.name][columns] = np.inf if declared.high is None and not declared.choices else numbers.max()
    return {
        name: Limits(low[name], high[name], choices[name]) for name, numbers in told.items() if (numbers >= 0).any()
    }


def within(rows: Feed, ranges: Ranges, rng: np.random.Generator) -> Feed:
    """Rows that were made up, moved into the ranges: the first to what of zero they hold, or the first choice."""
    limits = limits_of(ranges, Coordinates.of(rows))
    moved = dict(rows)
    for name, array in flat(rows).items():
        if name not in limits:
            continue
        limit, values = limits[name], array.copy()
        if kind_of(array.dtype) != "text":
            both = np.isfinite(limit.low) & np.isfinite(limit.high)
            wide = np.where(both, limit.high - limit.low, 0)
            spread = np.where(both, limit.low, 0) + rng.random(array.shape) * wide
            spread[0] = 0
            values = np.where(both, as_dtype(spread, array.dtype), values)
            values = limit.held(values)
        for column, choices in limit.choices.items():
            values[:, column] = choices[rng.integers(0, len(choices), len(values))]
            values[0, column] = choices[0]
        moved[name] = values.astype(array.dtype, copy=False).reshape(rows[name].shape)
    return moved


def outside(rows: Feed, limits: Mapping[str, Limits]) -> NDArray[np.bool_]:
    """Which numbers of which rows lie outside what is declared, (n, coordinates)."""
    found = []
    for name, array in flat(rows).items():
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


def check_rows(rows: Feed, ranges: Ranges) -> None:
    """InputError that names the first number of `like` that lies outside what is declared of its feature."""
    coordinates = Coordinates.of(rows)
    wrong = outside(rows, limits_of(ranges, coordinates))
    for row, index in np.argwhere(wrong)[:1]:
        part, place = coordinates.place(int(index))
        value = rows[part.name][(int(row), *place)]
        declared = next(told for key, told in ranges.items() if _is_about(key, part, int(index), coordinates))
        where = f"[{', '.join(map(str, place))}]" if place else ""
        raise InputError(f"like= has {value!s} at {part.name}{where} of row {row}, outside {declared}")


def _is_about(key: RangeKey, part: Part, index: int, coordinates: Coordinates) -> bool:
    meant, columns = _columns(key, coordinates)
    return meant == part and index - part.offset in columns


def _columns(key: RangeKey, coordinates: Coordinates) -> tuple[Part, NDArray[np.intp]]:
    """The input that a key means, and the places of its features there."""
    parts = {part.name: part for part in coordinates.parts}
    name: str | None
    column: Any
    if isinstance(key, str):
        name, column = key, None
    elif isinstance(key, tuple) and key and isinstance(key[0], str):
        name, column = key
    else:
        name, column = None, key
    if name is None:
        if len(parts) != 1:
            raise UsageError(f"the model has {len(parts)} inputs: give ranges by (input, column), not by {key!r}")
        name = next(iter(parts))
    if name not in parts:
        raise UsageError(unknown_choice("input", name, parts))
    part = parts[name]
    if column is None:
        return part, np.arange(part.size)
    try:
        place = np.ravel_multi_index(column, part.shape) if isinstance(column, tuple) else range(part.size)[column]
    except (ValueError, IndexError, TypeError):
        raise InputError(f"input {name!r} has rows of shape {list(part.shape)}: there is no feature {column}") from None
    return part, np.array([place], np.intp)


def _values(declared: Range, part: Part) -> NDArray[Any]:
    """The choices, or the ends, in the input's dtype; UsageError where it does not have them."""
    given = declared.choices if declared.choices is not None else (declared.low, declared.high)
    held = [value for value in given if value is not None]
    if kind_of(part.dtype) == "text":
        if declared.choices is None or not all(isinstance(value, str) for value in held):
            raise UsageError(f"input {part.name!r} is text: give choices of text, not {declared}")
        return np.array(held, object)
    if not all(isinstance(value, (int, float, np.number)) for value in held):
        raise UsageError(f"input {part.name!r} is {part.dtype.name}: give numbers, not {declared}")
    if kind_of(part.dtype) == "exact" and part.dtype != np.bool_:
        least, most = integer_range(part.dtype)
        if declared.choices is None:  # an end between two whole numbers
            held = [math.ceil(v) if v == declared.low and math.isfinite(v) else v for v in held]
            held = [math.floor(v) if v == declared.high and math.isfinite(v) else v for v in held]
        if any(not least <= value <= most or value != int(value) for value in held if math.isfinite(value)):
            raise UsageError(f"{part.dtype.name}, the dtype of input {part.name!r}, does not hold {declared}")
        if declared.choices is None and len(held) == 2 and held[0] > held[1]:
            raise UsageError(f"{declared} holds no whole number, which input {part.name!r} takes")
    return as_dtype(np.array(held, np.float64), part.dtype)
