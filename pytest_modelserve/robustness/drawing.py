"""New values for chosen coordinates, drawn by numpy for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.domains import Domain, Values, as_dtype, far, specials

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
