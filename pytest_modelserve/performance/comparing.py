"""When paired timings decide: looks at growing numbers of pairs, or of rebuilt sessions, under one error budget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pytest_modelserve.evidence import Budget, Interval, Verdict
from pytest_modelserve.performance.comparison import Comparison
from pytest_modelserve.performance.pairing import Calls, Pairing, pairing_for
from pytest_modelserve.performance.sessions import rebuilt
from pytest_modelserve.performance.timing import Clock
from pytest_modelserve.performance.turn import Cap
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.stats import median_bounds, spend

LOOKS = (20, 50, 125, 320, 800)
"""After how many pairs the evidence is judged. About 2.5 times as many each time: a clear case is told in 20 pairs, and
five looks cost little of the error rates that are split over them."""
_SESSION_LOOKS = 3
_PAIRS_PER_SESSION = 20
"""Enough for the median of a session's pairs to scatter less than sessions do."""
_PATIENCE_NS = 5_000_000_000
"""After this long no further look is begun."""

Pair = tuple[Predictor, Predictor]


@dataclass(frozen=True, slots=True)
class Comparing:
    """What every comparison of one gate shares; `compared` is the clock of the figure, `wall` that of the cap."""

    inputs: Inputs
    budget: Budget
    confidence: float
    alpha: float
    compared: Clock
    wall: Clock
    quantile: float | None
    rng: random.Random
    time_limit_s: float

    def by_pairs(self, pair: Pair) -> Comparison:
        """The comparison of two sessions, by up to 800 pairs of timings."""
        cap = Cap(self.time_limit_s, wall=self.wall)
        calls = self._calls(pair)
        pairing, rough = self._warmed_up(calls, cap)

        def more(n: int) -> list[float]:
            with cap.turn() as deadline_ns:
                return pairing.log_ratios(calls, n, rng=self.rng, deadline_ns=deadline_ns)

        return self._judged(LOOKS, more, cap) or self._nothing(rough, LOOKS)

    def by_sessions(self, pair: Pair) -> Comparison:
        """The comparison of two models, by pairs of sessions built anew; each gives the median of its timings."""
        cap = Cap(self.time_limit_s, wall=self.wall)
        rough = math.nan

        def more(n: int) -> list[float]:
            nonlocal rough
            ratios: list[float] = []
            while len(ratios) < n and not cap.is_used_up:
                with rebuilt(pair, rng=self.rng) as fresh:
                    calls = self._calls(fresh)
                    pairing, rough = self._warmed_up(calls, cap)
                    with cap.turn() as deadline_ns:
                        found = pairing.log_ratios(calls, _PAIRS_PER_SESSION, rng=self.rng, deadline_ns=deadline_ns)
                if len(found) == _PAIRS_PER_SESSION:
                    ratios.append(float(np.median(found)))
            return ratios

        looks = session_looks(confidence=self.confidence, alpha=self.alpha)
        found = self._judged(looks, more, cap)
        return found or self._nothing(rough, looks)

    def _judged(self, looks: tuple[int, ...], more: Callable[[int], list[float]], cap: Cap) -> Comparison | None:
        """The last look that was reached in time: the first that decides, or the one at which patience ended."""
        low_level, high_level = self._levels(looks)
        ratios: list[float] = []
        found = None
        for look in looks:
            ratios += more(look - len(ratios))
            if len(ratios) < look:
                break
            bounds = median_bounds(ratios, low_level=low_level, high_level=high_level)
            interval = Interval(math.exp(bounds.low), math.exp(bounds.high), low_level, high_level)
            found = Comparison(math.exp(bounds.estimate), interval, tuple(ratios))
            if found.verdict(self.budget) is not Verdict.INCONCLUSIVE or cap.used_ns > _PATIENCE_NS:
                break
        return found

    def _nothing(self, rough: float, looks: tuple[int, ...]) -> Comparison:
        return Comparison(rough, Interval(0.0, math.inf, *self._levels(looks)), (), in_time=False)

    def _levels(self, looks: tuple[int, ...]) -> tuple[float, float]:
        return 1 - spend(self.alpha, len(looks)), 1 - spend(1 - self.confidence, len(looks))

    def _warmed_up(self, calls: Calls, cap: Cap) -> tuple[Pairing, float]:
        with cap.turn():
            return pairing_for(calls, clock=self.compared, wall=self.wall, quantile=self.quantile)

    def _calls(self, pair: Pair) -> Calls:
        candidate, reference = pair
        return lambda: candidate.predict(self.inputs), lambda: reference.predict(self.inputs)


def session_looks(*, confidence: float, alpha: float) -> tuple[int, int, int]:
    """After how many session pairs they are judged: 6, the fewest that can PASS, 12, the fewest that can FAIL, and 24.

    All of n ratios lie on one side of their median with probability 2⁻ⁿ; both errors are split over the three looks.
    Never fewer than 5, whatever the error rates.
    """
    to_pass = max(5, math.ceil(-math.log2(spend(1 - confidence, _SESSION_LOOKS))))
    to_fail = max(to_pass + 1, math.ceil(-math.log2(spend(alpha, _SESSION_LOOKS))))
    return to_pass, to_fail, 2 * to_fail
