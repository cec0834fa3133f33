"""Candidate generation: base rows with some of their values mutated, in blocks and without a random call per row.

The power of a search depends on how many values a mutation changes. A fault that needs two features in a narrow range
appears if few change, and one that needs a whole image to be bright if all do. The number of changes is uniform on a
log scale, up to a quarter of a long row, and three rows in ten are changed everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import (
    Coordinates,
    Feed,
    concat_rows,
    flatten_rows,
    row_count,
    take_rows,
    unflatten_rows,
)
from pytest_modelserve.robustness.domains import (
    Domain,
    InputValues,
    Limits,
    Ranges,
    as_dtype,
    check_domain,
    limits_by_input,
    out_of_range_values,
    outside_limits,
    special_values,
)

_DENSE_FRACTION = 0.3
_SHORT_ROW = 64
"""Rows of at most this many coordinates may change in all of them, one by one. Longer rows would take too long."""
_BLOCK_ELEMENTS = 4_000_000
"""Elements in one block of candidates: 16 MB of float32, enough for a thousand rows of 4,000 features."""
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class SearchSpace:
    """Base rows, their coordinates, and for each input the values that mutations choose from."""

    base: Feed
    coordinates: Coordinates
    values: Mapping[str, InputValues]
    domain: tuple[Domain, ...]
    limits: Mapping[str, Limits] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls,
        rows: Mapping[str, NDArray[Any]],
        domain: Domain | Sequence[Domain],
        *,
        frozen: Collection[str] = (),
        ranges: Ranges | None = None,
    ) -> SearchSpace:
        """Return the space around rows (n, ...).

        Inputs in `frozen` are taken from a base row unchanged. No mutation leaves `ranges`.

        Raises:
            InputError: If there are no rows.
        """
        chosen = check_domain(domain)
        base = {name: _text_as_objects(array) for name, array in rows.items()}
        if row_count(base) == 0:
            raise InputError("inputs are empty: the search needs at least one row to start from")
        coordinates = Coordinates.of(base)
        limits = limits_by_input(ranges, coordinates) if ranges else {}
        values = {
            name: InputValues.of(array, frozen=name in frozen, limits=limits.get(name))
            for name, array in flatten_rows(base).items()
        }
        return cls(base, coordinates, values, chosen, limits)

    def contains(self, rows: Feed) -> NDArray[np.bool_]:
        """Return which rows (n, ...) lie within the declared ranges."""
        if not self.limits:
            return np.ones(row_count(rows), np.bool_)
        return np.asarray(~outside_limits(rows, self.limits).any(axis=1))

    @property
    def n_rows(self) -> int:
        """The number of base rows."""
        return row_count(self.base)


def block_size(space: SearchSpace) -> int:
    """Return the number of candidates that are generated and evaluated at once."""
    return int(np.clip(_BLOCK_ELEMENTS // max(space.coordinates.size, 1), 8, _BLOCK_ROWS))


def mutate(
    space: SearchSpace, rng: np.random.Generator, count: int, *, edits: int | None = None, start: Feed | None = None
) -> tuple[Feed, NDArray[np.intp]]:
    """Return `count` mutated rows, and for each the index of the base row (or row of `start`) that it was made from.

    `edits` fixes the maximum number of changed coordinates. One may be chosen twice, or receive the value that it had.
    """
    size = space.coordinates.size
    source = flatten_rows(space.base if start is None else start)
    origin = rng.integers(0, len(next(iter(source.values()))), count)
    rows = {name: array[origin] for name, array in source.items()}
    if size == 0:
        return unflatten_rows(rows, space.coordinates), origin
    dense = np.zeros(count, np.bool_)
    if edits is None:
        dense = rng.random(count) < _DENSE_FRACTION
        most = size if size <= _SHORT_ROW else size // 4
        counts = np.exp(rng.random(count) * np.log(most + 1)).astype(np.intp)
        counts[dense] = 0
    else:
        counts = np.full(count, min(edits, size), np.intp)
    _mutate_sparsely(space, rng, rows, counts)
    if dense.any():
        _mutate_densely(space, rng, rows, np.flatnonzero(dense))
    return unflatten_rows(rows, space.coordinates), origin


def edge_cases(space: SearchSpace, limit: int) -> Iterator[tuple[Feed, NDArray[np.intp]]]:
    """Yield blocks of the deterministic rows that every search tries first, at most `limit` in all.

    They are the base rows, then rows with every coordinate at its minimum, its maximum and its value nearest to zero,
    then single coordinates of the first base row at the edges of their ranges and the other fixed values of the domain.
    If `limit` does not allow all coordinates, evenly spaced ones are taken.
    """
    step = block_size(space)
    count = min(space.n_rows, max(limit - 8, 1), limit)
    for begin in range(0, count, step):
        origin = np.arange(begin, min(begin + step, count))
        yield take_rows(space.base, origin), origin
    extremes = _extreme_rows(space)
    added = len(next(iter(extremes.values())))
    if limit - count >= added:
        yield extremes, np.zeros(added, np.intp)
        yield from _single_edges(space, limit - count - added, step)


def _extreme_rows(space: SearchSpace) -> Feed:
    rows: Feed = {}
    for part in space.coordinates.slices:
        values = space.values[part.name]
        if values.frozen or values.dtype.kind == "O" or not {"like", "edges"} & set(space.domain):
            rows[part.name] = np.repeat(values.seen[:1], 3, axis=0)
        else:
            zero = np.minimum(np.maximum(np.zeros_like(values.low), values.low), values.high)
            for column, choices in values.choices.items():
                zero[column] = choices[0]
            rows[part.name] = np.stack([values.low, values.high, zero])
    return unflatten_rows(rows, space.coordinates)


def _single_edges(space: SearchSpace, limit: int, step: int) -> Iterator[tuple[Feed, NDArray[np.intp]]]:
    size = space.coordinates.size
    if size == 0 or limit <= 0:
        return
    columns = np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.intp))
    edits: list[tuple[str, int, object]] = []
    for part, _, places in space.coordinates.by_input(columns):
        edges = space.values[part.name].edge_values(space.domain, places)
        edits += [(part.name, int(place), edges[k, j]) for k in range(len(edges)) for j, place in enumerate(places)]
    chosen = [edits[i] for i in np.unique(np.linspace(0, len(edits) - 1, min(len(edits), limit)).astype(np.intp))]
    first = take_rows(space.base, slice(0, 1))
    for begin in range(0, len(chosen), step):
        block = chosen[begin : begin + step]
        rows = flatten_rows(concat_rows([first] * len(block)))
        for row, (name, place, value) in enumerate(block):
            rows[name][row, place] = value
        yield unflatten_rows(rows, space.coordinates), np.zeros(len(block), np.intp)


def _mutate_sparsely(space: SearchSpace, rng: np.random.Generator, rows: Feed, counts: NDArray[np.intp]) -> None:
    row_of = np.repeat(np.arange(len(counts)), counts)
    columns = rng.integers(0, space.coordinates.size, len(row_of))
    for part, mask, places in space.coordinates.by_input(columns):
        target = row_of[mask] * part.size + places  # one index is half the time of two
        array = rows[part.name].reshape(-1)
        array[target] = _sample_values(space.values[part.name], space.domain, rng, places, array[target])


def _mutate_densely(space: SearchSpace, rng: np.random.Generator, rows: Feed, which: NDArray[np.intp]) -> None:
    """Give each of these rows values of one kind in every coordinate of an input."""
    for part in space.coordinates.slices:
        values = space.values[part.name]
        kinds: tuple[_Kind, ...] = _kinds_of(values.dtype, space.domain)
        if "between" in kinds:  # the only kind that reaches every value: as often as all others together
            again: tuple[_Kind, ...] = ("between",)
            kinds += again * (len(kinds) - 2)
        kind_of_row = rng.integers(0, len(kinds), len(which))
        for index, kind in enumerate(kinds):
            chosen = which[kind_of_row == index]
            if len(chosen) and part.size:
                rows[part.name][chosen] = _sample_rows(values, kind, rng, rows[part.name][chosen])


_Kind = Literal["of a row", "between", "near", "edge", "far", "special"]

_KINDS: dict[Domain, tuple[_Kind, ...]] = {
    "like": ("of a row", "between", "near"),
    "edges": ("edge",),
    "far": ("far",),
    "special": ("special",),
}
_TEXT_KINDS: dict[Domain, tuple[_Kind, ...]] = {
    "like": ("of a row",),
    "edges": ("of a row",),
    "far": ("special",),
    "special": ("special",),
}


def _kinds_of(dtype: np.dtype[Any], domain: Sequence[Domain]) -> tuple[_Kind, ...]:
    table = _TEXT_KINDS if kind_of(dtype) == "text" else _KINDS
    return tuple(dict.fromkeys(kind for name in domain for kind in table[name]))


def _sample_values(
    values: InputValues,
    domain: Sequence[Domain],
    rng: np.random.Generator,
    columns: NDArray[np.intp],
    current: NDArray[Any],
) -> NDArray[Any]:
    """Return a new value for each of `columns` (k,) in place of `current` (k,), all kinds equally often."""
    if values.frozen:
        return current
    kinds = _kinds_of(values.dtype, domain)
    if len(kinds) == 1:
        return values.apply_choices(_sample_kind(values, kinds[0], rng, columns, current), columns, rng)
    which = rng.integers(0, len(kinds), len(columns), dtype=np.uint8)
    new = current.copy()
    for index, kind in enumerate(kinds):
        places = np.flatnonzero(which == index)
        new[places] = _sample_kind(values, kind, rng, columns[places], current[places])
    return values.apply_choices(new, columns, rng)


def _sample_rows(values: InputValues, kind: _Kind, rng: np.random.Generator, current: NDArray[Any]) -> NDArray[Any]:
    """Return new values of one kind for whole flat rows (k, size)."""
    if values.frozen:
        return current
    if kind == "of a row":  # of one other row, so that dependent columns stay consistent
        return values.seen[rng.integers(0, len(values.seen), len(current))]
    return values.apply_choices(_sample_kind(values, kind, rng, None, current), None, rng)


def _sample_kind(
    values: InputValues, kind: _Kind, rng: np.random.Generator, columns: NDArray[np.intp] | None, current: NDArray[Any]
) -> NDArray[Any]:
    """Return new values for `columns` (k,), or with None for whole rows (k, size)."""
    if kind == "of a row":
        return values.seen[rng.integers(0, len(values.seen), len(current)), columns]
    if kind == "special":
        choices = special_values(values.dtype)
        return choices[rng.integers(0, len(choices), current.shape)]
    if kind == "far":
        return out_of_range_values(values, columns, rng.uniform(-1, 1, current.shape))
    if kind == "edge":
        which = rng.integers(0, len(values.edges), current.shape, dtype=np.uint8)
        return values.edges[which, np.arange(current.shape[-1]) if columns is None else columns]
    low, high = values.range_of(columns)
    # float32 halves the time of images; the rounding of a random number is one more random number.
    real: Any = np.float32 if values.dtype.itemsize <= 4 else np.float64
    wide_low: NDArray[Any]
    wide_high: NDArray[Any]
    new: NDArray[Any]
    wide_low, wide_high = low.astype(real, copy=False), high.astype(real, copy=False)
    fraction: NDArray[Any] = rng.random(current.shape, real)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "between":
            new = wide_low + fraction * (wide_high - wide_low)
        else:  # up to 10^0 to 10^-6 of the range's width away
            reach: NDArray[Any] = 10 ** (-6 * rng.random((len(current), *[1] * (current.ndim - 1)), real))
            new = current.astype(real) + (2 * fraction - 1) * (reach * (wide_high - wide_low))
    if not np.isfinite(new).all():
        new = np.where(np.isfinite(new), new, wide_low)
    # The last digit of a sum may lie outside; int4 would come back as int8.
    clipped: NDArray[Any] = np.minimum(np.maximum(as_dtype(new, values.dtype), low), high)
    return clipped.astype(values.dtype, copy=False)


def _text_as_objects(array: NDArray[Any]) -> NDArray[Any]:
    """Return text as objects, the only dtype into which text of any length can be written."""
    return array.astype(object) if array.dtype.kind in "UT" else array
