"""Is the candidate slower than the reference? Both are timed side by side, so that the host's moods cancel."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
)
from pytest_modelserve.performance.operator_costs import breakdown
from pytest_modelserve.performance.timing import Call, Cap, Clock, Clocks, host_state, no_garbage_collection, warm_up
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.inputs import check_not_empty, check_positive, check_quantile
from pytest_modelserve.stats import interim_error_rate, median_bounds

# What paired timings say of a slowdown, and how two such statements become one.


@dataclass(frozen=True, slots=True)
class Comparison:
    """A slowdown (1: as fast) with its interval, and the log-ratios that it rests on: of pairs, or of sessions.

    `in_time` is False where too few were taken before time was up; the interval then bounds nothing.
    """

    slowdown: float
    interval: Interval
    log_ratios: tuple[float, ...]
    in_time: bool = True

    def verdict(self, budget: Budget) -> Verdict:
        """What the interval says of the budget."""
        return budget.verdict(self.slowdown, self.interval)

    def widened(self, factor: float) -> Comparison:
        """With room for an error of `factor` in either direction."""
        interval = replace(self.interval, low=self.interval.low / factor, high=self.interval.high * factor)
        return replace(self, interval=interval)

    def together_with(self, other: Comparison) -> Comparison:
        """Both at once: the interval that holds either's, and the geometric mean of the slowdowns.

        It lies above a budget exactly where both do, and inside it exactly where both do.
        """
        low, high = min(self.interval.low, other.interval.low), max(self.interval.high, other.interval.high)
        return Comparison(
            math.sqrt(self.slowdown * other.slowdown),
            replace(self.interval, low=low, high=high),
            self.log_ratios + other.log_ratios,
            self.in_time and other.in_time,
        )


# Pairs of two models' durations, taken side by side, so that the host's moods meet both.


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


# Sessions built again: how the memory of one happens to lie moves its time, and only another one can tell.


SESSION_SPREAD = 1.03
"""Two sessions of one model differ by 1 to 3 % (measured with fresh sessions of small and middling models)."""


def can_be_rebuilt(predictor: Predictor) -> bool:
    """Whether `rebuilt` gives another session: true of a model file in onnxruntime, of nothing else."""
    return predictor.artifact is not None and predictor.transport == "in-process"


@contextmanager
def rebuilt(pair: tuple[Predictor, Predictor], *, rng: random.Random) -> Iterator[tuple[Predictor, Predictor]]:
    """Another session of each predictor, built in an order that `rng` draws; one that cannot be rebuilt is itself.

    They have the providers, threads and graph optimisations of the first ones and are closed at the end.
    """
    with ExitStack() as stack:
        built = list(pair)
        for which in rng.sample((0, 1), 2):
            if can_be_rebuilt(pair[which]):
                built[which] = stack.enter_context(_another(pair[which]))
        yield built[0], built[1]


def _another(predictor: Predictor) -> Predictor:
    from pytest_modelserve.serving import OnnxPredictor

    assert isinstance(predictor, OnnxPredictor)
    return OnnxPredictor(
        predictor.artifact, providers=predictor.providers, threads=predictor.threads, optimize=predictor.optimize
    )


# When paired timings decide: looks at growing numbers of pairs, or of rebuilt sessions, under one error budget.


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
        return 1 - interim_error_rate(self.alpha, len(looks)), 1 - interim_error_rate(1 - self.confidence, len(looks))

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
    to_pass = max(5, math.ceil(-math.log2(interim_error_rate(1 - confidence, _SESSION_LOOKS))))
    to_fail = max(to_pass + 1, math.ceil(-math.log2(interim_error_rate(alpha, _SESSION_LOOKS))))
    return to_pass, to_fail, 2 * to_fail


# What a slowdown rests on: two sessions with a confirmation, or many sessions built anew.


@dataclass(frozen=True, slots=True)
class Standing:
    """A comparison with what it was made of, in words."""

    comparison: Comparison
    unit: str
    looks: tuple[int, ...]
    assumptions: str
    findings: tuple[str, ...] = ()


def stand(comparing: Comparing, candidate: Predictor, reference: Predictor) -> Standing:
    """The comparison of the two, by the way that the budget and the predictors ask for."""
    fixed = [predictor for predictor in (candidate, reference) if not can_be_rebuilt(predictor)]
    small = is_small(comparing.budget.limit)
    if small and not fixed:
        return _on_many_sessions(comparing, candidate, reference)
    return _on_two_sessions(comparing, candidate, reference, fixed=fixed, small=small)


def is_small(max_ratio: float) -> bool:
    """Whether the margin is below three times what two sessions of one model differ by."""
    return math.log(max_ratio) < 3 * math.log(SESSION_SPREAD)


def _on_many_sessions(comparing: Comparing, candidate: Predictor, reference: Predictor) -> Standing:
    comparison = comparing.by_sessions((candidate, reference))
    ratios = comparison.log_ratios
    ends = [math.exp(end(ratios)) for end in (min, max)] if ratios else []
    spread = "single session pairs lie from × {:.3f} to × {:.3f}".format(*ends) if ends else ""
    return Standing(
        comparison,
        "session pairs",
        session_looks(confidence=comparing.confidence, alpha=comparing.alpha),
        "session pairs are exchangeable",
        tuple(filter(None, (spread, _late(comparison, comparing.time_limit_s)))),
    )


def _on_two_sessions(
    comparing: Comparing, candidate: Predictor, reference: Predictor, *, fixed: list[Predictor], small: bool
) -> Standing:
    comparison = comparing.by_pairs((candidate, reference))
    findings = [_late(comparison, comparing.time_limit_s)]
    if small:
        comparison = comparison.widened(SESSION_SPREAD)
        findings.append(
            f"{_named(fixed)} cannot be built again, so the interval has room for the {100 * (SESSION_SPREAD - 1):.0f} "
            "% by which two sessions differ"
        )
    if comparison.verdict(comparing.budget) is Verdict.FAIL:
        first = comparison
        with rebuilt((candidate, reference), rng=comparing.rng) as again:
            second = comparing.by_pairs(again)
        second = second.widened(SESSION_SPREAD) if small else second
        comparison = first.together_with(second)
        findings.append(_confirmation(first, second, comparing, fixed))
    return Standing(
        comparison,
        "pairs",
        LOOKS,
        "pairs are exchangeable; the two sessions are like any other",
        tuple(filter(None, findings)),
    )


def _confirmation(first: Comparison, second: Comparison, comparing: Comparing, fixed: list[Predictor]) -> str:
    how = f"with the same sessions, as {_named(fixed)} cannot be built again" if fixed else "with rebuilt sessions"
    told = f"× {first.slowdown:.2f}, then × {second.slowdown:.2f} {how}"
    if second.verdict(comparing.budget) is Verdict.FAIL:
        return f"confirmed: {told}"
    return f"not confirmed: {told}, which does not lie above the budget"


def _named(predictors: list[Predictor]) -> str:
    return " and ".join(dict.fromkeys(str(predictor.subject) for predictor in predictors))


def _late(comparison: Comparison, time_limit_s: float) -> str:
    return "" if comparison.in_time else f"time_limit_s = {time_limit_s:g} ended before the first look"


ComparedClock = Literal["wall", "cpu"]


def measure_slowdown(
    candidate: Predictor,
    reference: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_ratio: float,
    quantile: float | None = None,
    clock: ComparedClock = "wall",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    seed: int = 0,
) -> Evidence:
    """Evidence that the median of candidate time over reference time is at most `max_ratio` (1.10: 10 % slower).

    Both predict `inputs` in pairs of short blocks, in an order shuffled by `seed`; the median log-ratio of the pairs
    gets a sign interval. With `quantile` (0.95), a pair is calls of both in turn, and its ratio that of the two
    quantiles. `clock="cpu"` compares the CPU time of this process, all threads together: it does not see waiting.

    From 9 % on, two sessions stand for the models. Their pairs are judged after 20, 50, 125, 320 and 800 of them, as
    soon as they decide. A FAIL is confirmed once, with both sessions built anew: where that does not FAIL too, the
    verdict is INCONCLUSIVE, never PASS. Two sessions of one model differ by up to 3 %, which no number of pairs
    repairs, so below 9 % (three times that) the claim rests on pairs of rebuilt sessions, judged after 6, 12 and 24;
    the median of 20 pairs is one ratio, and the sign interval is that of the ratios over sessions. Predictors that are
    not a model file in onnxruntime cannot be rebuilt: their FAIL is confirmed with the same sessions, and below 9 %
    their interval is widened by 3 % at both ends; the findings say so. `max_ratio` below 1.03 is refused.

    Errors: both rates are split equally over the looks (Bonferroni), so that they hold although it looks repeatedly:
    PASS of a candidate beyond its budget at most once in 20, FAIL of one inside at most once in 1,000. The confirmation
    only takes FAILs away. Assumes pairs (below 9 %: session pairs) that are exchangeable and, from 9 % on, two sessions
    that are like any other.

    No look is begun after 5 s, no call after `time_limit_s`; too few pairs by then are INCONCLUSIVE.

    Raises UsageError for a budget, a quantile or a clock that cannot be meant. What a model raises passes through, with
    the number of the pair.
    """
    _check(max_ratio, quantile, clock)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_not_empty(inputs)
    began = time.perf_counter()
    clocks = Clocks()
    comparing = Comparing(
        inputs=inputs,
        budget=Budget("at_most", max_ratio),
        confidence=confidence,
        alpha=alpha,
        compared=clocks.wall if clock == "wall" else clocks.process_cpu,
        wall=clocks.wall,
        quantile=quantile,
        rng=random.Random(seed),
        time_limit_s=time_limit_s,
    )
    standing = stand(comparing, candidate, reference)
    comparison = standing.comparison
    name = "slowdown" + (f" p{100 * quantile:g}" if quantile is not None else "")
    quantity = Quantity(name, comparison.slowdown, "ratio", comparison.interval, comparing.budget)
    assert quantity.verdict is not None
    costs = breakdown(candidate, inputs) if quantity.verdict is Verdict.FAIL else None
    return Evidence(
        gate=_gate(quantile, clock),
        subject=candidate.subject,
        reference=reference.subject,
        quantities=(quantity,),
        n=len(comparison.log_ratios),
        n_unit=standing.unit,
        method=Method(
            f"sign interval of the median log-ratio, one of {len(standing.looks)} looks",
            "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the looks",
            standing.assumptions,
        ),
        summary=_SUMMARIES[quantity.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(*standing.findings, *((costs.told(),) if costs else ())),
        advice=_advice(quantity.verdict, standing),
        details={
            "looks": list(standing.looks),
            "seed": seed,
            "clock": clock,
            "session_spread": SESSION_SPREAD,
            "host": host_state(),
            **(costs.plain() if costs else {}),
            **keep_samples(log_ratios=np.array(comparison.log_ratios)),
        },
        duration_s=time.perf_counter() - began,
    )


def _check(max_ratio: float, quantile: float | None, clock: str) -> None:
    if not (max_ratio >= SESSION_SPREAD and math.isfinite(max_ratio)):
        raise UsageError(
            f"max_ratio is a factor of at least {SESSION_SPREAD} (1.10 allows 10 %), not {max_ratio}: "
            "two sessions of the same model differ by up to 3 %"
        )
    if quantile is not None:
        check_quantile(quantile)
    if clock not in get_args(ComparedClock):
        raise UsageError(unknown_choice("clock", clock, get_args(ComparedClock)))


def _gate(quantile: float | None, clock: ComparedClock) -> str:
    return "slowdown" + (f" p{100 * quantile:g}" if quantile is not None else "") + (" CPU" if clock == "cpu" else "")


def _advice(verdict: Verdict, standing: Standing) -> str:
    return _ADVICE[verdict] if standing.comparison.in_time else "raise time_limit_s, or give fewer rows"


_SUMMARIES = {
    Verdict.PASS: "the candidate is not slower than its budget allows",
    Verdict.FAIL: "the candidate is slower than its budget allows",
    Verdict.INCONCLUSIVE: "the candidate's slowdown cannot be told from its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "compare the two graphs operator by operator, or raise max_ratio if the price is worth paying",
    Verdict.INCONCLUSIVE: "the slowdown lies close to the budget, or the host is very noisy: run again on a quieter "
    "host, or choose another max_ratio",
}
