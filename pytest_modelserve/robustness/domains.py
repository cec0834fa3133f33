"""Where the values of an edit come from: like the rows at hand, at the ends of their range, far outside, or special."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.elementwise import is_numpys_own
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, Part, flat

Domain = Literal["like", "edges", "far", "special"]
"""like: values of other rows, and what lies between the least and the greatest; edges: those two and, for real numbers,
their neighbours one unit in the last place away; far: up to a million ranges outside; special: zeros of both signs,
NaN, infinities, subnormals, what float16 cannot hold, the least and greatest integer, texts that no row has."""

DOMAINS: tuple[Domain, ...] = get_args(Domain)
_UNSEEN = ("", "unseen", " ", "ÅßΩ漢", "\x1b[31m")
_FLOAT16_MAX = 65504.0  # IEEE 754 binary16; 65520 is the least number that rounds to infinity there


def check_domain(domain: Domain | Sequence[Domain]) -> tuple[Domain, ...]:
    """`domain` as a tuple of one or more; UsageError for one that is unknown or given twice."""
    given = (domain,) if isinstance(domain, str) else tuple(domain)
    if not given:
        raise UsageError(f"domain is empty: give one or more of {', '.join(map(repr, DOMAINS))}")
    for name in given:
        if name not in DOMAINS:
            raise UsageError(unknown_choice("domain", name, DOMAINS))
    if len(set(given)) < len(given):
        raise UsageError(f"domain names one twice: {given}")
    return given


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """What is declared of one input's coordinates, flat: `low` and `high` (size,), infinite where nothing is said, and
    `choices` by coordinate, whose least and greatest are its `low` and `high`."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    choices: Mapping[int, NDArray[Any]]

    def instead_of(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The range of each coordinate: what is declared, and what its rows say where nothing is."""
        ends = np.where(np.isfinite(self.low), self.low, low), np.where(np.isfinite(self.high), self.high, high)
        return as_dtype(ends[0], low.dtype), as_dtype(ends[1], high.dtype)

    def held(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` (..., size), moved into the range wherever one is declared."""
        numbers = values.astype(np.float64)
        inside = (numbers >= self.low) & (numbers <= self.high)
        return np.where(inside, values, as_dtype(np.clip(numbers, self.low, self.high), values.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The values of one input in the rows at hand, flat: `seen` (n, size), and the ends of every coordinate's range;
    `edges` (edges, size) are those ends and, of real numbers, their neighbours one unit in the last place away.

    A single row has no range. Real numbers are then taken within their own magnitude (at least 1) of what they are,
    and integers within the whole tensor's, because an identifier beyond it may have no row in an embedding table.
    What is declared of a coordinate goes before what its rows say; `choices` are all that some of them can be. With
    `whole`, the input has no other values than those of whole rows.
    """

    seen: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    edges: NDArray[Any]
    choices: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    whole: bool = False

    @classmethod
    def of(cls, seen: NDArray[Any], *, whole: bool = False, limits: Limits | None = None) -> Values:
        """The values of rows (n, size). NaN and infinities are left out of the ranges."""
        kind = kind_of(seen.dtype)
        choices = limits.choices if limits else {}
        if kind == "text" or seen.size == 0:
            return cls(seen, seen[0], seen[0], seen[:1], choices, whole)
        low, high = _real_range(seen) if kind == "real" else _integer_range(seen)
        if limits:
            low, high = limits.instead_of(low, high)
        edges = [low, high, *((*_neighbours(low), *_neighbours(high)) if kind == "real" else ())]
        if limits:
            edges = [limits.held(edge) for edge in edges]
        return cls(seen, low, high, np.array(edges, seen.dtype), choices, whole)

    def choose(self, new: NDArray[Any], columns: NDArray[np.intp] | None, rng: np.random.Generator) -> NDArray[Any]:
        """`new`, (k,) for `columns` or (k, size), with a drawn choice wherever a coordinate only has choices."""
        for column, choices in self.choices.items():
            place = np.flatnonzero(columns == column) if columns is not None else (slice(None), column)
            new[place] = choices[rng.integers(0, len(choices), new[place].shape)]
        return new

    @property
    def dtype(self) -> np.dtype[Any]:
        """The input's dtype."""
        return self.seen.dtype

    def ends(self, columns: NDArray[np.intp] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        """The least and the greatest value of each of `columns`, or of all."""
        return (self.low, self.high) if columns is None else (self.low[columns], self.high[columns])

    def fixed(self, domain: Sequence[Domain], columns: NDArray[np.intp]) -> NDArray[Any]:
        """The values worth trying first at each of `columns`, (values, columns), plain ones first."""
        if self.whole:
            return self.seen[:0, columns]
        found: list[NDArray[Any]] = []
        if kind_of(self.dtype) == "text":
            texts = list(dict.fromkeys(self.seen[:, 0].tolist()))[:8] if self.seen.size else []
            texts += _UNSEEN if {"far", "special"} & set(domain) else ()
            found = [np.full(columns.shape, text, object) for text in texts]
        elif {"like", "edges"} & set(domain):
            found += list(self.edges[: None if "edges" in domain else 2, columns])
        if "far" in domain and kind_of(self.dtype) != "text":
            found += [far(self, columns, np.full(columns.shape, share)) for share in (-0.5, 0.5, -0.999, 0.999)]
        if "special" in domain and kind_of(self.dtype) != "text":
            found += [np.full(columns.shape, value, self.dtype) for value in specials(self.dtype)]
        values = np.array(found, self.dtype).reshape(len(found), len(columns))
        for column, choices in self.choices.items():
            for place in np.flatnonzero(columns == column):
                values[:, place] = np.resize(choices, len(values))
        return values


def specials(dtype: np.dtype[Any]) -> NDArray[Any]:
    """The special values of a dtype; of text, texts that no row is likely to have."""
    kind = kind_of(dtype)
    if kind == "text":
        return np.array(_UNSEEN, object)
    if dtype == np.bool_:
        return np.array([False, True])
    if kind == "exact":
        least, most = integer_range(dtype)
        return np.array(sorted({0, 1, max(least, -1), least, most}), dtype)
    info = _float_info(dtype)
    numbers = [0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, _FLOAT16_MAX, 65520.0, 1e-10]
    with np.errstate(over="ignore"):
        return np.array([*numbers, info.smallest_subnormal, -info.smallest_subnormal, info.max, info.min]).astype(dtype)


def far(values: Values, columns: NDArray[np.intp] | None, shares: NDArray[np.float64]) -> NDArray[Any]:
    """Numbers outside the range by 1 to a million times its width, evenly on a log scale; below where a share is < 0.

    `shares` lie in (-1, 1). What the dtype cannot hold becomes its end.
    """
    low, high = (end.astype(np.float64) for end in values.ends(columns))
    width = np.maximum(high - low, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        away = width * 10.0 ** (6 * np.abs(shares))
        numbers = np.where(shares < 0, low - away, high + away)
    return as_dtype(numbers, values.dtype)


def as_dtype(numbers: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`numbers` in a dtype, rounded and held within its ends where it is one of integers."""
    if dtype == np.bool_:
        return np.asarray(numbers >= 0.5)
    if kind_of(dtype) == "exact":
        least, most = integer_range(dtype)
        # float64 rounds the greatest int64 up to 2**63, which does not fit: one step less does.
        top = np.nextafter(float(most), 0) if most > 2**53 else float(most)
        return np.asarray(np.clip(np.rint(numbers), float(least), top).astype(dtype))
    if numbers.dtype == dtype:
        return numbers
    info = _float_info(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.clip(numbers, float(info.min), float(info.max)).astype(dtype))


def integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and greatest integer of a dtype; those of ml_dtypes (int4) included."""
    if not is_numpys_own(dtype):
        import ml_dtypes

        info: Any = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        return int(info.min), int(info.max)
    numbers = np.iinfo(dtype)
    return int(numbers.min), int(numbers.max)


def _float_info(dtype: np.dtype[Any]) -> Any:
    if not is_numpys_own(dtype):
        import ml_dtypes

        return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.finfo(dtype)


def _integer_range(seen: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if seen.dtype == np.bool_:
        return np.zeros_like(seen[0]), np.ones_like(seen[0])
    whole = seen.astype(np.int8) if not is_numpys_own(seen.dtype) else seen  # ml_dtypes' int4 and narrower
    low, high = whole.min(axis=0), whole.max(axis=0)
    if len(seen) == 1:
        low, high = np.full_like(low, whole.min()), np.full_like(high, whole.max())
    return low.astype(seen.dtype), high.astype(seen.dtype)


def _real_range(seen: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    wide = seen if is_numpys_own(seen.dtype) else seen.astype(np.float32)
    finite = np.isfinite(wide)
    low = np.where(finite, wide, np.inf).min(axis=0)
    high = np.where(finite, wide, -np.inf).max(axis=0)
    nothing = low > high  # no finite value in the column
    low, high = np.where(nothing, 0, low), np.where(nothing, 0, high)
    if len(seen) == 1:
        reach = np.maximum(np.abs(low), 1)
        low, high = low - reach, high + reach
    return low.astype(seen.dtype), high.astype(seen.dtype)


def _neighbours(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The numbers one unit in the last place below and above."""
    down, up = (np.nextafter(values, np.full_like(values, end)) for end in (-np.inf, np.inf))
    return np.asarray(down), np.asarray(up)


# What is declared of features: the range or the choices that each of them has, whatever rows show.


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
