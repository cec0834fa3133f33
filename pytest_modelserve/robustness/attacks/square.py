"""Square attack: random search by scores, with localized changes at the surface of the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.attack import Attack, Target, check_proportion

_STEPS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 after which the changed proportion halves: the schedule of the publication."""
_PATIENCE = 50
"""Queries without a lower margin, beyond two for each value of a row, after which its search starts anew."""
_TINY = 1e-10
_STEP_SHARE = 0.5
_STEP_POWER = 0.3
"""The length of a step is this power of the changed proportion."""
_MOST_CHANNELS = 4
_SWAP_SHARE = 0.5
_MOST_SWAPPED = 4.0
"""Whole numbers are swapped where eps per number is at most this; beyond, rounding matters less."""


@dataclass(frozen=True, kw_only=True)
class square(Attack):
    """Change squares of an image, or subsets of a flat row, by eps, and keep what lowers the margin.

    Each row keeps the best perturbation so far. A candidate changes a square window of the image, which shrinks over
    the queries, or as many randomly chosen features of a flat row; equal margins are accepted, so that the search moves
    on plateaus of quantized scores. A row whose margin no longer falls starts anew. Reads scores alone, no gradients.

    Args:
        queries: Largest number of queries of each row; the window shrinks over this number.
        image_shape: For rows that are flattened images: (height, width) or (channels, height, width).
        proportion: Proportion of a row that the first candidates change.

    Raises:
        UsageError: For a proportion outside (0, 1], and a number of queries below 1.
    """

    queries: int = 1000
    image_shape: tuple[int, ...] | None = None
    proportion: float = 0.8

    name: ClassVar[str] = "square"
    needs_scores: ClassVar[bool] = True
    changes_categories: ClassVar[bool] = False
    source: ClassVar[str] = "Andriushchenko et al. 2020, ECCV, Square Attack"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proportion("proportion of square", self.proportion, positive=True)
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", checked_image_shape("image_shape of square", self.image_shape))

    def run(self, target: Target, rng: np.random.Generator) -> None:
        """Search around all active rows at once."""
        grid = _Grid.of(target.threat.shape, self.image_shape)
        if target.threat.norm == "linf":
            search: _LinfSearch | _L2Search = _LinfSearch(grid)
        else:
            search = _L2Search(grid, target.threat.free, target.threat.scale * target.threat.whole)
        index = target.active()
        best = np.zeros((len(target.labels), *grid.layout))
        margins = np.full(len(target.labels), np.inf)
        best[index] = search.start(index.size, rng)
        improved = np.zeros(len(target.labels), np.intp)
        patience = _PATIENCE + 2 * int(np.prod(target.threat.shape))
        for step in progress(range(self.queries), "square attack"):
            index = target.active()
            if not index.size:
                return
            stalled = index[step - improved[index] > patience]
            best[stalled], margins[stalled], improved[stalled] = search.start(stalled.size, rng), np.inf, step
            units = best[index]
            if step:
                units = search.candidate(units, self._proportion_at(step), rng)
            candidates = target.threat.place(index, grid.rows(units))
            if target.threat.norm == "l2":  # the range cuts off a part, which the next candidate gets
                units = grid.units(target.threat.units(index, candidates))
            answers = target.query(index, candidates)
            improved[index[answers.margin < margins[index]]] = step
            better = answers.margin <= margins[index]
            best[index[better]] = units[better]
            margins[index[better]] = answers.margin[better]

    def _proportion_at(self, step: int) -> float:
        scaled = int(step / self.queries * 10_000)
        halvings = sum(scaled > end for end in _STEPS)
        return float(self.proportion / 2**halvings)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Rows as (channels, places): the places of an image, or of a flat row with one channel."""

    shape: tuple[int, ...]
    channels: int
    height: int
    width: int
    is_image: bool
    channels_last: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], image_shape: tuple[int, ...] | None) -> _Grid:
        size = int(np.prod(shape))
        given = shape if image_shape is None else checked_image_shape("image_shape of square", image_shape, shape)
        if len(given) == 2:
            return cls(shape, 1, *given, is_image=True)
        if len(given) == 3:
            last = given[2] <= _MOST_CHANNELS < given[0]
            channels, height, width = (given[2], given[0], given[1]) if last else given
            return cls(shape, channels, height, width, is_image=True, channels_last=last)
        return cls(shape, 1, 1, size, is_image=False)

    @property
    def layout(self) -> tuple[int, int]:
        return self.channels, self.height * self.width

    def rows(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (k, channels, places) in the shape of rows (k, ...)."""
        if self.channels_last:
            units = np.moveaxis(units, 1, 2)
        return units.reshape(len(units), *self.shape)

    def units(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rows (k, ...) as (k, channels, places)."""
        if self.channels_last:
            return np.moveaxis(rows.reshape(len(rows), self.height * self.width, self.channels), 2, 1)
        return rows.reshape(len(rows), *self.layout)

    def side(self, proportion: float, *, least: int = 1) -> int:
        """Return the side of a window that holds about `proportion` of an image, or the number of features."""
        if not self.is_image:
            return max(1, min(round(proportion * self.width), self.width))
        side = round(math.sqrt(proportion * self.height * self.width))
        return max(min(least, self.height, self.width), min(side, self.height - 1, self.width - 1), 1)

    def window(self, count: int, side: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the places of one window for each of `count` rows, (count, places)."""
        if not self.is_image:
            return np.argsort(rng.random((count, self.width)), axis=1)[:, :side]
        top, left = (rng.integers(0, length - side + 1, count) for length in (self.height, self.width))
        inner = (np.arange(side)[:, None] * self.width + np.arange(side)).reshape(-1)
        return np.asarray((top * self.width + left)[:, None] + inner)


@dataclass(frozen=True, slots=True, eq=False)
class _LinfSearch:
    """Candidates with every feature at plus or minus eps."""

    grid: _Grid

    def start(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        channels, places = self.grid.layout
        if not self.grid.is_image:
            return rng.choice([-1.0, 1.0], (count, channels, places))
        stripes = rng.choice([-1.0, 1.0], (count, channels, 1, self.grid.width))
        return np.broadcast_to(stripes, (count, channels, self.grid.height, self.grid.width)).reshape(
            count, channels, places
        )

    def candidate(self, units: NDArray[np.float64], proportion: float, rng: np.random.Generator) -> NDArray[np.float64]:
        count, channels, _ = units.shape
        at = _index(self.grid.window(count, self.grid.side(proportion), rng), channels)
        changed = units.copy()
        if not self.grid.is_image:
            changed[at] *= -1
            return changed
        old = units[at]
        signs = np.broadcast_to(rng.choice([-1.0, 1.0], (count, channels, 1)), old.shape)
        same = (signs == old).all(axis=(1, 2))
        changed[at] = np.where(same[:, None, None], -signs, signs)
        return changed


@dataclass(frozen=True, slots=True, eq=False)
class _L2Search:
    """Candidates on the sphere: a window gets the mass of another one, or a subset of features a random step.

    Flat rows take steps alone, images in half of the candidates: with 300 and 1,000 queries of digits, steps fool 2 to
    3 points more rows than windows. `whole` is eps of the features of whole numbers, 0 for others; where it is small,
    half of the candidates change some of them by 1, in place of others where the ball is full.
    """

    grid: _Grid
    free: NDArray[np.bool_]
    whole: NDArray[np.float64]

    def start(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        channels, places = self.grid.layout
        if not self.grid.is_image:
            return self._normalized(rng.normal(size=(count, channels, places)))
        side = max(1, min(self.grid.height, self.grid.width) // 5)
        units = np.zeros((count, channels, self.grid.height, self.grid.width))
        for top in range(0, self.grid.height - side + 1, side):
            for left in range(0, self.grid.width - side + 1, side):
                signs = rng.choice([-1.0, 1.0], (count, channels, 1, 1))
                units[:, :, top : top + side, left : left + side] += _pyramids(side, rng) * signs
        return self._normalized(units.reshape(count, channels, places))

    def candidate(self, units: NDArray[np.float64], proportion: float, rng: np.random.Generator) -> NDArray[np.float64]:
        if not self.grid.is_image:
            moved = self._stepped(units, proportion, rng)
        else:
            moved = self._moved(units, proportion, rng)
            steps = rng.random(len(units)) < _STEP_SHARE
            moved[steps] = self._stepped(units[steps], proportion, rng)
        count = np.count_nonzero(self.whole)
        if count and (self.whole**2).sum() <= (_MOST_SWAPPED * count) ** 2:
            swaps = rng.random(len(units)) < _SWAP_SHARE
            moved[swaps] = self._swapped(units[swaps], proportion, rng)
        return moved

    def _swapped(self, units: NDArray[np.float64], proportion: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Change features by 1; the threat model leaves out the smallest others, so the fractions draw which."""
        flat, eps = self.grid.rows(units).reshape(len(units), -1), self.whole.reshape(-1)
        most = min(float(np.count_nonzero(eps)), float((eps**2).mean()))
        order = np.argsort(rng.random(flat.shape) + (eps == 0), axis=1)
        chosen = np.zeros(flat.shape, np.bool_)
        np.put_along_axis(chosen, order[:, : max(1, round(proportion * most))], True, axis=1)
        values = np.rint(flat * eps) + chosen * rng.choice([-1.0, 1.0], flat.shape)
        fractions = np.where(chosen, 0.45, rng.uniform(-0.45, 0.45, flat.shape))
        changed = np.where(eps > 0, (values + np.sign(values) * fractions) / np.where(eps > 0, eps, 1), flat)
        return self.grid.units(changed.reshape(len(units), *self.grid.shape))

    def _stepped(self, units: NDArray[np.float64], proportion: float, rng: np.random.Generator) -> NDArray[np.float64]:
        flat = units.reshape(len(units), self.free.size)
        chosen = max(1, round(proportion * self.free.size))
        places = np.argpartition(rng.random(flat.shape), chosen - 1, axis=1)[:, :chosen]
        step = np.zeros(flat.shape)
        np.put_along_axis(step, places, rng.normal(size=places.shape), axis=1)
        step *= proportion**_STEP_POWER / np.sqrt((step**2).sum(axis=1, keepdims=True))
        return self._normalized((flat + step).reshape(units.shape))

    def _moved(self, units: NDArray[np.float64], proportion: float, rng: np.random.Generator) -> NDArray[np.float64]:
        count, channels, _ = units.shape
        side = self.grid.side(proportion, least=3)
        into, out = (_index(self.grid.window(count, side, rng), channels) for _ in range(2))
        before = (units**2).sum(axis=(1, 2))
        emptied = units.copy()
        old = emptied[into].copy()
        emptied[into] = 0
        emptied[out] = 0
        free_mass = np.maximum(1 - before, 0) + before - (emptied**2).sum(axis=(1, 2))
        template = np.broadcast_to(_pyramids(side, rng).reshape(-1), old.shape)
        template = template * rng.choice([-1.0, 1.0], (count, channels, 1))
        fresh = template + old / (_TINY + np.sqrt((old**2).sum(axis=2, keepdims=True)))
        fresh /= _TINY + np.sqrt((fresh**2).sum(axis=2, keepdims=True))
        emptied[into] = fresh * np.sqrt(free_mass / channels)[:, None, None]
        return self._normalized(emptied)

    def _normalized(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        units = units * self.grid.units(self.free[None].astype(np.float64))
        return np.asarray(units / (_TINY + np.sqrt((units**2).sum(axis=(1, 2), keepdims=True))))


def checked_image_shape(name: str, given: Any, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the shape of an image, with as many values as rows of `shape`; UsageError that names it otherwise."""
    sides = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    fits = len(sides) in (2, 3) and all(isinstance(side, int) and side > 0 for side in sides)
    if not fits or (shape is not None and math.prod(sides) != math.prod(shape)):
        rows = "" if shape is None else f" with {math.prod(shape)} values, as the rows have shape {shape}"
        raise UsageError(f"{name} must be (height, width) or (channels, height, width){rows}; got {given!r}")
    return sides


def _index(places: NDArray[np.intp], channels: int) -> tuple[NDArray[np.intp], ...]:
    """Return the index of (rows, channels, places) for places (k, m)."""
    return np.arange(len(places))[:, None, None], np.arange(channels)[None, :, None], places[:, None, :]


def _pyramids(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a window (side, side) of unit norm: a positive pyramid beside a negative one."""
    window = np.zeros((side, side))
    half = side // 2
    if half:
        window[:half] = _pyramid(half, side)
    window[half:] = -_pyramid(side - half, side)
    window /= np.sqrt((window**2).sum())
    return window.T if rng.random() < 0.5 else window


def _pyramid(height: int, width: int) -> NDArray[np.float64]:
    window = np.zeros((height, width))
    row, column = height // 2, width // 2
    for ring in range(max(row, column) + 1):
        top, left = max(row - ring, 0), max(column - ring, 0)
        window[top : row + ring + 1, left : column + ring + 1] += 1 / (ring + 1) ** 2
    return np.asarray(window / np.sqrt((window**2).sum()))
