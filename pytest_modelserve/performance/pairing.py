"""Pairs of two models' durations, taken side by side, so that the host's moods meet both."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.performance.timing import Call, Clock, no_garbage_collection, warm_up

Calls = tuple[Call, Call]

_BLOCK_NS = 200_000
"""A block is as many calls as fill 0.2 ms: long against a clock reading (0.1 µs), short against the host's moods."""
_CALLS_ABOVE = 5
"""How many calls of a pair lie above its quantile: fewer, and single calls stand for it."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """How a pair is timed: `clock` is what is compared, `wall` tells when time is up.

    Without a `quantile` a pair is a block of `repeats` calls of each, and their ratio that of the two durations. With
    one, `repeats` calls of each take turns, and the ratio is that of the two quantiles.
    """

    clock: Clock
    wall: Clock
    quantile: float | None = None
    repeats: int = 1

    def log_ratios(self, calls: Calls, n: int, *, rng: random.Random, deadline_ns: int | None = None) -> list[float]:
        """`n` log-ratios of the first call's time over the second's; fewer where time is up between two calls.

        What a call raises passes through with the number of the pair noted.
        """
        pair = self._block_pair if self.quantile is None else self._quantile_pair
        ratios: list[float] = []
        with no_garbage_collection():
            while len(ratios) < n:
                try:
                    ratio = pair(calls, rng, lambda: deadline_ns is not None and self.wall() >= deadline_ns)
                except Exception as error:
                    error.add_note(f"raised in pair {len(ratios) + 1} of {n}")
                    raise
                if ratio is None:
                    break
                ratios.append(ratio)
        return ratios

    def _block_pair(self, calls: Calls, rng: random.Random, is_late: Callable[[], bool]) -> float | None:
        durations = [0, 0]
        for which in _shuffled(rng):
            if is_late():
                return None
            durations[which] = _duration(calls[which], self.repeats, self.clock)
        return math.log(durations[0] / durations[1])

    def _quantile_pair(self, calls: Calls, rng: random.Random, is_late: Callable[[], bool]) -> float | None:
        assert self.quantile is not None
        durations = np.empty((2, self.repeats))
        for turn in range(self.repeats):
            for which in _shuffled(rng):
                if is_late():
                    return None
                durations[which, turn] = _duration(calls[which], 1, self.clock)
        first, second = np.quantile(durations, self.quantile, axis=1, method="inverted_cdf")
        return math.log(first / second)


def pairing_for(calls: Calls, *, clock: Clock, wall: Clock, quantile: float | None) -> tuple[Pairing, float]:
    """The pairing whose pairs are long enough, and the ratio of the two calls' durations while they warmed up."""
    typical = [warm_up(call, clock=wall) for call in calls]
    if quantile is None:
        repeats = max(1, round(_BLOCK_NS / max(typical)))
    else:
        repeats = math.ceil(_CALLS_ABOVE / min(quantile, 1 - quantile) - 1e-9)
    return Pairing(clock, wall, quantile, repeats), typical[0] / typical[1]


def _shuffled(rng: random.Random) -> tuple[int, int]:
    return (0, 1) if rng.random() < 0.5 else (1, 0)


def _duration(call: Call, repeats: int, clock: Clock) -> int:
    start = clock()
    for _ in range(repeats):
        call()
    return max(clock() - start, 1)
