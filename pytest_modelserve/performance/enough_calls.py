"""How many calls a quantile takes, and making them: more where calls depend on each other, and none after the cap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_modelserve.performance.kernel import calibration_kernel, in_machine_units
from pytest_modelserve.performance.timing import Call, CallTimes, Clocks, time_in_turn, warm_up
from pytest_modelserve.performance.turn import Cap
from pytest_modelserve.stats import samples_for_quantile
from pytest_modelserve.stats.dependent_quantiles import dependent_quantile_bounds

_SAMPLE_FACTOR = 8
"""Calls beyond the fewest that can pass: with 8 times as many, PASS may rest on about the 97th percentile instead of
the slowest call of all, so that one interruption by the host does not decide (p95: 472 calls instead of 59)."""
_LEAST_S = 0.25
"""Fast calls go on for so long: 472 of 10 µs would be over within one mood of the host."""
_MOST_CALLS = 50_000
_PATIENCE_S = 5.0
"""What the additional calls may take together; the fewest that can pass go on until the cap."""
_ROUNDS = 4
_MORE = 4


@dataclass(frozen=True, slots=True)
class TimedCalls:
    """The calls that were timed, maybe none; `judged` is what a budget is held against, in ms or machine units.

    `typical_ms` is a warm-up call's duration, `fewest` how many independent calls bound the quantile at all.
    """

    times: CallTimes
    judged: CallTimes
    typical_ms: float
    fewest: int

    @property
    def in_time(self) -> bool:
        """Whether there are enough for a bound."""
        return len(self.times) >= self.fewest


@dataclass(frozen=True, slots=True)
class QuantileSampling:
    """What a quantile and the levels of its bounds ask of a sample."""

    quantile: float
    low_level: float
    high_level: float

    def calls(self, call: Call, *, clocks: Clocks, cap: Cap, machine_units: bool = False) -> TimedCalls:
        """Timed calls, with a calibration kernel between them if `machine_units`.

        Eight times the fewest, or a quarter of a second of them if those are more. Where they depend on each other so
        that an end of the quantile is not bounded, four times as many, and again, within 5 s: how many are made depends
        on their dependence and never on how they stand to a budget.
        """
        fewest = samples_for_quantile(self.quantile, low_level=self.low_level, high_level=self.high_level)
        in_turn = (call, calibration_kernel()) if machine_units else (call,)
        with cap.turn() as deadline_ns:
            typical_ns = sum(warm_up(each, clock=clocks.wall) for each in in_turn)
            made: tuple[CallTimes, ...] = ()
            wanted = max(_SAMPLE_FACTOR * fewest, int(_LEAST_S * 1e9 / typical_ns))
            for _ in range(_ROUNDS):
                affordable = max(fewest, min(_MOST_CALLS, int(_PATIENCE_S * 1e9 / typical_ns)))
                missing = min(wanted, affordable) - (len(made[0]) if made else 0)
                if missing <= 0:
                    break
                more = time_in_turn(in_turn, missing, clocks=clocks, deadline_ns=deadline_ns)
                made = tuple(a.followed_by(b) for a, b in zip(made, more, strict=True)) if made else more
                if len(more[0]) < missing:
                    break
                wanted = len(made[0]) * (1 if self._is_bounded(made[0]) else _MORE)
        judged = in_machine_units(*made) if machine_units and len(made[0]) else made[0]
        return TimedCalls(made[0], judged, typical_ns / 1e6, fewest)

    def _is_bounded(self, times: CallTimes) -> bool:
        found = dependent_quantile_bounds(
            times.wall_ms, self.quantile, low_level=self.low_level, high_level=self.high_level
        )
        return math.isfinite(found.bounds.low) and math.isfinite(found.bounds.high)
