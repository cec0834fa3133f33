"""Gate on latency under load: a quantile of the time from when a request was due to its answer."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    keep_samples,
    worst_verdict,
)
from pytest_modelserve.load.generator import LoadSettings, answer_alone, has_structure_of, requests_of, run_load
from pytest_modelserve.load.load_record import LoadRecord, check_writable
from pytest_modelserve.load.load_run import LoadRun, quantile_of
from pytest_modelserve.load.schedule import Arrivals, DueTimes, Schedule, plan_schedule
from pytest_modelserve.performance.batches import Batches
from pytest_modelserve.performance.timing import host_state
from pytest_modelserve.serving import Predictor, Servable
from pytest_modelserve.serving.inputs import check_positive, check_quantile
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import samples_for_quantile
from pytest_modelserve.stats.batch_quantiles import batch_quantile_bounds, serial_quantile_bounds

# The generator decides nothing if it is later than this part of the budget, as peers of its kind also demand.
MOST_LAG = 0.05
# Of a core of each of its processes: beyond it the generator's own work is what is measured.
MOST_CPU = 0.9
_IN_PROCESS = ("in-process", "torch", "callable", "estimator")
_WARM_UP_SHARE = 0.1
ONE_AT_A_TIME = "one request was in flight at a time, as this predictor cannot be called from several threads"


def measure_latency_under_load(
    predictor: Servable,
    inputs: Batches | Any,
    *,
    max_ms: float,
    rate_qps: float | None = None,
    clients: int | None = None,
    schedule: DueTimes | None = None,
    arrivals: Arrivals = "poisson",
    quantile: float = 0.95,
    max_failed: float = 0.0,
    duration_s: float = 10.0,
    warm_up_s: float | None = None,
    rows_per_request: int = 1,
    max_in_flight: int = 256,
    processes: int = 1,
    timeout_s: float = 30.0,
    seed: int = 0,
    result_file: Path | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure a quantile of latency while requests arrive at a rate, against a budget of `max_ms` milliseconds.

    Latency counts from the time at which a request was due. Arrivals do not wait for completions, so that a server that
    stalls for a second delays all requests of that second, and the figures say so: a client that waits for each answer
    before it sends the next request would record one slow request (coordinated omission). Its three parts are in the
    evidence: queueing while `max_in_flight` requests were in flight, the generator's own issue lag, and service time.
    Requests that fail, or are still open at the end, have an infinite latency and count against `max_failed`.

    The interval allows for latencies that depend on each other, as those in a queue do
    (`stats.batch_quantiles.serial_quantile_bounds`). If the generator itself was late by more than 5 % of the budget,
    or used up its CPU, the verdict is not PASS; it is FAIL only if service time alone is beyond the budget.

    Args:
        predictor: The model: whatever `ms.serve` takes. `predict` is called from many threads; a torch module and a
            model in a process of its own get one request at a time, for which the others queue.
        inputs: Rows, which are sent in turn, or a list of batches, of which each is one request.
        max_ms: The largest latency allowed at the quantile, in milliseconds.
        rate_qps: Requests per second. Exactly one of `rate_qps`, `clients` and `schedule` is given.
        clients: Number of clients that each send a request after the last answer: a closed loop, which waits with a
            server that stalls.
        schedule: Recorded due times in seconds, not descending, or a `.npy` or text file of them.
        arrivals: "poisson" (independent users) or "constant" gaps of a rate.
        quantile: The quantile of latency that is bounded, in (0, 1).
        max_failed: The largest proportion of requests without an answer, exact for these requests.
        duration_s: Seconds of load. A recorded schedule has its own duration.
        warm_up_s: The first seconds, which are reported apart (default: a tenth).
        rows_per_request: Number of rows of a request.
        max_in_flight: The most requests that are sent at the same time; with 1, a queue in front of one server.
        processes: Number of processes that send: more than one where Python limits the generator. Each opens the model
            itself, so that this is for endpoints.
        timeout_s: The load ends this long after the last request was due.
        seed: Seed of Poisson arrivals.
        result_file: Path of a file of histograms, which `python -m pytest_modelserve merge-load` merges with those of
            other hosts.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the quantile, the proportion of failed requests, the median, the parts of latency, and goodput:
        requests per second that were answered within the budget.

    Raises:
        UsageError: Not exactly one load; a rate, a budget, a quantile or a duration out of range; too few requests to
            bound the quantile, with the number needed.
        InputError: The inputs have no rows; the schedule is empty or descends.
        ModelServeError: The first request, sent alone, was not answered within `timeout_s`.
        Exception: What the model raises for the first request.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.zeros((8, 4), np.float32)
        >>> ms.measure_latency_under_load(model, rows, rate_qps=400, max_ms=20, duration_s=0.5).gate
        'latency under load p95'
    """
    check_positive("max_ms", max_ms, "milliseconds")
    check_quantile(quantile)
    check_proportion("max_failed", max_failed)
    check_error_rates(confidence=confidence, alpha=alpha)
    planned = plan_schedule(
        rate_qps=rate_qps, clients=clients, schedule=schedule, arrivals=arrivals, duration_s=duration_s, seed=seed
    )
    settings = LoadSettings(
        warm_up_of(planned, warm_up_s), timeout_s=timeout_s, max_in_flight=max_in_flight, processes=processes
    )
    design = LoadDesign(quantile, max_ms, confidence, alpha)
    design.check_enough(planned, settings.warm_up_s)
    path = None if result_file is None else Path(os.fspath(result_file))
    if path is not None:
        check_writable(path)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        began = time.perf_counter()
        requests = requests_of(given, rows_per_request)
        answer = answer_alone(served, requests[0], timeout_s)
        run = run_load(predictor, served, requests, planned, settings, check=has_structure_of(answer, requests))
        result = LoadResult.of(run, design, served)
        if path is not None:
            LoadRecord.of(run, served.subject, cpu_share_beside(run, served)).write(path)
        return result.evidence(served, max_failed=max_failed, duration_s=time.perf_counter() - began)


