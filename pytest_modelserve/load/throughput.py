"""Throughput gate: rows per second that a model answers while clients always have a request in flight."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    worst_verdict,
)
from pytest_modelserve.load.generator import LoadSettings, answer_alone, has_structure_of, requests_of, run_load
from pytest_modelserve.load.latency_under_load import (
    ONE_AT_A_TIME,
    check_proportion,
    failed_quantity,
    figures_of,
    warm_up_of,
)
from pytest_modelserve.load.load_run import LoadRun, quantile_of
from pytest_modelserve.load.schedule import plan_schedule
from pytest_modelserve.performance.batches import Batches
from pytest_modelserve.serving import Inputs, Servable
from pytest_modelserve.serving.inputs import batch_size, check_positive
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Bounds
from pytest_modelserve.stats.means import mean_bounds
from pytest_modelserve.stats.quantiles import dependence_block

_WINDOWS = 64
# Of the clients' time; the rest is the generator's own.
_LEAST_BUSY = 0.95


def measure_throughput(
    predictor: Servable,
    inputs: Batches | Any,
    *,
    min_rows_per_s: float,
    clients: int = 1,
    rows_per_request: int | None = None,
    max_failed: float = 0.0,
    duration_s: float = 5.0,
    warm_up_s: float | None = None,
    processes: int = 1,
    timeout_s: float = 30.0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how many rows per second `predictor` answers as fast as it can, against a budget of `min_rows_per_s`.

    The offline scenario: each of `clients` sends its next request at once after an answer, so that the model is never
    idle. Rows of requests without an answer do not count. The load is cut into 64 windows of time, to which the rows of
    a request count in proportion to the time that it was in flight. The interval is Student's t over the windows, or
    over blocks of them where they depend on each other. Wall time counts: other work on the host lowers throughput.

    Args:
        predictor: The model: whatever `ms.serve` takes.
        inputs: One batch, or a list of batches, of which each is one request.
        min_rows_per_s: The smallest throughput allowed, in rows per second.
        clients: Number of requests in flight. Raise it until throughput no longer rises: for an endpoint the number of
            its workers or more, in process the number of CPUs.
        rows_per_request: Number of rows of a request (default: the whole batch).
        max_failed: The largest proportion of requests without an answer, exact for these requests.
        duration_s: Seconds of load.
        warm_up_s: The first seconds, which are reported apart (default: a tenth).
        processes: Number of processes that send: more than one where Python limits the generator.
        timeout_s: The load ends this long after `duration_s`.
        confidence: The level at which PASS is claimed.
        alpha: The error rate of FAIL.

    Returns:
        Evidence with the throughput, the proportion of failed requests, and the time that clients waited for the model.

    Raises:
        UsageError: A budget or a setting is out of range, or no request ended after the warm-up.
        InputError: The inputs have no rows.
        ModelServeError: The first request, sent alone, was not answered within `timeout_s`.
        Exception: What the model raises for the first request.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.zeros((64, 4), np.float32)
        >>> ms.measure_throughput(model, rows, min_rows_per_s=100, duration_s=0.5).gate
        'throughput'
    """
    check_positive("min_rows_per_s", min_rows_per_s, "rows per second")
    check_proportion("max_failed", max_failed)
    check_error_rates(confidence=confidence, alpha=alpha)
    schedule = plan_schedule(clients=clients, duration_s=duration_s)
    settings = LoadSettings(warm_up_of(schedule, warm_up_s), timeout_s=timeout_s, processes=processes)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        began = time.perf_counter()
        requests = requests_of(given, rows_per_request)
        answer = answer_alone(served, requests[0], timeout_s)
        run = run_load(predictor, served, requests, schedule, settings, check=has_structure_of(answer, requests))
    counted = run.judged
    rates = rows_per_second(run, requests)
    bounds, block = throughput_bounds(rates, low_level=confidence, high_level=1 - alpha)
    busy = _busy_share(run)
    why_late = ""
    if busy < _LEAST_BUSY:
        why_late = f"the generator kept its clients busy for {100 * busy:.0f} % of the time only"
    interval = Interval(max(bounds.low, 0.0), math.inf if why_late else bounds.high, confidence, 1 - alpha)
    quantities = (
        Quantity("rows per s", bounds.estimate, "", interval, Budget.of("min_rows_per_s", min_rows_per_s)),
        failed_quantity(counted.failed, len(counted), max_failed),
        Quantity("clients waited for the model", busy, "proportion"),
        Quantity("service median", quantile_of(counted.service_ms, 0.5), "ms"),
    )
    verdict = worst_verdict(quantities)
    one_at_a_time = "" if served.is_thread_safe else ONE_AT_A_TIME
    return Evidence(
        gate="throughput",
        subject=served.subject,
        quantities=quantities,
        n=len(counted),
        n_unit="requests",
        method=Method(
            f"block means of {_WINDOWS} windows of time",
            "Law, Simulation Modeling and Analysis, ch. 9",
            "one steady load",
        ),
        summary=_summary(verdict, quantities[0].verdict, why_late),
        confidence=confidence,
        alpha=alpha,
        findings=tuple(filter(None, (why_late, *run.failure_findings(), one_at_a_time))),
        advice=_ADVICE[verdict],
        details={
            "load": run.schedule.name,
            **figures_of(run, 0.5),
            "rows_per_s": [float(f"{rate:.4g}") for rate in rates],
            "block": block,
        },
        duration_s=time.perf_counter() - began,
    )


