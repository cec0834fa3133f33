"""Rows that end the process which serves the model, made simple with few deaths.

A death costs the start of a process, a third of a second, where an answer costs a millisecond: batches of trials, as
`minimising` asks them, would all die. Instead, one needed item after the other is found by bisection (the smallest
prefix that still ends it: QuickXplain, Junker 2004), which dies in about half of log2(n) trials an item.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.coordinates import Coordinates, Feed, changed, flat, row_count, shaped, taken
from pytest_modelserve.robustness.minimising import plainer_values
from pytest_modelserve.robustness.outcome import Counterexample
from pytest_modelserve.serving.isolated import ProcessEndedError

BUDGET_S = 20.0
"""How long an ending may be made simple, beside the time limits that its own trials may run into."""
_LIMITS = 12
"""Trials that may run into the time limit: enough to find one row among a thousand and a few of its features."""
_PLAIN = 64

Ends = Callable[[Feed], ProcessEndedError | None]
"""How rows (n, ...) end the process; None where they do not."""


@dataclass(slots=True)
class _Trials:
    """Asks whether rows end the process, until the time is up; remembers how they did last."""

    ends: Ends
    until: float
    count: int = 0
    error: ProcessEndedError | None = None
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
    rows: Feed, base: Feed, origin: NDArray[np.intp], ends: Ends, *, error: ProcessEndedError, time_limit_s: float
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
