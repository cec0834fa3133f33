"""Loads with given times, so that no verdict depends on the host."""

import math
from contextlib import nullcontext

import numpy as np
import pytest

from pytest_modelserve.load import generator
from pytest_modelserve.load.load_run import REQUEST, Failure, LoadRun
from pytest_modelserve.load.schedule import Schedule


@pytest.fixture(autouse=True)
def without_host_lock(monkeypatch):
    """No test waits for the timed gates of other processes."""
    monkeypatch.setattr(generator, "host_lock", nullcontext)


@pytest.fixture
def load():
    """A run of requests that were due at a rate and took `service_ms`, in one queue or each at once."""

    def make(service_ms, *, rate=100.0, queue=False, lag_ms=0.0, failed=(), warm_up_s=0.0, cpu_share=0.1, clients=None):
        service = np.asarray(service_ms, dtype=float) / 1e3
        n = service.size
        due = np.arange(n) / rate
        requests = np.zeros(n, REQUEST)
        requests["index"], requests["due"], requests["answered"] = np.arange(n), due, True
        free = 0.0
        for i in range(n):
            requests["taken"][i] = max(due[i], free) if queue else due[i]
            requests["sent"][i] = requests["taken"][i] + lag_ms / 1e3
            free = requests["ended"][i] = requests["sent"][i] + service[i]
        requests["answered"][list(failed)] = False
        failures = {"OSError": Failure(len(failed), "refused")} if len(failed) else {}
        schedule = Schedule(f"{rate:g} requests/s", n / rate, None if clients else due, clients)
        return LoadRun(schedule, requests, warm_up_s, failures, cpu_share, clients or 256)

    return make


@pytest.fixture
def open_at_the_end():
    """The run with its last request still open."""

    def change(run):
        requests = run.requests.copy()
        requests["ended"][-1], requests["answered"][-1] = math.nan, False
        return LoadRun(run.schedule, requests, run.first_s, run.failures, run.cpu_share, run.in_flight_limit)

    return change
