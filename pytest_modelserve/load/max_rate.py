"""The highest rate at which a model keeps its latency budget, by a search with an interval."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.evidence import Subject, Verdict, check_error_rates
from pytest_modelserve.load.generator import LoadSettings, answer_alone, has_structure_of, requests_of, run_load
from pytest_modelserve.load.latency_under_load import LoadDesign, LoadResult, check_proportion
from pytest_modelserve.load.load_run import LoadRun
from pytest_modelserve.load.schedule import plan_schedule
from pytest_modelserve.performance.batches import Batches
from pytest_modelserve.serving import Servable
from pytest_modelserve.serving.inputs import check_positive, check_quantile
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import samples_for_quantile

_PROBE_S = 1.0
_PROBE_CLIENTS = 8
_MOST_STEPS = 12
# An undecided rate is tried once more, for this many times as long.
_LONGER = 3
_WARM_UP_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class RateStep:
    """A load of the search; `low_ms` and `high_ms` bound the quantile `quantile_ms`."""

    rate_qps: float
    requests: int
    quantile_ms: float
    low_ms: float
    high_ms: float
    goodput_qps: float
    failed: float
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True)
class MaxRate:
    """The highest rate in requests per second with `quantile` of latency within `max_ms`.

    It lies between `low_qps`, the highest rate that kept the budget, and `high_qps`, the lowest that did not, with
    probability `confidence`, if latency rises with the rate. `low_qps` is 0 or `high_qps` infinite without one.
    `goodput_qps` are the requests per second that were answered within `max_ms` at `low_qps`.
    """

    subject: Subject
    max_ms: float
    quantile: float
    confidence: float
    low_qps: float
    high_qps: float
    goodput_qps: float
    steps: tuple[RateStep, ...]
    stopped: str

    def __str__(self) -> str:
        name = f"p{100 * self.quantile:g}"
        rows = [
            f"  {step.rate_qps:>10.4g} {step.requests:>9,}  {step.quantile_ms:>8.3g}  "
            f"{f'[{step.low_ms:.3g}, {step.high_ms:.3g}]':<18} {step.goodput_qps:>10.4g}  {step.verdict}"
            + (f"  {step.note}" if step.note else "")
            for step in self.steps
        ]
        return "\n".join(
            (
                f"highest rate of {self.subject} with {name} of latency at most {self.max_ms:g} ms: "
                f"{self.low_qps:.4g} requests/s",
                f"  interval [{self.low_qps:.4g}, {self.high_qps:.4g}] at {100 * self.confidence:g} %, goodput "
                f"{self.goodput_qps:.4g} requests/s; {self.stopped}",
                "",
                f"  {'requests/s':>10} {'requests':>9}  {name + ' ms':>8}  {'interval':<18} {'goodput/s':>10}",
                *rows,
            )
        )


def find_max_rate(
    predictor: Servable,
    inputs: Batches | Any,
    *,
    max_ms: float,
    quantile: float = 0.95,
    resolution: float = 0.1,
    start_qps: float | None = None,
    max_failed: float = 0.0,
    rows_per_request: int = 1,
    step_s: float = 5.0,
    time_limit_s: float = 120.0,
    max_in_flight: int = 256,
    processes: int = 1,
    timeout_s: float = 10.0,
    confidence: float = 0.95,
) -> MaxRate:
    """Return the highest rate of requests at which a quantile of latency stays within `max_ms` milliseconds.

    Each step is a load of Poisson arrivals of its own, judged as by `assert_latency_under_load`. Rates are doubled or
    halved until one keeps the budget and one does not, and the middle of the two is tried until they differ by
    `resolution`. A step that the data do not decide is repeated for three times as long; if that does not decide
    either, the interval contains that rate and the search goes on at both sides of it. Each end of the interval, and
    each step, has half of the error: steps far from the highest rate are decided beyond any error, and few are near it.
    In simulated searches (benchmarks/load_intervals.py) 1 % of the 95 % intervals missed the rate.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: Rows, which are sent in turn, or a list of batches, of which each is one request.
        max_ms: The largest latency allowed at the quantile, in milliseconds.
        quantile: The quantile of latency that is bounded, in (0, 1).
        resolution: The search ends when the interval is narrower than this proportion of its low end.
        start_qps: The first rate (default: 70 % of what 8 clients get through in a second).
        max_failed: The largest proportion of requests without an answer.
        rows_per_request: Number of rows of a request.
        step_s: Seconds of each load, more where the quantile needs more requests.
        time_limit_s: No step begins later, in seconds, and none that is longer than `step_s` takes longer.
        max_in_flight: The most requests that are sent at the same time.
        processes: Number of processes that send, for endpoints.
        timeout_s: A step ends this long after its last request was due.
        confidence: The level of the interval.

    Returns:
        The rate with its interval and all steps; `print` shows them as a table.

    Raises:
        UsageError: A setting is out of range.
        ModelServeError: The first request, sent alone, was not answered within `timeout_s`, or those of 8 clients
            were not.
        Exception: What the model raises for the first request.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.zeros((8, 4), np.float32)
        >>> found = ms.find_max_rate(lambda x: x.sum(axis=1), rows, max_ms=100, step_s=0.5, time_limit_s=0.1)
        >>> found.low_qps <= found.high_qps
        True
    """
    check_positive("max_ms", max_ms, "milliseconds")
    check_quantile(quantile)
    check_proportion("max_failed", max_failed)
    for name, value in (("resolution", resolution), ("step_s", step_s), ("time_limit_s", time_limit_s)):
        check_positive(name, value, "seconds" if name.endswith("_s") else "parts of the rate")
    if start_qps is not None:
        check_positive("start_qps", start_qps, "requests per second")
    check_error_rates(confidence=confidence, alpha=0.001)
    error = (1 - confidence) / 2
    design = LoadDesign(quantile, max_ms, confidence=1 - error, alpha=error)
    settings = LoadSettings(0.0, timeout_s=timeout_s, max_in_flight=max_in_flight, processes=processes)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        requests = requests_of(given, rows_per_request)
        answer = answer_alone(served, requests[0], timeout_s)
        check = has_structure_of(answer, requests)
        seeds = itertools.count()
        needed = 2 * samples_for_quantile(quantile, low_level=0.6, high_level=1 - error / 2)

        def seconds_of(rate: float, longer: int) -> float:
            return longer * max(step_s, needed / rate) / (1 - _WARM_UP_SHARE)

        def measure(rate: float, longer: int) -> RateStep:
            seconds = seconds_of(rate, longer)
            planned = plan_schedule(rate_qps=rate, duration_s=seconds, seed=next(seeds))
            step_settings = replace(settings, warm_up_s=_WARM_UP_SHARE * seconds)
            run = run_load(predictor, served, requests, planned, step_settings, check=check)
            result = LoadResult.of(run, design, served)
            has_failed = result.failed_share > max_failed
            return RateStep(
                rate,
                len(result.run),
                result.estimate,
                result.interval.low,
                result.interval.high,
                result.run.goodput(max_ms),
                result.failed_share,
                Verdict.FAIL if has_failed else result.verdict,
                "; ".join(filter(None, (*run.failure_findings()[:1], result.why_late))),
            )

        def probe() -> LoadRun:
            clients = min(_PROBE_CLIENTS, max_in_flight)
            planned = plan_schedule(clients=clients, duration_s=min(_PROBE_S, step_s))
            run = run_load(predictor, served, requests, planned, replace(settings, processes=1), check=check)
            if not run.answered.any():
                why = "; ".join(run.failure_findings()) or "time was up"
                raise ModelServeError(
                    f"{served.subject} answered none of {len(run)} requests of {clients} clients: {why}. Give "
                    "start_qps= for a first rate that it can answer"
                )
            return run

        first = start_qps
        failures: tuple[str, ...] = ()
        if first is None:
            probed = probe()
            first, failures = 0.7 * float(probed.answered.sum()) / probed.seconds, probed.failure_findings()
        steps, stopped = search(measure, seconds_of, first, resolution=resolution, time_limit_s=time_limit_s)
        if not steps:
            stopped = "; ".join((stopped, *failures))
        low, high = ends_of(steps)
        goodput = max((step.goodput_qps for step in steps if step.rate_qps == low), default=0.0)
        return MaxRate(served.subject, max_ms, quantile, confidence, low, high, goodput, tuple(steps), stopped)


def search(
    measure: Callable[[float, int], RateStep],
    seconds_of: Callable[[float, int], float],
    rate: float,
    *,
    resolution: float,
    time_limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[RateStep], str]:
    """Return the steps of a search from `rate` on, and why it ended.

    `measure` and `seconds_of`, the time that it takes, get a rate, and how many times as long the step is.
    """
    began = clock()
    steps: list[RateStep] = []
    undecided: list[float] = []
    while len(steps) < _MOST_STEPS:
        if steps and clock() - began > time_limit_s:
            return steps, f"time_limit_s={time_limit_s:g} was up"
        if (seconds := seconds_of(rate, 1)) > max(time_limit_s, seconds_of(math.inf, 1)):
            step = f"the next step, at {rate:.3g} requests/s"
            return steps, f"{step}, takes {seconds:.0f} s, more than time_limit_s={time_limit_s:g}"
        steps.append(measure(rate, 1))
        if steps[-1].verdict is Verdict.INCONCLUSIVE:
            if len(steps) < _MOST_STEPS and clock() - began + seconds_of(rate, _LONGER) <= time_limit_s:
                steps.append(measure(rate, _LONGER))
            undecided += [rate] * (steps[-1].verdict is Verdict.INCONCLUSIVE)
        low, high = ends_of(steps)
        between = [each for each in undecided if low < each < high]
        gaps = [(low, min([*between, high])), (max([*between, low]), high)]
        lower, upper = max(gaps, key=lambda gap: math.inf if gap[0] == 0 else gap[1] / gap[0])
        if lower > 0 and upper / lower <= 1 + resolution:
            rest = " but for rates that could not be decided" if between else ""
            return steps, f"the interval is within {100 * resolution:g} %{rest}"
        middle = 2 * lower if math.isinf(upper) else math.sqrt(lower * upper)
        rate = middle if lower > 0 else upper / 2
    return steps, f"{_MOST_STEPS} steps were made"


def ends_of(steps: Sequence[RateStep]) -> tuple[float, float]:
    """Return the highest rate that kept the budget, or 0, and the lowest that did not, or infinity."""
    high = min((step.rate_qps for step in steps if step.verdict is Verdict.FAIL), default=math.inf)
    kept = (step.rate_qps for step in steps if step.verdict is Verdict.PASS and step.rate_qps < high)
    return max(kept, default=0.0), high
