"""A counterexample as simple as it can be made: few coordinates changed from a base row, and those to plain numbers.

Delta debugging (Zeller and Hildebrandt 2002, algorithm ddmin) with sixteen parts at a time, whose trials are all asked
in one call. Where several parts can go, they go together, if the rest still fails: a fault of two pixels among 150,528
is found in about six rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, changed, flat, shaped, taken
from pytest_modelserve.robustness.domains import as_dtype, is_numpys_own
from pytest_modelserve.robustness.plain_text import plainer_texts

Fails = Callable[[Feed], NDArray[np.bool_]]
"""Which of some rows (n, ...) fail."""

_PARTS = 16
_PLAIN_COORDINATES = 64
"""A counterexample with more changed coordinates is no longer read number by number."""
_PASSES = 3
_TRIAL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Minimised:
    """The simplest failing row found, (1, ...), the coordinates in which it is not the base row, and the rows tried."""

    row: Feed
    coordinates: tuple[int, ...]
    trials: int


def minimise(row: Feed, base: Feed, fails: Fails, *, max_trials: int = 20_000) -> Minimised:
    """The simplest row found between `base` and `row`, both (1, ...), that still fails.

    `row` has to fail. No coordinate of the result can go back to the base row's value without it passing, unless
    `max_trials` ran out; its numbers are as short as they can be within the range from the base's value to the row's.
    """
    layout = Coordinates.of(row)
    state = _State(flat(base), flat(row), layout, fails, max_trials)
    kept = state.fewest(np.flatnonzero(changed(row, base)[0]))
    state.apply(kept)
    if len(kept) <= _PLAIN_COORDINATES:
        state.plain(kept)
        if len(kept) > 1:
            kept = state.fewest(kept)  # a plainer number may do without its neighbours
            state.apply(kept)
    return Minimised(shaped(state.row, layout), tuple(int(i) for i in kept), state.trials)


@dataclass(slots=True)
class _State:
    """The failing row so far and the base row, flat, both (1, coordinates)."""

    base: Feed
    row: Feed
    layout: Coordinates
    fails: Fails
    max_trials: int
    trials: int = field(default=0, init=False)

    def with_only(self, keeps: list[NDArray[np.intp]]) -> NDArray[np.bool_]:
        """Which still fail of the base row with the coordinates of one of `keeps` taken from the failing row."""
        step = max(1, _TRIAL_BYTES // max(1, sum(array.nbytes for array in self.row.values())))
        found = [self._tried(keeps[begin : begin + step]) for begin in range(0, len(keeps), step)]
        return np.concatenate(found) if found else np.zeros(0, np.bool_)

    def _tried(self, keeps: list[NDArray[np.intp]]) -> NDArray[np.bool_]:
        rows = {name: np.repeat(array, len(keeps), axis=0) for name, array in self.base.items()}
        for trial, keep in enumerate(keeps):
            for part, _, places in self.layout.within(keep):
                rows[part.name][trial, places] = self.row[part.name][0, places]
        return self._asked(rows)

    def _asked(self, rows: Feed) -> NDArray[np.bool_]:
        count = len(next(iter(rows.values())))
        self.trials += count
        return self.fails(shaped(rows, self.layout))

    def apply(self, kept: NDArray[np.intp]) -> None:
        """Put the base row's values everywhere but at `kept`."""
        row = {name: array.copy() for name, array in self.base.items()}
        for part, _, places in self.layout.within(kept):
            row[part.name][0, places] = self.row[part.name][0, places]
        self.row = row

    def fewest(self, kept: NDArray[np.intp]) -> NDArray[np.intp]:
        """Few of the coordinates `kept` with which the base row still fails; none where it fails by itself."""
        if len(kept) and self.with_only([kept[:0]])[0]:
            return kept[:0]
        parts = _PARTS
        while len(kept) > 1 and self.trials < self.max_trials:
            split = np.array_split(kept, min(parts, len(kept)))
            alone = self.with_only(split)
            if alone.any():
                kept, parts = split[int(np.argmax(alone))], _PARTS
                continue
            smaller = self._without_several(split)
            if smaller is not None:
                kept, parts = smaller, _PARTS
            elif parts >= len(kept):
                break
            else:
                parts *= 2
        return kept

    def _without_several(self, split: list[NDArray[np.intp]]) -> NDArray[np.intp] | None:
        """The union of the parts without as many as can go; None where not one can."""
        rests = [np.concatenate(split[:i] + split[i + 1 :]) for i in range(len(split))]
        removable = [int(i) for i in np.flatnonzero(self.with_only(rests))]
        if not removable:
            return None
        # All that can go singly, then fewer of them: the longest run from the first on that can go together.
        keeps = [
            np.concatenate([split[i] for i in range(len(split)) if i not in removable[:count]] or [split[0][:0]])
            for count in range(len(removable), 1, -1)
        ]
        together = self.with_only(keeps)
        return keeps[int(np.argmax(together))] if together.any() else rests[removable[0]]

    def plain(self, kept: NDArray[np.intp]) -> None:
        """Give each of the coordinates the plainest number with which the row still fails."""
        for _ in range(_PASSES):
            plainer = [self._plainer(int(index)) for index in kept]
            if not any(plainer):
                return

    def _plainer(self, index: int) -> bool:
        part, _ = self.layout.place(index)
        place = index - part.offset
        current, origin = self.row[part.name][0, place], self.base[part.name][0, place]
        choices = plainer_values(current, origin, part.dtype)
        if not len(choices) or self.trials >= self.max_trials:
            return False
        rows = {name: np.repeat(array, len(choices), axis=0) for name, array in self.row.items()}
        rows[part.name][:, place] = choices
        failing = self._asked(rows)
        if not failing.any():
            return False
        self.row = taken(rows, slice(int(np.argmax(failing)), int(np.argmax(failing)) + 1))
        return True


