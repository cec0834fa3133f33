"""Evidence of change in the streams of a monitor: arrays of totals in, e-values and starts of a change out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from pytest_modelserve.monitoring.monitor.stream import Stream
from pytest_modelserve.stats.e_process import (
    Starts,
    mean_log_e,
    mixture_log_e,
    rate_limits,
    rate_log_e,
    start_probabilities,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_REFERENCE_SHARE = 0.1
"""The part of alpha for the limits of the reference's rates; the e-process has the rest."""
_DISTINCT = 1.645
"""Standard errors between a shift and none that are distinguished at 95 %."""
_POWER = 1.2816
"""Standard errors by which a plan exceeds the limit of an alarm: it is met with probability 90 %."""
_SINCE = 0.9
"""The posterior probability of the interval of a start."""


@dataclass(frozen=True, slots=True)
class Change:
    """A stream that contributes to an alarm: its shift in its own units, and the slots in which it may have started."""

    stream: Stream
    shift: float
    since: int
    earliest: int
    latest: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The evidence of all windows so far.

    `log_e` is the logarithm of the e-value, which alarms from `log_limit` on. `changes` are the streams with evidence
    enough for an alarm each, or the strongest one of an alarm. `resolutions` (streams,) are the shifts that the rows so
    far distinguish from none, in the units of each stream; infinite without rows.
    """

    log_e: float
    log_limit: float
    changes: tuple[Change, ...]
    resolutions: Floats
    rows: Floats

    @property
    def alarmed(self) -> bool:
        """Whether the evidence suffices for an alarm."""
        return self.log_e >= self.log_limit


class Evaluator:
    """The streams of a monitor as arrays, with the limits that follow from their references and from `alpha`."""

    def __init__(self, streams: Sequence[Stream], *, alpha: float, life: int) -> None:
        self.streams = tuple(streams)
        self.life = life
        self.log_limit = -math.log(alpha * (1 - _REFERENCE_SHARE))
        self.log_weights = np.log([stream.weight for stream in streams])
        self.is_mean = np.array([stream.kind == "mean" for stream in streams])
        self.reference_rows = np.array([stream.rows for stream in streams])
        self.sd = np.array([stream.sd for stream in streams])
        self.tolerated = np.array([stream.tolerated for stream in streams])
        self.side = np.array([stream.side for stream in streams])
        self.tolerated_sd = self.tolerated / self.sd
        rates = ~self.is_mean
        self.upper, self.lower = np.ones(len(streams)), np.zeros(len(streams))
        if rates.any():
            events = np.array([stream.events for stream in streams])[rates]
            each = alpha * _REFERENCE_SHARE / (2 * rates.sum())
            low, high = rate_limits(events, self.reference_rows[rates], alpha=each)
            self.upper[rates] = np.minimum(high + self.tolerated[rates], 1.0)
            self.lower[rates] = np.maximum(low - self.tolerated[rates], 0.0)

    def evaluate(self, totals: Floats, rows: Floats, starts: Starts) -> Evaluation:
        """Return the evidence of `totals` and `rows` (blocks, streams) of the blocks of `starts`."""
        log_e = self.log_e_by_start(totals, rows)
        streams = mixture_log_e(log_e, starts) + self.log_weights
        whole = float(logsumexp(streams))
        found = np.flatnonzero(streams >= self.log_limit)
        if whole >= self.log_limit and not found.size:
            found = np.array([int(streams.argmax())])
        ranked = self._ranked(found, streams)
        changes = tuple(self._change(j, totals[:, j], rows[:, j], log_e[:, j], starts) for j in ranked)
        seen = rows.sum(axis=0)
        with np.errstate(divide="ignore"):
            resolutions = _DISTINCT * self.sd * np.sqrt(1 / self.reference_rows + 1 / seen)
        return Evaluation(whole, self.log_limit, changes, resolutions, seen)

    def unresolved(self, found: Evaluation) -> Integers:
        """Return the streams without rows, or whose rows do not distinguish the tolerated shift from none."""
        return np.flatnonzero(np.where(self.tolerated > 0, found.resolutions > self.tolerated, found.rows == 0))

    def log_e_by_start(self, totals: Floats, rows: Floats) -> Floats:
        """Return the logarithm of each stream's e-value for each start of a change, (blocks, streams)."""
        found = np.empty_like(totals)
        means, rates = np.flatnonzero(self.is_mean), np.flatnonzero(~self.is_mean)
        if means.size:
            found[:, means] = mean_log_e(
                totals[:, means],
                rows[:, means],
                reference_rows=self.reference_rows[means],
                tolerated=self.tolerated_sd[means],
                side=self.side[means],
            )
        if rates.size:
            events, n = totals[:, rates], rows[:, rates]
            up = rate_log_e(events, n, limit=self.upper[rates])
            down = rate_log_e(n - events, n, limit=1 - self.lower[rates])
            side = self.side[rates]
            both = np.logaddexp(up, down) - math.log(2)
            found[:, rates] = np.where(side > 0, up, np.where(side < 0, down, both))
        return found

    def _ranked(self, places: Integers, log_e: Floats) -> list[int]:
        """Return the streams by column, that with the strongest evidence first, and in their order within a column."""
        strongest: dict[str, float] = {}
        for place in places.tolist():
            column = self._column(place)
            strongest[column] = max(strongest.get(column, -math.inf), float(log_e[place]))
        return sorted(places.tolist(), key=lambda place: (-strongest[self._column(place)], place))

    def _column(self, place: int) -> str:
        return self.streams[place].column or self.streams[place].name

    def _change(self, place: int, totals: Floats, rows: Floats, log_e: Floats, starts: Starts) -> Change:
        stream, probabilities = self.streams[place], start_probabilities(log_e, starts)
        first = last = int(probabilities.argmax())
        while probabilities[first : last + 1].sum() < _SINCE:
            before = probabilities[first - 1] if first else -1.0
            after = probabilities[last + 1] if last + 1 < probabilities.size else -1.0
            first, last = (first - 1, last) if before >= after else (first, last + 1)
        slots = starts.slots
        best = int(probabilities.argmax())
        post = totals[best:].sum() / rows[best:].sum()
        shift = post * stream.sd if stream.kind == "mean" else post - stream.events / stream.rows
        end = int(slots[last + 1]) - 1 if last + 1 < slots.size else int(slots[last])
        return Change(stream, float(shift), int(slots[best]), int(slots[first]), end)

    # Planning.

    def needed_rows(self) -> tuple[Floats, Floats]:
        """Return the rows of all windows together that distinguish the tolerated shift of each stream from none.

        The first array is infinite where the reference is too small for any number of rows. The second has the rows
        that the reference then needs, with as many in the windows. For a tolerance of 0 they are 1 and 0.
        """
        with np.errstate(divide="ignore"):
            least = np.where(self.tolerated > 0, (_DISTINCT * self.sd / self.tolerated) ** 2, 0.0)
            more = 1 / np.maximum(least, 1e-9) - 1 / self.reference_rows
            windows = np.where(self.reference_rows > least, 1 / more, np.inf)
        return np.where(least > 0, windows, 1.0), 2 * least

    def slots_to_alarm(self, place: int, shift: float, rows: int, *, reference_rows: float | None = None) -> int | None:
        """Return the slots, of `rows` rows each, after which a mean that moved by `shift` alarms with probability 90 %.

        None if that takes longer than the life. The shift is in the units of the stream, starts after the first slot,
        and is compared with the reference alone.
        """
        n = self.reference_rows[place] if reference_rows is None else reference_rows
        after = np.arange(1, self.life) * float(rows)
        standardized = shift / self.sd[place] - _POWER * np.sqrt(1 / n + 1 / after)
        log_e = mean_log_e(
            (standardized * after)[np.newaxis],
            after[np.newaxis],
            reference_rows=np.full(after.size, n),
            tolerated=np.full(after.size, self.tolerated_sd[place]),
            side=np.full(after.size, self.side[place]),
        )[0]
        weight = Starts.of(1, life=self.life).weights[-1]
        log_e[standardized <= 0] = -np.inf
        reached = np.flatnonzero(log_e + math.log(weight) + self.log_weights[place] >= self.log_limit)
        return int(reached[0]) + 1 if reached.size else None
