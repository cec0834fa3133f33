"""A counterexample as simple as it can be made: few coordinates changed from a base row, and those to plain numbers.

Delta debugging (Zeller and Hildebrandt 2002, algorithm ddmin) with sixteen parts at a time, whose trials are all asked
in one call. Where several parts can go, they go together, if the rest still fails: a fault of two pixels among 150,528
is found in about six rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics import kind_of
from pytest_modelserve.metrics.elementwise import is_numpys_own
from pytest_modelserve.robustness.coordinates import Coordinates, Feed, changed, flat, row_count, shaped, taken
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.serving.subprocess_predictor import ProcessCrashError

# Texts between two texts: which few characters of a counterexample does a model mind?


_PIECES = 64
"""A longer difference is taken back in pieces of several characters."""

Edit = tuple[int, int, str]
"""What stands in place of a stretch of a text: begin, end, new characters."""


def plainer_texts(current: str, origin: str) -> list[str]:
    """Texts with fewer of the edits that make `current` of `origin`, fewest first; neither of the two is among them.

    Runs of edits are kept alone or taken back, from halves down to single characters, as delta debugging does. Last
    comes `current` with its odd characters (beyond printable ASCII) as "a".
    """
    edits = _pieces(_edits(origin, current))
    kept: dict[str, int] = {}
    for begin, end in _runs(len(edits)):
        alone, rest = edits[begin:end], edits[:begin] + edits[end:]
        for chosen in (alone, rest):
            kept.setdefault(_applied(origin, chosen), len(chosen))
    found = sorted((text for text in kept if kept[text] < len(edits)), key=lambda text: (kept[text], len(text)))
    plain = "".join(c if c.isascii() and c.isprintable() else "a" for c in current)
    return [text for text in dict.fromkeys((*found, plain)) if text not in (current, origin)]


def _edits(origin: str, current: str) -> list[Edit]:
    """The edits of single characters that make `current` of `origin`, in order."""
    found: list[Edit] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, origin, current, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        found += [(i1 + k, i1 + k + 1, current[j1 + k]) for k in range(both)]
        found += [(i1 + both, i1 + both, char) for char in current[j1 + both : j2]]
        found += [(k, k + 1, "") for k in range(i1 + both, i2)]
    return found


def _pieces(edits: list[Edit]) -> list[list[Edit]]:
    """Consecutive edits together, `_PIECES` lists at most."""
    step = -(-len(edits) // _PIECES) or 1
    return [edits[begin : begin + step] for begin in range(0, len(edits), step)]


def _runs(count: int) -> list[tuple[int, int]]:
    """Halves, quarters and so on of `count`, down to single ones."""
    found, size = [], count // 2
    while size:
        found += [(begin, min(begin + size, count)) for begin in range(0, count, size)]
        size //= 2
    return found


def _applied(origin: str, pieces: list[list[Edit]]) -> str:
    parts, place = [], 0
    for begin, end, text in (edit for piece in pieces for edit in piece):
        parts += [origin[place:begin], text]
        place = end
    return "".join([*parts, origin[place:]])


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


# Rows that end the process which serves the model, made simple with few deaths.
#
# A death costs the start of a process, a third of a second, where an answer costs a millisecond: batches of trials, as
# `minimising` asks them, would all die. Instead, one needed item after the other is found by bisection (the smallest
# prefix that still ends it: QuickXplain, Junker 2004), which dies in about half of log2(n) trials an item.


BUDGET_S = 20.0
"""How long an ending may be made simple, beside the time limits that its own trials may run into."""
_LIMITS = 12
"""Trials that may run into the time limit: enough to find one row among a thousand and a few of its features."""
_PLAIN = 64

Ends = Callable[[Feed], ProcessCrashError | None]
"""How rows (n, ...) end the process; None where they do not."""


@dataclass(slots=True)
class _Trials:
    """Asks whether rows end the process, until the time is up; remembers how they did last."""

    ends: Ends
    until: float
    count: int = 0
    error: ProcessCrashError | None = None
    cut_short: bool = field(default=False)

    def __call__(self, rows: Feed) -> bool:
        self.count += 1
        error = self.ends(rows)
        self.error = error or self.error
        return error is not None

    @property
    def over(self) -> bool:
        """Whether the time is up, which is then remembered."""
        self.cut_short = self.cut_short or time.monotonic() >= self.until
        return self.cut_short


def simplest_ending(
    rows: Feed, base: Feed, origin: NDArray[np.intp], ends: Ends, *, error: ProcessCrashError, time_limit_s: float
) -> tuple[Counterexample, int]:
    """The simplest rows found between `base` and `rows` that still end the process, and how many were tried.

    `rows` ended it as `error` says. First few of the rows, then few of their changes, then plain numbers. Where they
    do not end it again, they are told as they were. It stops after BUDGET_S and twelve time limits.
    """
    started = time.monotonic()
    trials = _Trials(ends, started + BUDGET_S + _LIMITS * time_limit_s)
    broke_again = trials(rows)
    if broke_again and row_count(rows) > 1:
        everything = np.arange(row_count(rows))
        kept = np.sort(fewest(everything, lambda some: bool(len(some)) and trials(taken(rows, some)), trials))
        rows, base, origin = taken(rows, kept), taken(base, kept), origin[kept]
    found_with = int(changed(rows, base).sum())
    if broke_again:
        rows = _least(rows, base, trials)
    told = str(trials.error or error)
    if trials.cut_short:
        told += f"; simpler rows may do so too: after {time.monotonic() - started:.0f} s they were looked for no longer"
    return Counterexample(
        rows=rows,
        base=base,
        changes=tuple((int(row), int(index)) for row, index in np.argwhere(changed(rows, base))),
        base_row=int(origin[0]),
        sentence=told,
        broke_again=broke_again,
        found_with=found_with,
        ended="died" if (trials.error or error).time_limit_s is None else "late",
    ), trials.count


def fewest(items: NDArray[np.intp], breaks: Callable[[NDArray[np.intp]], bool], trials: _Trials) -> NDArray[np.intp]:
    """Few of `items`, which break something together, that still break it; none where nothing has to be there.

    What comes back was seen to break it, also where the time is up.
    """
    needed = items[:0]
    while len(items) and not trials.over:
        if breaks(needed):
            return needed
        passing, breaking = 0, len(items)
        while breaking - passing > 1 and not trials.over:
            middle = (passing + breaking) // 2
            if breaks(np.concatenate([needed, items[:middle]])):
                breaking = middle
            else:
                passing = middle
        if trials.cut_short:
            return np.concatenate([needed, items[:breaking]])
        needed, items = np.concatenate([needed, items[breaking - 1 : breaking]]), items[: breaking - 1]
    return np.concatenate([needed, items])


def _least(rows: Feed, base: Feed, trials: _Trials) -> Feed:
    """The rows with as few of their changes as are needed, and those to plain numbers; all rows as one item."""
    layout = Coordinates.of({name: array[np.newaxis] for name, array in rows.items()})
    row, start = (flat({name: array[np.newaxis] for name, array in feed.items()}) for feed in (rows, base))

    def batch(feed: Feed) -> Feed:
        return taken(shaped(feed, layout), 0)

    def with_only(kept: NDArray[np.intp]) -> Feed:
        made = {name: array.copy() for name, array in start.items()}
        for part, _, places in layout.within(kept):
            made[part.name][0, places] = row[part.name][0, places]
        return made

    kept = fewest(np.flatnonzero(changed(row, start)[0]), lambda some: trials(batch(with_only(some))), trials)
    row = with_only(kept)
    for index in kept if len(kept) <= _PLAIN else ():
        part, _ = layout.place(int(index))
        place = int(index) - part.offset
        for number in plainer_values(row[part.name][0, place], start[part.name][0, place], part.dtype):
            if trials.over:
                return batch(row)
            plainer = {name: array.copy() for name, array in row.items()}
            plainer[part.name][0, place] = number
            if trials(batch(plainer)):
                row = plainer
                break
    return batch(row)


@dataclass(frozen=True, slots=True, eq=False)
class Counterexample:
    """Rows that break a relation, (1, ...) or a batch, beside the base rows from which they came, and in what they
    differ: (row, coordinate)."""

    rows: Feed
    base: Feed
    changes: tuple[tuple[int, int], ...]
    base_row: int
    """Which base row the (first) row came from."""
    sentence: str
    """What the relation says of the simplest rows, if anything."""
    broke_again: bool
    """Whether they broke it when they were asked once more."""
    found_with: int
    """How many coordinates differed when it was found."""
    ended: Literal["", "died", "late"] = ""
    """How they ended the process that serves the model, so that there is no answer to tell: by themselves, or by the
    time limit."""
