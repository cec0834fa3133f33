"""Load generator: its issue lag, a queue with known latencies, a planted stall, and planted mixed answers.

`python -m benchmarks.load_generator [PART ...] [--scale PROPORTION]`; the parts are lag, queue, stall and mixed. They
take about 5 minutes together; `--scale 0.1` makes each load a tenth as long.

- lag: 2,000 requests a second from one core to an HTTP server that answers at once on another. Goal: p99 at most 1 ms.
- queue: 200,000 Poisson requests, 1,600 a second, each to one of eight servers of exactly 4 ms, so that each is M/D/1
  at load 0.8. The generator's error is that of its p95 against that of the arrivals that were drawn, by Lindley's
  recursion. The random error of arrivals is that of 100 other draws. Goal: within 5 % of the known p95.
- stall: a stall of 1 s in the middle of 60 s of 200 requests a second to a server of 4 ms: p95 from due time and of
  service time, of the requests before the stall and of all.
- mixed: a server that gives one answer in 1,000 to another request if more than four are in flight, 20,000 requests,
  20 runs. Goal: found in all, with the pair.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import multiprocessing
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from benchmarks.load_intervals import known_p95
from pytest_modelserve.load.generator import LoadSettings, requests_of, run_load
from pytest_modelserve.load.load_run import LoadRun, quantile_of
from pytest_modelserve.load.schedule import plan_schedule

ROWS = np.arange(40_000, dtype=np.float32).reshape(20_000, 2)
QUEUES = 8


class ConstantServer:
    """Servers of a constant service time: each request ends that long after the one before it, or after it came.

    The first number of a request chooses its server in `chosen`; without it there is one server. Their clocks are
    ideal: a thread that wakes up late delays its own answer, and not those behind it.
    """

    def __init__(self, service_s: float, chosen: NDArray[np.int64] | None = None) -> None:
        self._service_s, self._lock = service_s, threading.Lock()
        self._chosen = np.zeros(1, np.int64) if chosen is None else chosen
        self._free = [0.0] * (int(self._chosen.max()) + 1)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the input when the request has ended."""
        server = self._chosen[int(x[0, 0]) % self._chosen.size]
        with self._lock:
            finish = self._free[server] = max(time.perf_counter(), self._free[server]) + self._service_s
        time.sleep(max(0.0, finish - time.perf_counter()))
        return x


class StallingServer:
    """A server of one request at a time, which stalls once for a second."""

    def __init__(self, service_s: float, stall_at: int) -> None:
        self._service_s, self._stall_at, self._count = service_s, stall_at, 0

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the input after the service time, or the stall."""
        self._count += 1
        time.sleep(1.0 if self._count == self._stall_at else self._service_s)
        return x


class MixingServer:
    """A server of sums that gives the answer of another request in flight to one in 1,000, if over four are there."""

    def __init__(self, seed: int) -> None:
        self._rng, self._lock, self._number = np.random.default_rng(seed), threading.Lock(), 0
        self._answers: dict[int, NDArray[Any]] = {}
        self.mixed = 0

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the sums of the rows, or those of another request."""
        answer = np.asarray(x.sum(axis=1))
        with self._lock:
            self._number += 1
            number = self._number
            self._answers[number] = answer
        time.sleep(0.0005)
        with self._lock:
            if len(self._answers) > 4 and self._rng.random() < 0.001:
                self.mixed += 1
                answer = self._answers[next(other for other in self._answers if other != number)]
            del self._answers[number]
        return answer


class _AtOnce(socketserver.StreamRequestHandler):
    """Keep-alive HTTP with one answer for everything."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        while line := self.rfile.readline():
            if line == b"\r\n":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")


def _serve_at_once(port: Any, core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _AtOnce) as server:
        port.send(server.server_address[1])
        server.serve_forever()


@contextlib.contextmanager
def server_at_once(core: int) -> Iterator[int]:
    """Yield the port of an HTTP server in another process on `core`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_at_once, args=(theirs, core), daemon=True)
    process.start()
    try:
        yield int(ours.recv())
    finally:
        process.kill()
        process.join()


def run(
    function: Any, requests: Any = None, *, seed: int = 0, max_in_flight: int = 256, warm_up_s: float = 0.0, **load: Any
) -> LoadRun:
    predictor = ms.serve(function)
    settings = LoadSettings(warm_up_s, max_in_flight=max_in_flight)
    schedule = plan_schedule(**load, seed=seed)
    return run_load(predictor, predictor, requests or requests_of(ROWS, 1), schedule, settings).counted


