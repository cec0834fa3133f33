"""Counterexample minimization: few coordinates changed from a base row, and those to simple numbers.

`minimize` is delta debugging (Zeller and Hildebrandt 2002, algorithm ddmin) with sixteen chunks, whose trials are
evaluated in one call. If several chunks can be removed one by one, as many as possible are removed together: a fault
of two pixels among 150,528 takes about six rounds.

`minimize_crash` minimizes rows that crash the serving process. A crash costs the start of a process, a third of a
second, where an output costs a millisecond, and every batch of trials would crash. It therefore finds one needed item
after the other by bisection (the smallest prefix that still crashes: QuickXplain, Junker 2004), which crashes in about
half of log2(n) trials per item.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.elementwise import is_builtin_dtype
from pytest_modelserve.robustness.coordinates import (
    Coordinates,
    Feed,
    changed_mask,
    flatten_rows,
    row_count,
    take_rows,
    unflatten_rows,
)
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.serving.predictor import ProcessCrashError

Fails = Callable[[Feed], NDArray[np.bool_]]
"""Which of some rows (n, ...) fail."""
CrashOf = Callable[[Feed], ProcessCrashError | None]
"""How rows (n, ...) crash the serving process, None if they do not."""

CRASH_TIME_S = 20.0
"""Time to minimize a crash, in addition to the time limits that its own trials run into."""
_TIMEOUT_TRIALS = 12
"""Trials that may run into the time limit: enough to find one row among a thousand and a few of its features."""
_CHUNKS = 16
_SIMPLIFIED = 64
"""A counterexample with more changed coordinates is not read number by number, and is not simplified."""
_SIMPLIFY_PASSES = 3
_TRIAL_BYTES = 32 * 2**20
_TEXT_PIECES = 64
"""A longer difference between two texts is reverted in pieces of several characters."""


@dataclass(frozen=True, slots=True, eq=False)
class Counterexample:
    """A minimized violation: rows (1, ...) or a batch, and the base rows that they were made from.

    `changes` lists the (row, coordinate) pairs that differ from the base rows, `base_row` is the index of the first
    row's base row, and `initial_changes` counts the differences before minimization. `reproduced` is true if the
    minimized rows violated the relation again. `message` is the relation's message about them. `crash` says how the
    rows ended the serving process, if they did.
    """

    rows: Feed
    base: Feed
    changes: tuple[tuple[int, int], ...]
    base_row: int
    message: str
    reproduced: bool
    initial_changes: int
    crash: Literal["", "crashed", "timeout"] = ""


@dataclass(frozen=True, slots=True, eq=False)
class MinimizedRow:
    """The simplest failing row found (1, ...), its coordinates that differ from the base row, and the rows tried."""

    row: Feed
    coordinates: tuple[int, ...]
    trials: int


def minimize(row: Feed, base: Feed, fails: Fails, *, max_trials: int = 20_000) -> MinimizedRow:
    """Return the simplest row found between `base` and `row`, both (1, ...), that still fails. `row` must fail.

    Unless `max_trials` is exhausted, the result passes if any of its changed coordinates is reset to the base row's
    value. Its numbers have as few digits as possible between the base row's value and the row's.
    """
    layout = Coordinates.of(row)
    minimizer = _Minimizer(flatten_rows(base), flatten_rows(row), layout, fails, max_trials)
    needed = minimizer.reset_others(np.flatnonzero(changed_mask(row, base)[0]))
    if len(needed) <= _SIMPLIFIED:
        minimizer.simplify(needed)
        if len(needed) > 1:
            needed = minimizer.reset_others(needed)  # a simpler number may do without its neighbors
    return MinimizedRow(unflatten_rows(minimizer.row, layout), tuple(int(i) for i in needed), minimizer.trials)


def minimize_crash(
    rows: Feed, base: Feed, origin: NDArray[np.intp], crash_of: CrashOf, *, error: ProcessCrashError
) -> tuple[Counterexample, int]:
    """Return the simplest rows found between `base` and `rows` that still crash the process, and the trials taken.

    `rows` crashed it with `error`. First the rows are reduced, then their changes, then numbers are simplified. Rows
    that do not crash it again are returned unchanged. It stops after `CRASH_TIME_S` and twelve time limits.
    """
    started = time.monotonic()
    trials = _CrashTrials(crash_of, started + CRASH_TIME_S + _TIMEOUT_TRIALS * (error.time_limit_s or 0.0))
    reproduced = trials(rows)
    if reproduced and row_count(rows) > 1:
        every = np.arange(row_count(rows))
        needed = np.sort(_bisect_needed(every, lambda some: bool(len(some)) and trials(take_rows(rows, some)), trials))
        rows, base, origin = take_rows(rows, needed), take_rows(base, needed), origin[needed]
    initial_changes = int(changed_mask(rows, base).sum())
    if reproduced:
        rows = _minimize_crashing_rows(rows, base, trials)
    last = trials.error or error
    message = str(last)
    if trials.cut_short:
        message += f"; minimization stopped after {time.monotonic() - started:.0f} s, simpler rows may crash it too"
    return Counterexample(
        rows=rows,
        base=base,
        changes=tuple((int(row), int(index)) for row, index in np.argwhere(changed_mask(rows, base))),
        base_row=int(origin[0]),
        message=message,
        reproduced=reproduced,
        initial_changes=initial_changes,
        crash="crashed" if last.time_limit_s is None else "timeout",
    ), trials.count


def simpler_values(current: Any, origin: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values simpler than `current`, simplest first, from the base's value `origin` to `current`, both excluded.

    They are 0, 1 and -1, integers, and numbers of few digits near the middle and near `current`. For a value that is
    not finite, they are simple numbers of several magnitudes. For text, they lie between the two texts.
    """
    if kind_of(dtype) == "text":
        return np.array(simpler_texts(str(current), str(origin)), object)
    if dtype == np.bool_:
        return np.zeros(0, dtype)
    value, start = float(current), float(origin)
    if not np.isfinite(value):
        numbers = [0.0, 1.0, -1.0, 10.0, -10.0, 1e3, -1e3, 1e6, -1e6]
    else:
        numbers = _rounded_between(value, start if np.isfinite(start) else value)
    found = as_dtype(np.array(numbers, np.float64), dtype)
    _, first = np.unique(found.astype(np.float64), return_index=True)
    found = found[np.sort(first)]
    rank = [_complexity(number) for number in found]
    before = _complexity(current)
    simpler = [i for i, complexity in enumerate(rank) if complexity < before and found[i] != origin]
    return np.array([found[i] for i in sorted(simpler, key=rank.__getitem__)], dtype)


