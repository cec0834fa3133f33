"""What a slowdown rests on: two sessions with a confirmation, or many sessions built anew."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.performance.comparing import LOOKS, Comparing, session_looks
from pytest_modelserve.performance.comparison import Comparison
from pytest_modelserve.performance.sessions import SESSION_SPREAD, can_be_rebuilt, rebuilt
from pytest_modelserve.serving import Predictor


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


def is_small(max_slowdown: float) -> bool:
    """Whether the margin is below three times what two sessions of one model differ by."""
    return math.log(max_slowdown) < 3 * math.log(SESSION_SPREAD)


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