def plainer_values(current: Any, origin: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers plainer than `current`, plainest first, from the base's value `origin` to it; neither of the two.

    Zero, one and minus one; whole numbers and numbers of few digits near the middle and near `current`. A number that
    is not finite has no range: plain ones of either size are tried in its place. Of text, what lies between the two.
    """
    if kind_of(dtype) == "text":
        return np.array(plainer_texts(str(current), str(origin)), object)
    if dtype == np.bool_:
        return np.zeros(0, dtype)
    value, start = float(current), float(origin)
    if not np.isfinite(value):
        numbers = [0.0, 1.0, -1.0, 10.0, -10.0, 1e3, -1e3, 1e6, -1e6]
    else:
        numbers = _between(value, start if np.isfinite(start) else value)
    found = as_dtype(np.array(numbers, np.float64), dtype)
    _, first = np.unique(found.astype(np.float64), return_index=True)
    found = found[np.sort(first)]
    rank = [_length(number) for number in found]
    before = _length(current)
    keep = [i for i, length in enumerate(rank) if length < before and found[i] != origin]
    return np.array([found[i] for i in sorted(keep, key=rank.__getitem__)], dtype)


def _between(value: float, start: float) -> list[float]:
    low, high = min(value, start), max(value, start)
    points = [value, (value + start) / 2, value + (start - value) / 4, start + (value - start) / 16]
    numbers = [0.0, 1.0, -1.0, *(float(f"{point:.{digits}g}") for point in points for digits in (1, 2, 3, 4))]
    numbers += [round(point) for point in points]
    toward = np.sign(start - value)
    numbers += [value + toward * step for step in (10.0**k for k in range(-3, 4))]
    numbers = [*numbers, *(float(f"{number:.4g}") for number in numbers)]
    return [number for number in numbers if low <= number <= high]


def _length(number: Any) -> tuple[int, int, float]:
    """How much there is to read: the digits that tell a number of its dtype, how far its first one is from the decimal
    point, its size."""
    if not is_numpys_own(number.dtype):
        number = np.float32(number)
    if not np.isfinite(number):
        return 100, 0, 0.0
    digits, _, exponent = np.format_float_scientific(number, trim="-").partition("e")
    return len(digits.replace(".", "").strip("-")) + (abs(int(exponent)) > 3), abs(int(exponent)), abs(float(number))
