"""Rows to try: base rows with some of their numbers edited, many at a time and without any draw a row.

Half the power of a search lies in how many numbers an edit touches: a fault that needs two features in a narrow range
shows up where few change, one that needs a whole image to be bright where all do. The number of edits is drawn evenly
on a log scale, up to a quarter of a long row, and three rows in ten are edited everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, flat, joined, row_count, shaped, taken
from pytest_modelserve.robustness.domains import (
    Domain,
    Limits,
    Ranges,
    Values,
    as_dtype,
    check_domain,
    far,
    limits_of,
    outside,
    specials,
)

# The numbers of one row, counted through all inputs: what an edit, a minimiser and a table of features point at.


# New values for chosen coordinates, drawn by numpy for all of them at once.


Kind = Literal["of a row", "between", "near", "end", "far", "special"]

_KINDS: dict[Domain, tuple[Kind, ...]] = {
    "like": ("of a row", "between", "near"),
    "edges": ("end",),
    "far": ("far",),
    "special": ("special",),
}
_TEXT_KINDS: dict[Domain, tuple[Kind, ...]] = {
    "like": ("of a row",),
    "edges": ("of a row",),
    "far": ("special",),
    "special": ("special",),
}


def kinds_of(dtype: np.dtype[Any], domain: Sequence[Domain]) -> tuple[Kind, ...]:
    """The kinds of values that a domain has for a dtype; each is drawn as often as the others."""
    table = _TEXT_KINDS if kind_of(dtype) == "text" else _KINDS
    return tuple(dict.fromkeys(kind for name in domain for kind in table[name]))


def drawn(
    values: Values,
    domain: Sequence[Domain],
    rng: np.random.Generator,
    columns: NDArray[np.intp],
    current: NDArray[Any],
) -> NDArray[Any]:
    """A new value for each of `columns` (k,) in place of `current` (k,), each of its own kind."""
    if values.whole:
        return current
    kinds = kinds_of(values.dtype, domain)
    if len(kinds) == 1:
        return values.choose(_of_kind(values, kinds[0], rng, columns, current), columns, rng)
    which = rng.integers(0, len(kinds), len(columns), dtype=np.uint8)
    new = current.copy()
    for index, kind in enumerate(kinds):
        places = np.flatnonzero(which == index)
        new[places] = _of_kind(values, kind, rng, columns[places], current[places])
    return values.choose(new, columns, rng)


def drawn_rows(values: Values, kind: Kind, rng: np.random.Generator, current: NDArray[Any]) -> NDArray[Any]:
    """New values of one kind for whole flat rows (k, size)."""
    if values.whole:
        return current
    if kind == "of a row":  # of one other row: columns keep what ties them together
        return values.seen[rng.integers(0, len(values.seen), len(current))]
    return values.choose(_of_kind(values, kind, rng, None, current), None, rng)


def _of_kind(
    values: Values, kind: Kind, rng: np.random.Generator, columns: NDArray[np.intp] | None, current: NDArray[Any]
) -> NDArray[Any]:
    """New values for `columns` (k,), or with None for whole rows (k, size)."""
    if kind == "of a row":
        return values.seen[rng.integers(0, len(values.seen), len(current)), columns]
    if kind == "special":
        choices = specials(values.dtype)
        return choices[rng.integers(0, len(choices), current.shape)]
    if kind == "far":
        return far(values, columns, rng.uniform(-1, 1, current.shape))
    if kind == "end":
        return _ends(values.edges, rng, columns, current.shape)
    low, high = values.ends(columns)
    # float32 halves the time of images; the rounding of a random number is one more random number.
    real: Any = np.float32 if values.dtype.itemsize <= 4 else np.float64
    wide_low: NDArray[Any]
    wide_high: NDArray[Any]
    new: NDArray[Any]
    wide_low, wide_high = low.astype(real, copy=False), high.astype(real, copy=False)
    share: NDArray[Any] = rng.random(current.shape, real)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "between":
            new = wide_low + share * (wide_high - wide_low)
        else:  # up to 10^0 to 10^-6 of the range's width away
            reach: NDArray[Any] = 10 ** (-6 * rng.random((len(current), *[1] * (current.ndim - 1)), real))
            new = current.astype(real) + (2 * share - 1) * (reach * (wide_high - wide_low))
    if not np.isfinite(new).all():
        new = np.where(np.isfinite(new), new, wide_low)
    # The last digit of a sum may lie outside; int4 would come back as int8.
    held: NDArray[Any] = np.minimum(np.maximum(as_dtype(new, values.dtype), low), high)
    return held.astype(values.dtype, copy=False)


def _ends(
    edges: NDArray[Any], rng: np.random.Generator, columns: NDArray[np.intp] | None, shape: tuple[int, ...]
) -> NDArray[Any]:
    which = rng.integers(0, len(edges), shape, dtype=np.uint8)
    return edges[which, np.arange(shape[-1]) if columns is None else columns]


# The rows that a search starts from, and what it may put in their place.


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Base rows, their coordinates, and by input where other values come from."""

    base: Feed
    coordinates: Coordinates
    values: Mapping[str, Values]
    domain: tuple[Domain, ...]
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """What is declared of the coordinates of some inputs."""

    @classmethod
    def around(
        cls,
        rows: Mapping[str, NDArray[Any]],
        domain: Domain | Sequence[Domain],
        *,
        whole: Collection[str] = (),
        ranges: Ranges | None = None,
    ) -> Space:
        """The space around rows (n, ...); InputError where there are none.

        Inputs in `whole` come from a base row as they are, and no edit touches them; no edit leaves `ranges`.
        """
        chosen = check_domain(domain)
        base = {name: _readable(array) for name, array in rows.items()}
        if row_count(base) == 0:
            raise InputError("there are no rows to start from: the inputs are empty")
        coordinates = Coordinates.of(base)
        limits = limits_of(ranges, coordinates) if ranges else {}
        values = {
            name: Values.of(array, whole=name in whole, limits=limits.get(name)) for name, array in flat(base).items()
        }
        return cls(base, coordinates, values, chosen, limits)

    def holds(self, rows: Feed) -> NDArray[np.bool_]:
        """Which rows (n, ...) lie within what is declared."""
        if not self.limits:
            return np.ones(row_count(rows), np.bool_)
        return np.asarray(~outside(rows, self.limits).any(axis=1))

    @property
    def rows(self) -> int:
        """How many base rows there are."""
        return row_count(self.base)


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """Text as objects, the only form into which text of any length can be edited."""
    return array.astype(object) if array.dtype.kind in "UT" else array