def simpler_texts(current: str, origin: str) -> list[str]:
    """Return texts with fewer of the edits that turn `origin` into `current`, fewest first, both excluded.

    Runs of edits are applied alone or reverted, from halves down to single characters. The last text is `current` with
    every character beyond printable ASCII replaced by "a".
    """
    edits = text_edits(origin, current)
    size = -(-len(edits) // _TEXT_PIECES) or 1
    pieces = [edits[begin : begin + size] for begin in range(0, len(edits), size)]
    applied: dict[str, int] = {}
    for begin, end in _runs(len(pieces)):
        alone, rest = pieces[begin:end], pieces[:begin] + pieces[end:]
        for chosen in (alone, rest):
            applied.setdefault(apply_edits(origin, (edit for piece in chosen for edit in piece)), len(chosen))
    found = sorted((t for t in applied if applied[t] < len(pieces)), key=lambda text: (applied[text], len(text)))
    plain = "".join(c if c.isascii() and c.isprintable() else "a" for c in current)
    return [text for text in dict.fromkeys((*found, plain)) if text not in (current, origin)]


TextEdit = tuple[int, int, str]
"""A replacement in a text: begin, end, new characters."""


def text_edits(origin: str, current: str) -> list[TextEdit]:
    """Return the edits of single characters that turn `origin` into `current`, in order."""
    found: list[TextEdit] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, origin, current, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        found += [(i1 + k, i1 + k + 1, current[j1 + k]) for k in range(both)]
        found += [(i1 + both, i1 + both, char) for char in current[j1 + both : j2]]
        found += [(k, k + 1, "") for k in range(i1 + both, i2)]
    return found


def apply_edits(origin: str, edits: Iterable[TextEdit]) -> str:
    """Return `origin` with `edits` applied, which are in order."""
    parts, place = [], 0
    for begin, end, text in edits:
        parts += [origin[place:begin], text]
        place = end
    return "".join([*parts, origin[place:]])


@dataclass(slots=True)
class _Minimizer:
    """The base row and the failing row found so far, both flat (1, coordinates)."""

    base: Feed
    row: Feed
    layout: Coordinates
    fails: Fails
    max_trials: int
    trials: int = field(default=0, init=False)

    def reset_others(self, coordinates: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the needed ones of `coordinates`, after resetting all others to the base row."""
        needed = self._needed(coordinates)
        row = {name: array.copy() for name, array in self.base.items()}
        self.layout.copy(needed, self.row, row)
        self.row = row
        return needed

    def _needed(self, needed: NDArray[np.intp]) -> NDArray[np.intp]:
        """Reduce coordinates by ddmin. The result is empty if the base row itself fails."""
        if len(needed) and self._fails_with([needed[:0]])[0]:
            return needed[:0]
        chunks = _CHUNKS
        while len(needed) > 1 and self.trials < self.max_trials:
            split = np.array_split(needed, min(chunks, len(needed)))
            alone = self._fails_with(split)
            if alone.any():
                needed, chunks = split[int(np.argmax(alone))], _CHUNKS
                continue
            smaller = self._without_several(split)
            if smaller is not None:
                needed, chunks = smaller, _CHUNKS
            elif chunks >= len(needed):
                break
            else:
                chunks *= 2
        return needed

    def _without_several(self, split: list[NDArray[np.intp]]) -> NDArray[np.intp] | None:
        """Return the union of the chunks without as many as possible, None if every chunk is needed."""
        rests = [np.concatenate(split[:i] + split[i + 1 :]) for i in range(len(split))]
        removable = [int(i) for i in np.flatnonzero(self._fails_with(rests))]
        if not removable:
            return None
        # All that can be removed singly, then fewer of them: the longest run from the first on that works together.
        unions = [
            np.concatenate([split[i] for i in range(len(split)) if i not in removable[:count]] or [split[0][:0]])
            for count in range(len(removable), 1, -1)
        ]
        together = self._fails_with(unions)
        return unions[int(np.argmax(together))] if together.any() else rests[removable[0]]

    def _fails_with(self, subsets: list[NDArray[np.intp]]) -> NDArray[np.bool_]:
        """Return, for each subset of coordinates, whether the base row fails with them taken from the failing row."""
        step = max(1, _TRIAL_BYTES // max(1, sum(array.nbytes for array in self.row.values())))
        found = []
        for begin in range(0, len(subsets), step):
            block = subsets[begin : begin + step]
            rows = {name: np.repeat(array, len(block), axis=0) for name, array in self.base.items()}
            for trial, subset in enumerate(block):
                self.layout.copy(subset, self.row, rows, trial)
            found.append(self._evaluate(rows))
        return np.concatenate(found) if found else np.zeros(0, np.bool_)

    def simplify(self, coordinates: NDArray[np.intp]) -> None:
        """Set each of the coordinates to the simplest value with which the row still fails."""
        for _ in range(_SIMPLIFY_PASSES):
            simplified = [self._simplify(int(index)) for index in coordinates]
            if not any(simplified):
                return

    def _simplify(self, index: int) -> bool:
        name, place, dtype = self.layout.flat_place(index)
        choices = simpler_values(self.row[name][0, place], self.base[name][0, place], dtype)
        if not len(choices) or self.trials >= self.max_trials:
            return False
        rows = {name: np.repeat(array, len(choices), axis=0) for name, array in self.row.items()}
        rows[name][:, place] = choices
        failing = self._evaluate(rows)
        if not failing.any():
            return False
        first = int(np.argmax(failing))
        self.row = take_rows(rows, slice(first, first + 1))
        return True

    def _evaluate(self, rows: Feed) -> NDArray[np.bool_]:
        self.trials += row_count(rows)
        return self.fails(unflatten_rows(rows, self.layout))


@dataclass(slots=True)
class _CrashTrials:
    """Count trials of rows that may crash, until the time is up, and keep the last crash."""

    crash_of: CrashOf
    until: float
    count: int = 0
    error: ProcessCrashError | None = None
    cut_short: bool = False

    def __call__(self, rows: Feed) -> bool:
        self.count += 1
        error = self.crash_of(rows)
        self.error = error or self.error
        return error is not None

    def time_is_up(self) -> bool:
        self.cut_short = self.cut_short or time.monotonic() >= self.until
        return self.cut_short


def _bisect_needed(
    items: NDArray[np.intp], crashes: Callable[[NDArray[np.intp]], bool], trials: _CrashTrials
) -> NDArray[np.intp]:
    """Return few of `items`, which crash together, that still crash. Empty if none is needed.

    Whatever is returned has been seen to crash, also after the time is up.
    """
    needed = items[:0]
    while len(items) and not trials.time_is_up():
        if crashes(needed):
            return needed
        passing, crashing = 0, len(items)
        while crashing - passing > 1 and not trials.time_is_up():
            middle = (passing + crashing) // 2
            if crashes(np.concatenate([needed, items[:middle]])):
                crashing = middle
            else:
                passing = middle
        if trials.cut_short:
            return np.concatenate([needed, items[:crashing]])
        needed, items = np.concatenate([needed, items[crashing - 1 : crashing]]), items[: crashing - 1]
    return np.concatenate([needed, items])


def _minimize_crashing_rows(rows: Feed, base: Feed, trials: _CrashTrials) -> Feed:
    """Return the rows with as few changes as needed, and those to simple values. All rows count as one item."""
    layout = Coordinates.of({name: array[np.newaxis] for name, array in rows.items()})
    row, start = (flatten_rows({name: array[np.newaxis] for name, array in feed.items()}) for feed in (rows, base))

    def batch(feed: Feed) -> Feed:
        return take_rows(unflatten_rows(feed, layout), 0)

    def with_changes(coordinates: NDArray[np.intp]) -> Feed:
        made = {name: array.copy() for name, array in start.items()}
        layout.copy(coordinates, row, made)
        return made

    changes = np.flatnonzero(changed_mask(row, start)[0])
    needed = _bisect_needed(changes, lambda some: trials(batch(with_changes(some))), trials)
    row = with_changes(needed)
    for index in needed if len(needed) <= _SIMPLIFIED else ():
        name, place, dtype = layout.flat_place(int(index))
        for value in simpler_values(row[name][0, place], start[name][0, place], dtype):
            if trials.time_is_up():
                return batch(row)
            simpler = {name: array.copy() for name, array in row.items()}
            simpler[name][0, place] = value
            if trials(batch(simpler)):
                row = simpler
                break
    return batch(row)


def _rounded_between(value: float, start: float) -> list[float]:
    low, high = min(value, start), max(value, start)
    points = [value, (value + start) / 2, value + (start - value) / 4, start + (value - start) / 16]
    numbers = [0.0, 1.0, -1.0, *(float(f"{point:.{digits}g}") for point in points for digits in (1, 2, 3, 4))]
    numbers += [round(point) for point in points]
    toward = np.sign(start - value)
    numbers += [value + toward * step for step in (10.0**k for k in range(-3, 4))]
    numbers = [*numbers, *(float(f"{number:.4g}") for number in numbers)]
    return [number for number in numbers if low <= number <= high]


def _complexity(number: Any) -> tuple[int, int, float]:
    """Return the number of digits needed in its own dtype, the distance of the first from the point, and the size."""
    if not is_builtin_dtype(number.dtype):
        number = np.float32(number)
    if not np.isfinite(number):
        return 100, 0, 0.0
    digits, _, exponent = np.format_float_scientific(number, trim="-").partition("e")
    return len(digits.replace(".", "").strip("-")) + (abs(int(exponent)) > 3), abs(int(exponent)), abs(float(number))


def _runs(count: int) -> list[tuple[int, int]]:
    """Return halves, quarters and so on of `count`, down to single items."""
    found, size = [], count // 2
    while size:
        found += [(begin, min(begin + size, count)) for begin in range(0, count, size)]
        size //= 2
    return found
