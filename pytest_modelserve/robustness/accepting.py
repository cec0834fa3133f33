"""Rows that a model takes, found by asking it: for parameters whose meaning no table tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.robustness.coordinates import Feed, joined, taken
from pytest_modelserve.robustness.making import BASE_ROWS, Maker
from pytest_modelserve.serving import Predictor

_ROUNDS = 32
"""Rounds of eight rows: 256 in all find a value that one in fifty draws has, 99 times in a hundred."""


@dataclass(frozen=True, slots=True, eq=False)
class Accepting:
    """Finds rows that a model takes; `takes` asks it."""

    takes: Callable[[Feed], bool]

    def rows(self, maker: Maker, sizes: Mapping[str, int]) -> Feed:
        """Eight rows that the model takes, some of them several times where few were found; the plain ones where it
        takes none. The same for the same answers."""
        found: list[Feed] = []
        for seed in range(_ROUNDS):
            rows = maker.rows(sizes, seed=seed, wide=seed > 0)
            singles = [taken(rows, slice(row, row + 1)) for row in range(BASE_ROWS)]
            found += [single for single in singles if self.takes(single)]
            if len(found) >= BASE_ROWS:
                break
        if not found:
            return maker.rows(sizes)
        return joined([found[row % len(found)] for row in range(BASE_ROWS)])


def accepted_by(predictor: Predictor, maker: Maker, sizes: Mapping[str, int]) -> Accepting | None:
    """What finds rows for a model that refuses some of those that are made up for `sizes`; None where it takes all.

    Whatever the model raises is a refusal. It is asked row by row only where it refuses them together.
    """

    def takes(rows: Feed) -> bool:
        if maker.batch == 0:
            feed = {name: array[0, ...] for name, array in rows.items()}
        else:
            count = len(next(iter(rows.values())))
            filled = np.arange(max(count, maker.batch or 1)) % count
            feed = taken(rows, filled)
        try:
            predictor.predict(feed)
        except Exception:
            return False
        return True

    rows = maker.rows(sizes)
    step = 1 if maker.batch == 0 else (maker.batch or BASE_ROWS)
    blocks = [taken(rows, slice(begin, begin + step)) for begin in range(0, BASE_ROWS, step)]
    return None if all(map(takes, blocks)) else Accepting(takes)