def lag(scale: float) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    with server_at_once(cores[-1]) as port:
        connections = threading.local()

        def post(x: NDArray[Any]) -> NDArray[Any]:
            if not hasattr(connections, "http"):
                connections.http = http.client.HTTPConnection("127.0.0.1", port)
            connections.http.request("GET", "/")
            connections.http.getresponse().read()
            return x

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cores[0]})
        try:
            found = run(post, rate_qps=2_000, duration_s=max(2.0, 30 * scale), warm_up_s=0.5)
        finally:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
    lags = {q: quantile_of(found.issue_lag_ms, q) for q in (0.5, 0.95, 0.99, 0.999)}
    print(
        f"lag: {len(found):,} requests at {len(found) / found.seconds:,.0f}/s, {found.failed} failed, CPU "
        f"{found.cpu_share:.0%} of a core; issue lag "
        + ", ".join(f"p{100 * q:g} {value:.3f} ms" for q, value in lags.items())
        + f"; service p99 {quantile_of(found.service_ms, 0.99):.3f} ms; goal p99 1 ms: "
        + ("met" if lags[0.99] <= 1 else "missed")
    )


def sojourns_ms(due_s: NDArray[np.float64], server: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the time of each request in its server of 4 ms a request, by Lindley's recursion."""
    found = []
    for each in range(QUEUES):
        steps = np.concatenate([[0.0], np.cumsum(4.0 - 1e3 * np.diff(due_s[server == each]))])
        found.append(steps - np.minimum.accumulate(steps) + 4.0)
    return np.concatenate(found)


def queue(scale: float) -> None:
    rate, seconds = 200.0 * QUEUES, 125 * scale
    n, rng = round(rate * seconds), np.random.default_rng(1)
    chosen = rng.integers(QUEUES, size=n)
    requests = list(np.arange(n).reshape(n, 1, 1))
    found = run(ConstantServer(0.004, chosen), requests, max_in_flight=1_000, rate_qps=rate, duration_s=seconds)
    p95, known = quantile_of(found.latency_ms, 0.95), 4 * known_p95(0.8)
    drawn = quantile_of(sojourns_ms(found.due_s, chosen[found.index]), 0.95)
    due = [np.cumsum(rng.exponential(1 / rate, n)) for _ in range(100)]
    others = [quantile_of(sojourns_ms(each, rng.integers(QUEUES, size=n)), 0.95) / known - 1 for each in due]
    print(
        f"queue: {n:,} requests, p95 {p95:.2f} ms, known {known:.2f} ms: {p95 / known - 1:+.1%}, goal 5 %: "
        f"{'met' if abs(p95 / known - 1) <= 0.05 else 'missed'}; the arrivals drawn {drawn:.2f} ms, the generator "
        f"{p95 / drawn - 1:+.1%}; 100 other draws {np.mean(others):+.1%} ± {1.96 * np.std(others, ddof=1):.1%} (95 %); "
        f"issue lag p95 {quantile_of(found.issue_lag_ms, 0.95):.3f} ms"
    )


def stall(scale: float) -> None:
    seconds = max(10.0, 60 * scale)
    found = run(StallingServer(0.004, round(100 * seconds)), rate_qps=200, duration_s=seconds, max_in_flight=1)
    before = found.index < np.argmax(found.service_ms)
    for name, values in (("due time", found.latency_ms), ("service time", found.service_ms)):
        print(
            f"stall: 1 s in {seconds:.0f} s, p95 of {name} {quantile_of(values[before], 0.95):.1f} ms before it, "
            f"{quantile_of(values, 0.95):.1f} ms of all"
        )


def mixed(scale: float) -> None:
    runs, requests = max(1, round(20 * scale)), 20_000
    detected = paired = planted = 0
    for seed in range(runs):
        server = MixingServer(seed)
        evidence = ms.measure_outputs_under_load(server, ROWS, clients=8, requests=requests)
        detected += evidence.verdict == "FAIL"
        paired += "request" in evidence.findings[0] if evidence.findings else 0
        planted += server.mixed
        if seed == 0:
            print(f"mixed: for example: {evidence.findings[0]}")
    print(f"mixed: found in {detected} of {runs} runs of {requests:,} requests, {planted / runs:.0f} planted a run, "
          f"the pair named in {paired}")  # fmt: skip


if __name__ == "__main__":
    parts = {"lag": lag, "queue": queue, "stall": stall, "mixed": mixed}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    for part in options.parts or parts:
        parts[part](options.scale)
