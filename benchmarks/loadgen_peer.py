"""MLPerf LoadGen and pytest-benchmark in another Python process that is called over pipes.

Run by that Python, this file is the server: it reads one request a line and prints the result. It is a separate process
also because an exception in LoadGen's callback crashes the process (exit status 139 in a shell).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

HARNESSES = ("pytest-benchmark", "LoadGen")


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of a call that does nothing: the median of the timed window, and the mean of the whole call."""

    inside_ns: float
    call_ns: float

    def above(self, other: Cost) -> Cost:
        """Return the difference to `other`."""
        return Cost(self.inside_ns - other.inside_ns, self.call_ns - other.call_ns)


def nothing() -> None:
    """Do nothing, so that a harness records its own overhead only."""


def bare_loop(calls: int) -> Cost:
    """Return the cost of a loop with one clock and no garbage collection, the baseline in either Python."""
    durations: list[int] = []
    clock, add = time.perf_counter_ns, durations.append
    gc.disable()
    began = clock()
    for _ in range(calls):
        start = clock()
        nothing()
        add(clock() - start)
    ended = clock()
    gc.enable()
    return Cost(statistics.median(durations), (ended - began) / calls)


class Peer:
    """The process, started by `of`. Its methods raise RuntimeError if it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    @contextlib.contextmanager
    def of(python: Path, model: Path, inputs: Path) -> Iterator[Peer]:
        """Start the peer in `python` for `model`; `inputs` is an .npz with the inputs of one call."""
        command = [str(python), "-W", "ignore", __file__, str(model), str(inputs)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()

    def bare_loop(self, calls: int) -> Cost:
        """Return the cost of `bare_loop` in the other Python."""
        return Cost(**self._request("bare", calls))

    def overhead(self, harness: str, calls: int) -> Cost:
        """Return the cost of one of `HARNESSES` for calls that do nothing."""
        return Cost(**self._request(harness, calls))

    def percentiles_ms(self, calls: int) -> dict[float, float]:
        """Return LoadGen's SingleStream percentiles of the model in a new session, by quantile."""
        return {float(quantile): ms for quantile, ms in self._request("model", calls).items()}

    def server_percentiles_ms(self, rate: float, count: int, seed: int, service_s: float) -> dict[float, float]:
        """Return LoadGen's Server percentiles of `count` requests to one server of a constant service time."""
        found = self._request("server", [rate, count, seed, service_s])
        return {float(quantile): ms for quantile, ms in found.items()}

    def _request(self, what: str, calls: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([what, calls]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer's process has ended with {self._process.wait()}; see its output above")
        result: dict[str, Any] = json.loads(line)
        return result


def single_stream(call: Callable[[], object], calls: int) -> str:
    """Return LoadGen's summary of `calls` calls in SingleStream, which issues them in this thread."""
    import mlperf_loadgen as loadgen

    complete, response = loadgen.QuerySamplesComplete, loadgen.QuerySampleResponse

    def issue(samples: Sequence[Any]) -> None:
        call()
        complete([response(samples[0].id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    return summary_of(settings, issue, calls)


def server_of_constant_time(rate: float, count: int, seed: int, service_s: float) -> str:
    """Return LoadGen's summary of Poisson arrivals at one server, which answers each request in `service_s`."""
    import mlperf_loadgen as loadgen

    waiting: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    free = 0.0

    def issue(samples: Sequence[Any]) -> None:
        nonlocal free
        for sample in samples:
            free = max(time.perf_counter(), free) + service_s
            waiting.put((sample.id, free))

    def answer() -> None:
        for _ in range(count):
            identity, finish = waiting.get()
            time.sleep(max(0.0, finish - time.perf_counter()))
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(identity, 0, 0)])

    threading.Thread(target=answer, daemon=True).start()
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.server_target_qps, settings.schedule_rng_seed = rate, seed
    settings.server_target_latency_ns, settings.server_target_latency_percentile = 10**9, 0.95
    return summary_of(settings, issue, count)


def summary_of(settings: Any, issue: Callable[[Sequence[Any]], None], count: int) -> str:
    """Return LoadGen's summary of a test of `count` queries."""
    import mlperf_loadgen as loadgen

    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = count
    settings.min_duration_ms = 0
    log = loadgen.LogSettings()
    log.enable_trace = log.log_output.copy_summary_to_stdout = False
    sut = loadgen.ConstructSUT(issue, nothing)
    library = loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            log.log_output.outdir = folder
            gc.disable()
            loadgen.StartTestWithLogSettings(sut, library, settings, log)
            return Path(folder, "mlperf_log_summary.txt").read_text(encoding="utf-8")
    finally:
        gc.enable()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)


def percentiles_in(summary: str) -> dict[float, float]:
    """Return the milliseconds by quantile. ValueError if there are none."""
    found = re.findall(r"^(\d+\.\d+) percentile latency \(ns\) *: (\d+)$", summary, re.MULTILINE)
    if not found:
        raise ValueError("LoadGen's summary names no percentile")
    return {round(float(percent) / 100, 6): int(ns) / 1e6 for percent, ns in found}


def loadgen_cost(calls: int) -> Cost:
    summary = single_stream(nothing, calls)
    per_second = re.search(r"^QPS w/ loadgen overhead *: ([\d.]+)$", summary, re.MULTILINE)
    if per_second is None:
        raise ValueError("LoadGen's summary names no rate")
    return Cost(1e6 * percentiles_in(summary)[0.5], 1e9 / float(per_second[1]))


def pytest_benchmark_cost(calls: int) -> Cost:
    """Return the cost of `benchmark.pedantic` with one call a round, the mode that records every call."""
    import pytest

    class Measured:
        """Plugin with a fixture: a function that runs the benchmark and records its cost."""

        cost: Cost | None = None

        @pytest.fixture
        def record_cost(self) -> Callable[[Any], None]:
            def run(benchmark: Any) -> None:
                began = time.perf_counter_ns()
                benchmark.pedantic(nothing, rounds=calls, iterations=1)
                ended = time.perf_counter_ns()
                self.cost = Cost(1e9 * statistics.median(benchmark.stats.stats.data), (ended - began) / calls)

            return run

    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test_nothing.py")
        test.write_text("def test_nothing(benchmark, record_cost):\n    record_cost(benchmark)\n")
        options = ["--benchmark-disable-gc", "--import-mode=importlib", f"--rootdir={folder}", f"-c{os.devnull}"]
        status = pytest.main([str(test), "-pno:cacheprovider", *options], plugins=[measured])
    if measured.cost is None:
        raise RuntimeError(f"pytest-benchmark measured nothing: pytest ended with {status}")
    return measured.cost


def opened(model: str, inputs: str) -> Callable[[], object]:
    """Return a function that calls the model, in a session with the settings of `serve`."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    with numpy.load(inputs) as arrays:
        feed = dict(arrays)
    for _ in range(10):
        session.run(names, feed)
    return lambda: session.run(names, feed)


def _serve(model: str, inputs: str, results: TextIO) -> None:
    """Process every line of standard input."""
    costs: dict[str, Callable[[int], Cost]] = {
        "bare": bare_loop,
        "pytest-benchmark": pytest_benchmark_cost,
        "LoadGen": loadgen_cost,
    }
    for line in sys.stdin:
        what, calls = json.loads(line)
        if what == "model":
            result: dict[Any, float] = percentiles_in(single_stream(opened(model, inputs), calls))
        elif what == "server":
            result = percentiles_in(server_of_constant_time(*calls))
        else:
            cost = costs[what](calls)
            result = {"inside_ns": cost.inside_ns, "call_ns": cost.call_ns}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    # The output of pytest and LoadGen is dropped, so that the pipe holds results only.
    with os.fdopen(os.dup(1), "w") as pipe, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        _serve(sys.argv[1], sys.argv[2], pipe)
