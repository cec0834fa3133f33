"""Timing calls until a latency budget is decided: looks at growing numbers of calls, and none after the cap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_modelserve.evidence import Unit, Verdict
from pytest_modelserve.performance.kernel import calibration_kernel, in_machine_units
from pytest_modelserve.performance.latency_judgement import LatencyJudgement, judge_latency, unbounded
from pytest_modelserve.performance.looks import PATIENCE_NS, Looks, plan_looks
from pytest_modelserve.performance.timing import Call, CallTimes, Clocks, time_in_turn, warm_up
from pytest_modelserve.performance.turn import Cap


@dataclass(frozen=True, slots=True)
class JudgedCalls:
    """The calls that were timed, maybe none, and what the last look says of them.

    `judged` is what the budget is held against, in ms or machine units; `typical_ms` a warm-up call's duration.
    """

    times: CallTimes
    judged: CallTimes
    judgement: LatencyJudgement
    typical_ms: float
    looks: Looks
    taken: int

    @property
    def in_time(self) -> bool:
        """Whether there are enough for a bound."""
        return len(self.times) >= self.looks.fewest

    @property
    def median_ms(self) -> float:
        """Of the timed calls, by wall time; a warm-up call's where none was timed."""
        return float(np.median(self.times.wall_ms)) if len(self.times) else self.typical_ms


@dataclass(frozen=True, slots=True)
class LatencyLooks:
    """What is asked of the calls: a quantile, its budget (ms or machine units), and the error rates of all looks.

    `pass_error` is spent at the high end of the interval and `fail_error` at the low one.
    """

    quantile: float
    limit: float
    pass_error: float
    fail_error: float
    works_in_this_thread: bool
    machine_units: bool = False

    def at(self, call: Call, *, clocks: Clocks, cap: Cap) -> JudgedCalls:
        """The calls up to the first look that decides, or up to the last that was begun in time.

        With `machine_units`, a calibration kernel takes turns with the calls. A look that the cap cuts short is judged
        by the calls that were made.
        """
        in_turn = (call, calibration_kernel()) if self.machine_units else (call,)
        with cap.turn():
            typical_ns = sum(warm_up(each, clock=clocks.wall) for each in in_turn)
        looks = plan_looks(self.quantile, low_error=self.fail_error, high_error=self.pass_error, typical_ns=typical_ns)
        made: tuple[CallTimes, ...] = ()
        for taken, wanted in enumerate(looks.calls, start=1):  # noqa: B007
            before = len(made[0]) if made else 0
            with cap.turn() as deadline_ns:
                more = time_in_turn(in_turn, wanted - before, clocks=clocks, deadline_ns=deadline_ns, before=before)
            made = tuple(a.followed_by(b) for a, b in zip(made, more, strict=True)) if made else more
            judged = in_machine_units(*made) if self.machine_units and len(made[0]) else made[0]
            judgement = self._judgement(judged, looks, typical_ns / 1e6)
            is_decided = judgement.verdict(self.limit) is not Verdict.INCONCLUSIVE
            if is_decided or len(made[0]) < wanted or cap.used_ns > PATIENCE_NS:
                break
        return JudgedCalls(made[0], judged, judgement, typical_ns / 1e6, looks, taken)

    @property
    def unit(self) -> Unit:
        """What the budget and the judged calls are in."""
        return "ratio" if self.machine_units else "ms"

    def _judgement(self, judged: CallTimes, looks: Looks, typical_ms: float) -> LatencyJudgement:
        if not len(judged):
            return unbounded(typical_ms, low_level=looks.low_level, high_level=looks.high_level)
        return judge_latency(
            judged,
            quantile=self.quantile,
            low_level=looks.low_level,
            high_level=looks.high_level,
            works_in_this_thread=self.works_in_this_thread,
            unit="kernels" if self.machine_units else "ms",
        )