def check_proportion(name: str, value: float) -> None:
    """Raise UsageError unless `value` is a proportion from 0 to below 1."""
    if not 0 <= value < 1:
        raise UsageError(f"{name} must be a proportion from 0 to below 1, such as 0.01; got {value}")


def warm_up_of(schedule: Schedule, warm_up_s: float | None) -> float:
    """Return the duration of the warm-up, by default a tenth of the load; UsageError unless it is shorter than it."""
    if warm_up_s is None:
        return _WARM_UP_SHARE * schedule.duration_s
    if not 0 <= warm_up_s < schedule.duration_s:
        raise UsageError(
            f"warm_up_s must be from 0 to below the {schedule.duration_s:g} s of the load; got {warm_up_s}"
        )
    return warm_up_s


@dataclass(frozen=True, slots=True)
class LoadDesign:
    """A quantile of latency, its budget in milliseconds, and the error rates."""

    quantile: float
    max_ms: float
    confidence: float
    alpha: float

    @property
    def name(self) -> str:
        """The name of the quantile: "p95"."""
        return f"p{100 * self.quantile:g}"

    def check_enough(self, schedule: Schedule, warm_up_s: float) -> None:
        """Raise UsageError if an open loop has too few requests after the warm-up to bound the quantile at all."""
        if schedule.due_s is None:
            return
        # Half of the error, as `serial_quantile_bounds` uses it; low ends need fewer.
        needed = samples_for_quantile(self.quantile, low_level=0.6, high_level=(1 + self.confidence) / 2)
        counted = int((schedule.due_s >= warm_up_s).sum())
        if counted < needed:
            longer = math.ceil(1.15 * needed / schedule.rate / (1 - warm_up_s / schedule.duration_s))
            raise UsageError(
                f"{self.name} needs at least {needed} independent requests after the warm-up; this load has {counted}, "
                f"and {schedule.due_s.size} in all: give duration_s={longer} or more, a longer schedule, or a lower "
                "quantile"
            )