def rows_per_second(run: LoadRun, requests: list[Inputs]) -> NDArray[np.float64]:
    """Return the answered rows per second in 64 windows between the warm-up and the planned end, (64,)."""
    sizes = np.array([batch_size(request) or 1 for request in requests], dtype=np.float64)
    answered = run.answered & (run.ended_s > run.first_s)
    began, ended = run.sent_s[answered], run.ended_s[answered]
    rows = sizes[run.index[answered] % len(requests)]
    edges = np.linspace(run.first_s, run.schedule.duration_s, _WINDOWS + 1)
    lasted = np.maximum(ended - began, 1e-9)
    done = [float(rows @ np.clip((edge - began) / lasted, 0.0, 1.0)) for edge in edges]
    return np.asarray(np.diff(done) / (edges[1] - edges[0]))


def throughput_bounds(rates: NDArray[np.float64], *, low_level: float, high_level: float) -> tuple[Bounds, int]:
    """Return the mean of rates (64,) of consecutive windows, bounded over blocks of dependent ones, and their length.

    Simulated with 5 s of one client (benchmarks/load_intervals.py), the 95 % low end is above the true throughput in
    5 % of runs with independent service times, and in 7 % where the server's speed wanders.
    """
    block = dependence_block(rates) or _WINDOWS
    return mean_bounds(rates, block=block, low_level=low_level, high_level=high_level), block


def _busy_share(run: LoadRun) -> float:
    """Return the proportion of the clients' time in which a request was in flight."""
    end = run.schedule.duration_s
    sent = np.isfinite(run.sent_s)
    ends = np.where(np.isnan(run.ended_s[sent]), end, np.minimum(run.ended_s[sent], end))
    busy = np.clip(ends - np.maximum(run.sent_s[sent], run.first_s), 0.0, None).sum()
    return float(min(1.0, busy / (run.in_flight_limit * (end - run.first_s))))


def _summary(verdict: Verdict, of_rate: Verdict | None, why_late: str) -> str:
    if verdict is Verdict.PASS:
        return "throughput is within its budget"
    if of_rate is Verdict.FAIL:
        return "throughput is below its budget"
    if verdict is Verdict.FAIL:
        return "requests were not answered"
    return why_late or "throughput varied too much to decide whether it is within its budget"


_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "give larger requests (rows_per_request=), more clients=, more threads of the model, or lower the "
    "budget",
    Verdict.INCONCLUSIVE: "give a longer duration_s, and no other work on this host; processes= where Python limits it",
}
