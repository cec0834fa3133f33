"""Is the candidate slower than the reference? Both are timed side by side, so that the host's moods cancel."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.performance.timing import Call, Clock, Clocks, no_garbage_collection, warm_up
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import Bounds, median_bounds, spend

LOOKS = (20, 50, 125, 320, 800)
"""After how many pairs the evidence is judged. About 2.5 times as many each time: a clear case is told in 20 pairs, and
five looks cost little of the error rates that are split over them."""
_BLOCK_NS = 200_000
"""A block is as many calls as fill 0.2 ms: long against a clock reading (0.1 µs), short against the host's moods."""
_TIME_LIMIT_S = 5.0
"""After this long no further look is begun."""


def measure_not_slower(
    candidate: Predictor,
    reference: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_slowdown: float,
    confidence: float = 0.95,
    alpha: float = 0.001,
    seed: int = 0,
) -> Evidence:
    """Evidence that the median of candidate time over reference time is at most `max_slowdown` (1.10: 10 % slower).

    Both predict `inputs` in pairs of short blocks, in an order shuffled by `seed`; the median log-ratio of the pairs
    gets a sign interval. The pairs are judged after 20, 50, 125, 320 and 800 of them, as soon as they decide; both
    error rates are split equally over these five looks, so they hold although it looks repeatedly.

    One session stands for each model: how the memory of a session happens to lie moves its time by 1 to 3 %, which no
    number of pairs repairs, so a `max_slowdown` below 1.03 is refused.

    Raises UsageError for such a budget. What a model raises passes through.
    """
    if not max_slowdown >= 1.03:
        raise UsageError(
            f"max_slowdown is a factor of at least 1.03 (1.10 allows 10 %), not {max_slowdown}: "
            "two sessions of the same model differ by up to 3 %"
        )
    check_error_rates(confidence=confidence, alpha=alpha)
    started = time.perf_counter()
    budget = Budget("at most", max_slowdown)
    low_level, high_level = levels_for(
        budget, confidence=1 - spend(1 - confidence, len(LOOKS)), alpha=spend(alpha, len(LOOKS))
    )
    calls: tuple[Call, Call] = (lambda: candidate.predict(inputs), lambda: reference.predict(inputs))
    clock, rng = Clocks().wall, random.Random(seed)
    repeats = block_length(calls, clock=clock)
    log_ratios: list[float] = []
    for look in LOOKS:
        log_ratios += time_pairs(calls, look - len(log_ratios), repeats=repeats, clock=clock, rng=rng)
        bounds = median_bounds(np.array(log_ratios), low_level=low_level, high_level=high_level)
        quantity = _slowdown(bounds, budget)
        if quantity.verdict is not Verdict.INCONCLUSIVE or time.perf_counter() - started > _TIME_LIMIT_S:
            break
    assert quantity.verdict is not None
    return Evidence(
        gate="not slower",
        subject=candidate.subject,
        reference=reference.subject,
        quantities=(quantity,),
        n=len(log_ratios),
        n_unit="pairs",
        method=Method(
            f"sign interval of the median log-ratio, one of {len(LOOKS)} looks",
            "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the looks",
            "pairs are exchangeable; one session stands for each model",
        ),
        summary=_SUMMARIES[quantity.verdict],
        confidence=confidence,
        alpha=alpha,
        advice=_ADVICE[quantity.verdict],
        details={"looks": list(LOOKS), "seed": seed},
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "the candidate is not slower than its budget allows",
    Verdict.FAIL: "the candidate is slower than its budget allows",
    Verdict.INCONCLUSIVE: "the candidate's slowdown cannot be told from its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "compare the two graphs operator by operator, or raise max_slowdown if the price is worth paying",
    Verdict.INCONCLUSIVE: "the slowdown lies close to the budget, or the host is very noisy: run again on a quieter "
    "host, or choose another max_slowdown",
}


def _slowdown(bounds: Bounds, budget: Budget) -> Quantity:
    interval = Interval(math.exp(bounds.low), math.exp(bounds.high), bounds.low_level, bounds.high_level)
    return Quantity("slowdown", math.exp(bounds.estimate), "ratio", interval, budget)


def block_length(calls: tuple[Call, Call], *, clock: Clock) -> int:
    """How many calls of the slower one fill a block; at least one."""
    slowest = max(warm_up(call, clock=clock) for call in calls)
    return max(1, round(_BLOCK_NS / slowest))


def time_pairs(calls: tuple[Call, Call], n: int, *, repeats: int, clock: Clock, rng: random.Random) -> list[float]:
    """`n` log-ratios of the first call's time over the second's: blocks of `repeats` calls, side by side."""
    log_ratios = []
    with no_garbage_collection():
        for _ in range(n):
            durations = [0, 0]
            for which in (0, 1) if rng.random() < 0.5 else (1, 0):
                call = calls[which]
                start = clock()
                for _ in range(repeats):
                    call()
                durations[which] = max(clock() - start, 1)
            log_ratios.append(math.log(durations[0] / durations[1]))
    return log_ratios