@dataclass(frozen=True, slots=True, eq=False)
class LoadResult:
    """The counted requests of a load, the bounds of the quantile, and why the generator cannot decide, if so.

    `why_late` is "" where the generator kept its times.
    """

    whole: LoadRun
    run: LoadRun
    design: LoadDesign
    estimate: float
    interval: Interval
    why_late: str

    @classmethod
    def of(cls, whole: LoadRun, design: LoadDesign, predictor: Predictor) -> LoadResult:
        """Return the result of a load; UsageError if a closed loop has no counted requests."""
        run = whole.judged
        levels = {"low_level": 1 - design.alpha, "high_level": design.confidence}
        bounds = serial_quantile_bounds(run.latency_ms, design.quantile, **levels)
        lag = quantile_of(run.issue_lag_ms, design.quantile)
        why_late = why_generator_is_late(design.name, lag, design.max_ms, cpu_share_beside(run, predictor))
        low, high = bounds.low, bounds.high
        if why_late:
            low, high = min(low, serial_quantile_bounds(run.service_ms, design.quantile, **levels).low), math.inf
        return cls(whole, run, design, bounds.estimate, Interval(low, high, **levels), why_late)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the quantile alone."""
        return Budget("at_most", self.design.max_ms).verdict(self.estimate, self.interval)

    @property
    def failed_share(self) -> float:
        """The proportion of counted requests without an answer."""
        return self.run.failed / len(self.run)

    def evidence(self, predictor: Predictor, *, max_failed: float, duration_s: float) -> Evidence:
        """Return the evidence of the gate."""
        run, design, name = self.run, self.design, self.design.name
        budget = Budget.of("max_ms", design.max_ms)
        quantities = (
            Quantity(name, self.estimate, "ms", self.interval, budget),
            failed_quantity(run.failed, len(run), max_failed),
            Quantity("median", quantile_of(run.latency_ms, 0.5), "ms"),
            *(
                Quantity(f"{part} {name}", quantile_of(values, design.quantile), "ms")
                for part, values in (
                    ("service", run.service_ms),
                    ("queueing", run.queueing_ms),
                    ("issue lag", run.issue_lag_ms),
                )
                if values.size
            ),
            Quantity("goodput per s", run.goodput(design.max_ms), ""),
        )
        verdict = worst_verdict(quantities)
        return Evidence(
            gate=f"latency under load {name}",
            subject=predictor.subject,
            quantities=quantities,
            n=len(run),
            n_unit="requests",
            method=Method("batch means of latency from due time", *_METHOD),
            summary=_summary(name, f" at {run.schedule.name}", verdict, self.verdict, self.why_late),
            confidence=design.confidence,
            alpha=design.alpha,
            findings=self._findings(predictor, verdict),
            advice=self._advice(predictor, verdict),
            details={
                "quantile": design.quantile,
                "load": run.schedule.name,
                **figures_of(self.whole, design.quantile),
                "timeline": run.timeline(design.quantile) | {"limit_ms": design.max_ms},
                **keep_samples(latency_ms=run.latency_ms, service_ms=run.service_ms),
            },
            duration_s=duration_s,
        )

    def _findings(self, predictor: Predictor, verdict: Verdict) -> tuple[str, ...]:
        run, warm_up = self.run, self.whole.warm_up
        late = [self.why_late] if self.why_late and verdict is Verdict.FAIL else []  # else it is the summary
        found = [*late, *self.whole.failure_findings()]
        if not run.schedule.is_open:
            found.append("closed loop: clients wait with a server that stalls, so that a stall counts as few requests")
        if not predictor.is_thread_safe:
            found.append(ONE_AT_A_TIME)
        elif run.schedule.is_open and quantile_of(run.queueing_ms, self.design.quantile) > 0:
            found.append(f"requests queued, as at most {run.in_flight_limit} are in flight at a time (max_in_flight)")
        if len(warm_up):
            figure = quantile_of(warm_up.latency_ms, self.design.quantile)
            found.append(f"left out as warm-up: {len(warm_up):,} requests, {self.design.name} {figure:.3g} ms")
        return tuple(found)

    def _advice(self, predictor: Predictor, verdict: Verdict) -> str:
        if verdict is not Verdict.INCONCLUSIVE or not self.why_late:
            return _ADVICE[verdict]
        if predictor.transport in _IN_PROCESS:
            return "give this host no other work, or send from another process: serve the model as an endpoint"
        return _LATE_ADVICE


def judge_record(
    record: LoadRecord,
    *,
    max_ms: float,
    quantile: float,
    max_failed: float,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Return the evidence of merged loads, whose batches are runs of seconds of all hosts together.

    Requests to one server depend on each other across hosts. The interval contains the width of a bucket.

    UsageError for a budget or quantile out of range; InputError for a record without requests.
    """
    check_positive("max_ms", max_ms, "milliseconds")
    check_quantile(quantile)
    check_proportion("max_failed", max_failed)
    latency = record.latency
    if not latency.n:
        raise InputError("the files hold no request that was due after the warm-up")
    if latency.n > _MOST_MERGED:
        raise InputError(f"the files hold {latency.n:,} requests, and at most {_MOST_MERGED:,} are judged: give fewer")
    batches, levels = record.batches(_BATCHES), {"low_level": 1 - alpha, "high_level": confidence}
    low, high = (
        batch_quantile_bounds([batch.values_ms(upper=upper) for batch in batches], quantile, **levels)
        for upper in (False, True)
    )
    name, lag = f"p{100 * quantile:g}", record.issue_lag.quantile_ms(quantile)[1]
    why_late = why_generator_is_late(name, lag, max_ms, record.cpu_share)
    interval = Interval(low.low, math.inf if why_late else high.high, **levels)
    quantities = (
        Quantity(name, high.estimate, "ms", interval, Budget.of("max_ms", max_ms)),
        failed_quantity(latency.unanswered, latency.n, max_failed),
        Quantity(f"service {name}", record.service.quantile_ms(quantile)[1], "ms"),
        Quantity(f"issue lag {name}", lag, "ms"),
        Quantity("goodput per s", latency.within(max_ms) / record.duration_s, ""),
    )
    verdict, failures = worst_verdict(quantities), record.failures.items()
    return Evidence(
        gate=f"latency under load {name}",
        subject=record.subject,
        quantities=quantities,
        n=latency.n,
        n_unit="requests",
        method=Method("batch means over seconds of merged histograms", *_METHOD),
        summary=_summary(name, "", verdict, quantities[0].verdict, why_late),
        confidence=confidence,
        alpha=alpha,
        findings=(
            f"{len(record.runs)} generators: {', '.join(dict.fromkeys(record.loads))}",
            *(f"{count:,} requests failed with {kind}" for kind, count in failures),
        ),
        advice=_LATE_ADVICE if why_late and verdict is Verdict.INCONCLUSIVE else _ADVICE[verdict],
        details={"quantile": quantile, "runs": list(record.runs), "duration_s": record.duration_s},
    )