_DENSE_SHARE = 0.3
_SHORT = 64
"""Coordinates of a row that is edited up to the last one by one; of a longer one that costs most of the time."""
_BLOCK_ELEMENTS = 4_000_000
"""Elements in one block of candidates: 16 MB of float32, enough for a thousand rows of 4,000 features."""
_BLOCK_ROWS = 1024


def block_rows(space: Space) -> int:
    """How many candidates are made and asked at once."""
    return int(np.clip(_BLOCK_ELEMENTS // max(space.coordinates.size, 1), 8, _BLOCK_ROWS))


def edited(
    space: Space, rng: np.random.Generator, count: int, *, edits: int | None = None, start: Feed | None = None
) -> tuple[Feed, NDArray[np.intp]]:
    """`count` rows, and for each the base row (or the row of `start`) that it was made from.

    `edits` fixes how many coordinates are touched, at most: one may be drawn twice, or get the value that it had.
    """
    size = space.coordinates.size
    source = flat(space.base if start is None else start)
    origin = rng.integers(0, len(next(iter(source.values()))), count)
    rows = {name: array[origin] for name, array in source.items()}
    if size == 0:
        return shaped(rows, space.coordinates), origin
    dense = np.zeros(count, np.bool_)
    if edits is None:
        dense = rng.random(count) < _DENSE_SHARE
        most = size if size <= _SHORT else size // 4
        counts = np.exp(rng.random(count) * np.log(most + 1)).astype(np.intp)
        counts[dense] = 0
    else:
        counts = np.full(count, min(edits, size), np.intp)
    _edit_sparsely(space, rng, rows, counts)
    if dense.any():
        _edit_everywhere(space, rng, rows, np.flatnonzero(dense))
    return shaped(rows, space.coordinates), origin


def _edit_sparsely(space: Space, rng: np.random.Generator, rows: Feed, counts: NDArray[np.intp]) -> None:
    row_of = np.repeat(np.arange(len(counts)), counts)
    columns = rng.integers(0, space.coordinates.size, len(row_of))
    for part, mask, places in space.coordinates.within(columns):
        target = row_of[mask] * part.size + places  # one index is half the time of two
        array = rows[part.name].reshape(-1)
        array[target] = drawn(space.values[part.name], space.domain, rng, places, array[target])


def _edit_everywhere(space: Space, rng: np.random.Generator, rows: Feed, which: NDArray[np.intp]) -> None:
    """Each of these rows gets one kind of value in every coordinate of an input."""
    for part in space.coordinates.parts:
        values = space.values[part.name]
        kinds: tuple[Kind, ...] = kinds_of(values.dtype, space.domain)
        if "between" in kinds:  # the one kind that puts every coordinate anywhere: as often as all others together
            again: tuple[Kind, ...] = ("between",)
            kinds += again * (len(kinds) - 2)
        theme = rng.integers(0, len(kinds), len(which))
        for index, kind in enumerate(kinds):
            chosen = which[theme == index]
            if len(chosen) and part.size:
                rows[part.name][chosen] = drawn_rows(values, kind, rng, rows[part.name][chosen])


def edge_cases(space: Space, limit: int) -> Iterator[tuple[Feed, NDArray[np.intp]]]:
    """Blocks of the rows that every search tries first, at most `limit` in all: nothing in them is drawn.

    The base rows themselves; every coordinate at its least, at its greatest and at what of zero its range holds; then
    single coordinates of the first base row at the ends of their ranges and at the domain's other fixed values. Where
    there is no room for all coordinates, evenly spaced ones are taken.
    """
    step = block_rows(space)
    told = min(space.rows, max(limit - 8, 1), limit)
    for begin in range(0, told, step):
        places = np.arange(begin, min(begin + step, told))
        yield taken(space.base, places), places
    whole = _whole_rows(space, space.domain)
    if limit - told >= len(next(iter(whole.values()))):
        yield whole, np.zeros(len(next(iter(whole.values()))), np.intp)
        told += len(next(iter(whole.values())))
        yield from _single_edges(space, limit - told, step)


def _whole_rows(space: Space, domain: tuple[Domain, ...]) -> Feed:
    """The first base row with every number at its least, its greatest, and as near to zero as its range goes."""
    rows: Feed = {}
    for part in space.coordinates.parts:
        values = space.values[part.name]
        first = values.seen[:1]
        if values.whole or values.dtype.kind == "O" or not {"like", "edges"} & set(domain):
            rows[part.name] = np.repeat(first, 3, axis=0)
        else:
            zero = np.minimum(np.maximum(np.zeros_like(values.low), values.low), values.high)
            for column, choices in values.choices.items():
                zero[column] = choices[0]
            rows[part.name] = np.stack([values.low, values.high, zero])
    return shaped(rows, space.coordinates)


def _single_edges(space: Space, limit: int, step: int) -> Iterator[tuple[Feed, NDArray[np.intp]]]:
    size = space.coordinates.size
    if size == 0 or limit <= 0:
        return
    columns = np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.intp))
    edits: list[tuple[str, int, object]] = []
    for part, _, places in space.coordinates.within(columns):
        edges = space.values[part.name].fixed(space.domain, places)
        edits += [(part.name, int(place), edges[k, j]) for k in range(len(edges)) for j, place in enumerate(places)]
    chosen = [edits[i] for i in np.unique(np.linspace(0, len(edits) - 1, min(len(edits), limit)).astype(np.intp))]
    first = taken(space.base, slice(0, 1))
    for begin in range(0, len(chosen), step):
        block = chosen[begin : begin + step]
        rows = flat(joined([first] * len(block)))
        for row, (name, place, value) in enumerate(block):
            rows[name][row, place] = value
        yield shaped(rows, space.coordinates), np.zeros(len(block), np.intp)
