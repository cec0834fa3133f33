"""Rows to try: base rows with some of their numbers edited, many at a time and without any draw a row.

Half the power of a search lies in how many numbers an edit touches: a fault that needs two features in a narrow range
shows up where few change, one that needs a whole image to be bright where all do. The number of edits is drawn evenly
on a log scale, up to a quarter of a long row, and three rows in ten are edited everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.coordinates import Feed, flat, joined, shaped, taken
from pytest_modelserve.robustness.domains import Domain
from pytest_modelserve.robustness.drawing import Kind, drawn, drawn_rows, kinds_of
from pytest_modelserve.robustness.space import Space

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
