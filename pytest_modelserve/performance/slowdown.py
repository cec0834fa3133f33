"""Slowdown gate: candidate time over reference time, from interleaved pairs of timings."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

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
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.child_calls import ChildCalls, in_like_processes
from pytest_modelserve.performance.operator_costs import measure_operator_costs
from pytest_modelserve.performance.timing import (
    Call,
    Calls,
    Clocks,
    PairTimer,
    TimeBudget,
    host_state,
    plan_pairs,
    run_delay_clock,
)
from pytest_modelserve.serving import Inputs, Predictor, Servable
from pytest_modelserve.serving.inputs import check_positive, check_quantile
from pytest_modelserve.serving.serve import in_child, open_models
from pytest_modelserve.stats import interim_error_rate, median_bounds

ComparedClock = Literal["wall", "cpu"]
Pair = tuple[Predictor, Predictor]

# Two sessions of one model differ by 1 to 3 % (measured with fresh sessions of small and medium models).
SESSION_SPREAD = 1.03
# Numbers of pairs at the interim analyses, about 2.5 times as many each time: 20 pairs decide a clear case, and five
# analyses cost little of the error rates that are split over them.
INTERIM_PAIRS = (20, 50, 125, 320, 800)
_SESSION_ANALYSES = 3
# Enough for the median of a session's pairs to scatter less than sessions do.
_PAIRS_PER_SESSION = 20
# No further analysis begins after this long.
_PATIENCE_NS = 5_000_000_000


def measure_slowdown(
    candidate: Servable,
    reference: Servable,
    inputs: Any,
    *,
    max_ratio: float,
    quantile: float | None = None,
    clock: ComparedClock = "wall",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    seed: int = 0,
) -> Evidence:
    """Measure the median ratio of candidate time to reference time against a budget of `max_ratio`.

    Both models predict `inputs` in pairs of short blocks, in random order, so that host load affects both equally. The
    median log-ratio of the pairs gets a sign interval.

    For budgets from 1.09 on, one session stands for each model. Interim analyses follow 20, 50, 125, 320 and 800 pairs.
    A FAIL is confirmed once, with both sessions rebuilt; if that does not FAIL too, the verdict is INCONCLUSIVE.

    Two sessions of one model differ by up to 3 %, which more pairs cannot average out. Below 1.09 the pairs are
    therefore pairs of rebuilt sessions, each the median of 20 timings, with interim analyses after 6, 12 and 24 at the
    default error rates. Only a model file in onnxruntime can be rebuilt. For other predictors a FAIL is confirmed with
    the same sessions, and below 1.09 the interval is widened by 3 % at both ends; findings say so.

    Models in processes of their own (`ms.serve(interpreter=...)`) are timed there, by their own clocks; a model file of
    this process beside one gets a process, too.

    Both error rates are split equally over the analyses (Bonferroni): a candidate beyond its budget passes at most once
    in 20, and one within it fails at most once in 1,000. Pairs (below 1.09: session pairs) are assumed to be
    exchangeable. No analysis begins after 5 s, without what other processes take, and no call after `time_limit_s`.

    Args:
        candidate: The model that may be slower: whatever `ms.serve` takes.
        reference: The model that it is compared with.
        inputs: One batch, shape (rows, ...) for each input.
        max_ratio: The largest ratio of times allowed; 1.10 allows 10 % more time. At least 1.03.
        quantile: Compare this quantile of the latencies, in (0, 1); by default blocks of calls are compared.
        clock: "wall" compares elapsed time; "cpu" the CPU time of this process with all threads, without waiting.
        time_limit_s: The time after which no call begins, in seconds.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.
        seed: Seed of the random order.

    Returns:
        Evidence with the slowdown, a ratio. A FAIL lists the costliest operators of the candidate.

    Raises:
        UsageError: `max_ratio` is below 1.03, `quantile` is not in (0, 1), or `clock` is unknown.
        InputError: The inputs hold no row.
        Exception: What a model raises, with a note of the number of the pair.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x @ x.T)
        >>> evidence = ms.measure_slowdown(model, model, np.ones((64, 64), np.float32), max_ratio=10)
        >>> evidence.quantities[0].unit
        'ratio'
    """
    _check(max_ratio, quantile, clock)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    with open_models(candidate, reference, inputs=inputs) as (batch, (new, old)):
        check_batch(batch)
        began = time.perf_counter()
        with run_delay_clock() as run_delay:
            design = ComparisonDesign(
                inputs=batch,
                budget=Budget.of("max_ratio", max_ratio),
                confidence=confidence,
                alpha=alpha,
                clock=clock,
                clocks=replace(Clocks(), run_delay=run_delay),
                quantile=quantile,
                rng=random.Random(seed),
                time_limit_s=time_limit_s,
            )
            with in_like_processes((new, old)) as pair:
                result = compare_models(design, *pair)
        estimate = result.estimate
        name = "slowdown" + (f" p{100 * quantile:g}" if quantile is not None else "")
        quantity = Quantity(name, estimate.slowdown, "ratio", estimate.interval, design.budget)
        assert quantity.verdict is not None
        costs = measure_operator_costs(new, batch) if quantity.verdict is Verdict.FAIL else None
        return Evidence(
            gate=name + (" CPU" if clock == "cpu" else ""),
            subject=new.subject,
            reference=old.subject,
            quantities=(quantity,),
            n=len(estimate.log_ratios),
            n_unit=result.unit,
            method=Method(
                f"sign interval of the median log-ratio, one of {len(result.interim_analyses)} interim analyses",
                "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the interim analyses",
                result.assumptions,
            ),
            summary=_SUMMARIES[quantity.verdict],
            confidence=confidence,
            alpha=alpha,
            findings=(*result.findings, *((str(costs),) if costs else ())),
            advice=_ADVICE[quantity.verdict] if estimate.in_time else "raise time_limit_s, or give fewer rows",
            details={
                "interim_analyses": list(result.interim_analyses),
                "seed": seed,
                "clock": clock,
                "session_spread": SESSION_SPREAD,
                "host": host_state(),
                **(costs.details() if costs else {}),
                **keep_samples(log_ratios=np.array(estimate.log_ratios)),
            },
            duration_s=time.perf_counter() - began,
        )


def _check(max_ratio: float, quantile: float | None, clock: str) -> None:
    if not (max_ratio >= SESSION_SPREAD and math.isfinite(max_ratio)):
        raise UsageError(
            f"max_ratio must be at least {SESSION_SPREAD} (1.10 allows 10 %), got {max_ratio}: "
            "two sessions of the same model differ by up to 3 %"
        )
    if quantile is not None:
        check_quantile(quantile)
    if clock not in get_args(ComparedClock):
        raise UsageError(unknown_choice("clock", clock, get_args(ComparedClock)))


_SUMMARIES = {
    Verdict.PASS: "the candidate is not slower than its budget allows",
    Verdict.FAIL: "the candidate is slower than its budget allows",
    Verdict.INCONCLUSIVE: "too few or too noisy pairs to decide whether the candidate is within its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "compare the two graphs operator by operator, or raise max_ratio if the extra time is acceptable",
    Verdict.INCONCLUSIVE: "the slowdown is close to the budget, or the host is very noisy: run again on a quieter "
    "host, or choose another max_ratio",
}


@dataclass(frozen=True, slots=True)
class SlowdownEstimate:
    """A slowdown (1: equally fast), its interval, and the log-ratios of pairs or sessions from which it is computed.

    `in_time` is False where time was up before the first analysis; the interval is then unbounded.
    """

    slowdown: float
    interval: Interval
    log_ratios: tuple[float, ...]
    in_time: bool = True

    def verdict(self, budget: Budget) -> Verdict:
        """Compare the interval with the budget."""
        return budget.verdict(self.slowdown, self.interval)

    def widened(self, factor: float) -> SlowdownEstimate:
        """Allow for an error of `factor` in either direction."""
        interval = replace(self.interval, low=self.interval.low / factor, high=self.interval.high * factor)
        return replace(self, interval=interval)

    def union(self, other: SlowdownEstimate) -> SlowdownEstimate:
        """Combine two estimates: the interval that holds both intervals, and the geometric mean of the slowdowns.

        The union lies above a budget exactly where both intervals do, and within it exactly where both do.
        """
        low, high = min(self.interval.low, other.interval.low), max(self.interval.high, other.interval.high)
        return SlowdownEstimate(
            math.sqrt(self.slowdown * other.slowdown),
            replace(self.interval, low=low, high=high),
            self.log_ratios + other.log_ratios,
            self.in_time and other.in_time,
        )


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """A slowdown, the unit and the numbers of its interim analyses, its assumptions, and findings."""

    estimate: SlowdownEstimate
    unit: str
    interim_analyses: tuple[int, ...]
    assumptions: str
    findings: tuple[str, ...] = ()


def compare_models(design: ComparisonDesign, candidate: Predictor, reference: Predictor) -> ComparisonResult:
    """Compare by rebuilt sessions where the margin is small and both can be rebuilt, else by two sessions."""
    fixed = [predictor for predictor in (candidate, reference) if not can_be_rebuilt(predictor)]
    # Below three times what two sessions of one model differ by, the margin is small.
    small = math.log(design.budget.limit) < 3 * math.log(SESSION_SPREAD)
    if small and not fixed:
        return _compare_many_sessions(design, (candidate, reference))
    return _compare_two_sessions(design, (candidate, reference), fixed=fixed, small=small)


def _compare_many_sessions(design: ComparisonDesign, pair: Pair) -> ComparisonResult:
    estimate = design.estimate_by_sessions(pair)
    ratios = estimate.log_ratios
    ends = [math.exp(end(ratios)) for end in (min, max)] if ratios else []
    spread = "single session pairs range from × {:.3f} to × {:.3f}".format(*ends) if ends else ""
    return ComparisonResult(
        estimate,
        "session pairs",
        interim_session_pairs(confidence=design.confidence, alpha=design.alpha),
        "session pairs are exchangeable",
        tuple(filter(None, (spread, _time_limit_finding(estimate, design.time_limit_s)))),
    )


def _compare_two_sessions(
    design: ComparisonDesign, pair: Pair, *, fixed: list[Predictor], small: bool
) -> ComparisonResult:
    estimate = design.estimate_by_pairs(pair)
    findings = [_time_limit_finding(estimate, design.time_limit_s)]
    if small:
        estimate = estimate.widened(SESSION_SPREAD)
        findings.append(
            f"{_names(fixed)} cannot be rebuilt, so the interval is widened by the {100 * (SESSION_SPREAD - 1):.0f} % "
            "by which two sessions differ"
        )
    if estimate.verdict(design.budget) is Verdict.FAIL:
        first = estimate
        with rebuilt(pair, rng=design.rng) as again:
            second = design.estimate_by_pairs(again)
        second = second.widened(SESSION_SPREAD) if small else second
        estimate = first.union(second)
        findings.append(_confirmation(first, second, design, fixed))
    return ComparisonResult(
        estimate,
        "pairs",
        INTERIM_PAIRS,
        "pairs are exchangeable; the two sessions are typical",
        tuple(filter(None, findings)),
    )


def _confirmation(
    first: SlowdownEstimate, second: SlowdownEstimate, design: ComparisonDesign, fixed: list[Predictor]
) -> str:
    how = f"with the same sessions, as {_names(fixed)} cannot be rebuilt" if fixed else "with rebuilt sessions"
    values = f"× {first.slowdown:.2f}, then × {second.slowdown:.2f} {how}"
    if second.verdict(design.budget) is Verdict.FAIL:
        return f"confirmed: {values}"
    return f"not confirmed: {values}, which does not lie above the budget"


def _names(predictors: list[Predictor]) -> str:
    return " and ".join(dict.fromkeys(str(predictor.subject) for predictor in predictors))


def _time_limit_finding(estimate: SlowdownEstimate, time_limit_s: float) -> str:
    return "" if estimate.in_time else f"time_limit_s={time_limit_s:g} ended before the first interim analysis"


@dataclass(frozen=True, slots=True)
class ComparisonDesign:
    """A group-sequential comparison of two models by `clock`."""

    inputs: Inputs
    budget: Budget
    confidence: float
    alpha: float
    clock: ComparedClock
    clocks: Clocks
    quantile: float | None
    rng: random.Random
    time_limit_s: float

    def estimate_by_pairs(self, pair: Pair) -> SlowdownEstimate:
        """Compare two sessions by up to 800 pairs of timings."""
        limit = TimeBudget(self.time_limit_s, self.clocks)
        calls = self._calls(pair)
        timer, warm_up_ratio = self._warmed_up(calls, limit)

        def more(n: int) -> list[float]:
            with limit.timed() as deadline_ns:
                return timer.log_ratios(calls, n, rng=self.rng, deadline_ns=deadline_ns)

        return self._analyzed(INTERIM_PAIRS, more, limit) or self._unbounded(warm_up_ratio, INTERIM_PAIRS)

    def estimate_by_sessions(self, pair: Pair) -> SlowdownEstimate:
        """Compare two models by pairs of rebuilt sessions, each the median of its timings."""
        limit = TimeBudget(self.time_limit_s, self.clocks)
        warm_up_ratio = math.nan

        def more(n: int) -> list[float]:
            nonlocal warm_up_ratio
            ratios: list[float] = []
            while len(ratios) < n and not limit.is_used_up:
                with rebuilt(pair, rng=self.rng) as fresh:
                    calls = self._calls(fresh)
                    timer, warm_up_ratio = self._warmed_up(calls, limit)
                    with limit.timed() as deadline_ns:
                        found = timer.log_ratios(calls, _PAIRS_PER_SESSION, rng=self.rng, deadline_ns=deadline_ns)
                if len(found) == _PAIRS_PER_SESSION:
                    ratios.append(float(np.median(found)))
            return ratios

        sizes = interim_session_pairs(confidence=self.confidence, alpha=self.alpha)
        return self._analyzed(sizes, more, limit) or self._unbounded(warm_up_ratio, sizes)

    def _analyzed(
        self, sizes: tuple[int, ...], more: Callable[[int], list[float]], limit: TimeBudget
    ) -> SlowdownEstimate | None:
        """Return the last analysis that was reached in time: the first that decides, or that at which patience ends."""
        low_level, high_level = self._levels(sizes)
        ratios: list[float] = []
        found = None
        for size in sizes:
            ratios += more(size - len(ratios))
            if len(ratios) < size:
                break
            bounds = median_bounds(ratios, low_level=low_level, high_level=high_level)
            interval = Interval(math.exp(bounds.low), math.exp(bounds.high), low_level, high_level)
            found = SlowdownEstimate(math.exp(bounds.estimate), interval, tuple(ratios))
            if found.verdict(self.budget) is not Verdict.INCONCLUSIVE or limit.undisturbed_ns > _PATIENCE_NS:
                break
        return found

    def _unbounded(self, warm_up_ratio: float, sizes: tuple[int, ...]) -> SlowdownEstimate:
        return SlowdownEstimate(warm_up_ratio, Interval(0.0, math.inf, *self._levels(sizes)), (), in_time=False)

    def _levels(self, sizes: tuple[int, ...]) -> tuple[float, float]:
        fail_error, pass_error = self.alpha, 1 - self.confidence
        return 1 - interim_error_rate(fail_error, len(sizes)), 1 - interim_error_rate(pass_error, len(sizes))

    def _warmed_up(self, calls: Calls, limit: TimeBudget) -> tuple[PairTimer, float]:
        compared = self.clocks.wall if self.clock == "wall" else self.clocks.process_cpu
        with limit.timed():
            return plan_pairs(calls, clock=compared, wall=self.clocks.wall, quantile=self.quantile)

    def _calls(self, pair: Pair) -> Calls:
        return self._call(pair[0]), self._call(pair[1])

    def _call(self, predictor: Predictor) -> Call:
        child = in_child(predictor)
        if child is not None:
            return ChildCalls(child, [self.inputs], cpu=self.clock == "cpu")
        return lambda: predictor.predict(self.inputs)


def interim_session_pairs(*, confidence: float, alpha: float) -> tuple[int, int, int]:
    """Return the numbers of session pairs at the analyses: the fewest that can PASS, that can FAIL, and twice those.

    All of n ratios lie on one side of their median with probability 2⁻ⁿ; both errors are split over the three analyses.
    6, 12 and 24 at the default error rates, and never fewer than 5.
    """
    to_pass = max(5, math.ceil(-math.log2(interim_error_rate(1 - confidence, _SESSION_ANALYSES))))
    to_fail = max(to_pass + 1, math.ceil(-math.log2(interim_error_rate(alpha, _SESSION_ANALYSES))))
    return to_pass, to_fail, 2 * to_fail


def can_be_rebuilt(predictor: Predictor) -> bool:
    """Return whether `rebuilt` makes another session of it: true for a model file in onnxruntime alone."""
    if predictor.transport == "own process":
        return in_child(predictor) is not None
    return predictor.artifact is not None and predictor.transport == "in-process"


@contextmanager
def rebuilt(pair: Pair, *, rng: random.Random) -> Iterator[Pair]:
    """Make another session of each predictor, in random order; one that cannot be rebuilt is used again.

    The sessions have the providers, threads and graph optimizations of the first ones, and are closed at the end.
    """
    with ExitStack() as stack:
        built = list(pair)
        for which in rng.sample((0, 1), 2):
            if can_be_rebuilt(pair[which]):
                built[which] = stack.enter_context(another_session(pair[which]))
        yield built[0], built[1]


def another_session(predictor: Predictor) -> Predictor:
    """Return another session of a predictor that can be rebuilt, with its providers, threads and optimizations."""
    from pytest_modelserve.serving import OnnxPredictor

    if child := in_child(predictor):
        return child.another_session()
    assert isinstance(predictor, OnnxPredictor)
    return OnnxPredictor(
        predictor.artifact, providers=predictor.providers, threads=predictor.threads, optimize=predictor.optimize
    )