_BATCHES = 16
_MOST_MERGED = 100_000_000  # each is a number of 8 bytes at both ends of its bucket, sorted
_METHOD = (
    "Law, Simulation Modeling and Analysis, ch. 9; Woodruff (1952), JASA 47",
    "one steady load; dependence shorter than a sixteenth of it",
)
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "give the server more replicas, threads or a faster model, lower the rate, or raise the budget",
    Verdict.INCONCLUSIVE: "give a longer duration_s: four times as long halves the interval",
}
_LATE_ADVICE = "use processes=, or generators on several hosts, and give each host no other work"


def _summary(name: str, load: str, verdict: Verdict, of_quantile: Verdict | None, why_late: str) -> str:
    if verdict is Verdict.PASS:
        return f"{name}{load} is within its budget"
    if of_quantile is Verdict.FAIL:
        return f"{name}{load} is above its budget"
    if verdict is Verdict.FAIL:
        return f"requests{load} were not answered"
    return why_late or f"too few independent requests{load} to decide whether {name} is within its budget"


def why_generator_is_late(name: str, lag_ms: float, max_ms: float, cpu_share: float | None) -> str:
    """Return why the generator's own lag or CPU time leaves the verdict open; "" if it does not."""
    if lag_ms > MOST_LAG * max_ms:
        return (
            f"the generator itself was late: {name} of its issue lag is {lag_ms:.3g} ms, more than "
            f"{100 * MOST_LAG:g} % of the budget of {max_ms:g} ms"
        )
    if cpu_share is not None and cpu_share > MOST_CPU:
        return f"the generator used {100 * cpu_share:.0f} % of a core, so that its own work is in the figures"
    return ""


def cpu_share_beside(run: LoadRun, predictor: Predictor) -> float | None:
    """Return the CPU share of the generator; None where it cannot be told from that of a model in its process."""
    return None if predictor.transport in _IN_PROCESS else run.cpu_share


def failed_quantity(failed: int, n: int, max_failed: float) -> Quantity:
    """Return the proportion of requests without an answer, with its budget."""
    return Quantity("failed requests", failed / n, "proportion", None, Budget.of("max_failed", max_failed))


def figures_of(whole: LoadRun, quantile: float) -> dict[str, Any]:
    """Return the figures of a load for `details`: requests, warm-up, failures, concurrency and the host."""
    warm_up = whole.warm_up
    return {
        "requests": len(whole.counted),
        "warm_up": {
            "seconds": whole.first_s,
            "requests": len(warm_up),
            "failed": warm_up.failed,
            "quantile_ms": quantile_of(warm_up.latency_ms, quantile),
        },
        "failures": {name: each.count for name, each in whole.failures.items()},
        "open_requests": whole.open_requests,
        "most_in_flight": whole.most_in_flight,
        "generator_cpu_share": round(whole.cpu_share, 3),
        "host": host_state(),
    }
