"""Is the candidate slower than the reference? Both are timed side by side, so that the host's moods cancel."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Verdict, check_error_rates, keep_samples
from pytest_modelserve.performance.asking import check_positive, check_quantile, check_rows
from pytest_modelserve.performance.breakdown import breakdown
from pytest_modelserve.performance.comparing import Comparing
from pytest_modelserve.performance.host import host_state
from pytest_modelserve.performance.sessions import SESSION_SPREAD
from pytest_modelserve.performance.standing import Standing, stand
from pytest_modelserve.performance.timing import Clocks
from pytest_modelserve.serving import Predictor

ComparedClock = Literal["wall", "cpu"]


def measure_not_slower(
    candidate: Predictor,
    reference: Predictor,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    *,
    max_slowdown: float,
    quantile: float | None = None,
    clock: ComparedClock = "wall",
    time_limit_s: float = 60.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
    seed: int = 0,
) -> Evidence:
    """Evidence that the median of candidate time over reference time is at most `max_slowdown` (1.10: 10 % slower).

    Both predict `inputs` in pairs of short blocks, in an order shuffled by `seed`; the median log-ratio of the pairs
    gets a sign interval. With `quantile` (0.95), a pair is calls of both in turn, and its ratio that of the two
    quantiles. `clock="cpu"` compares the CPU time of this process, all threads together: it does not see waiting.

    From 9 % on, two sessions stand for the models. Their pairs are judged after 20, 50, 125, 320 and 800 of them, as
    soon as they decide. A FAIL is confirmed once, with both sessions built anew: where that does not FAIL too, the
    verdict is INCONCLUSIVE, never PASS. Two sessions of one model differ by up to 3 %, which no number of pairs
    repairs, so below 9 % (three times that) the claim rests on pairs of rebuilt sessions, judged after 6, 12 and 24;
    the median of 20 pairs is one ratio, and the sign interval is that of the ratios over sessions. Predictors that are
    not a model file in onnxruntime cannot be rebuilt: their FAIL is confirmed with the same sessions, and below 9 %
    their interval is widened by 3 % at both ends; the findings say so. `max_slowdown` below 1.03 is refused.

    Errors: both rates are split equally over the looks (Bonferroni), so that they hold although it looks repeatedly:
    PASS of a candidate beyond its budget at most once in 20, FAIL of one inside at most once in 1,000. The confirmation
    only takes FAILs away. Assumes pairs (below 9 %: session pairs) that are exchangeable and, from 9 % on, two sessions
    that are like any other.

    No look is begun after 5 s, no call after `time_limit_s`; too few pairs by then are INCONCLUSIVE.

    Raises UsageError for a budget, a quantile or a clock that cannot be meant. What a model raises passes through, with
    the number of the pair.
    """
    _check(max_slowdown, quantile, clock)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=alpha)
    check_rows(inputs)
    began = time.perf_counter()
    clocks = Clocks()
    comparing = Comparing(
        inputs=inputs,
        budget=Budget("at most", max_slowdown),
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


def _check(max_slowdown: float, quantile: float | None, clock: str) -> None:
    if not (max_slowdown >= SESSION_SPREAD and math.isfinite(max_slowdown)):
        raise UsageError(
            f"max_slowdown is a factor of at least {SESSION_SPREAD} (1.10 allows 10 %), not {max_slowdown}: "
            "two sessions of the same model differ by up to 3 %"
        )
    if quantile is not None:
        check_quantile(quantile)
    if clock not in get_args(ComparedClock):
        raise UsageError(unknown_choice("clock", clock, get_args(ComparedClock)))


def _gate(quantile: float | None, clock: ComparedClock) -> str:
    return "not slower" + (f" p{100 * quantile:g}" if quantile is not None else "") + (" CPU" if clock == "cpu" else "")


def _advice(verdict: Verdict, standing: Standing) -> str:
    return _ADVICE[verdict] if standing.comparison.in_time else "raise time_limit_s, or give fewer rows"


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
