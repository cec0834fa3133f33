"""Load compared with LoadGen's Server scenario: `python -m benchmarks.load_peers --peer-python PYTHON [REQUESTS]`.

Both send the same Poisson arrivals to a server of one millisecond a request, at load 0.8, in turn. The schedule is
LoadGen's: its generator of random numbers with its seed. LoadGen's percentiles, from the scheduled time, should lie
within our 95 % intervals. PYTHON is a separate environment with mlcommons-loadgen and numpy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pytest_modelserve as ms
from benchmarks.load_generator import ConstantServer
from benchmarks.loadgen_peer import Peer
from pytest_modelserve.load.generator import LoadSettings, requests_of, run_load
from pytest_modelserve.load.load_run import quantile_of
from pytest_modelserve.load.schedule import plan_schedule
from pytest_modelserve.stats.batch_quantiles import serial_quantile_bounds

RATE, SERVICE_S = 800.0, 0.001
QUANTILES = (0.5, 0.9, 0.95, 0.97, 0.99)


def loadgen_schedule(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Return the due times of LoadGen's Server scenario: std::exponential_distribution of std::mt19937."""
    raw = np.random.RandomState(seed).randint(0, 2**32, size=2 * count, dtype=np.uint32).astype(np.float64)
    gaps = -np.log1p(-(raw[0::2] + raw[1::2] * 2.0**32) / 2.0**64) / rate
    return np.concatenate([[0.0], np.cumsum(gaps[: count - 1])])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", nargs="?", type=int, default=20_000)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    inside = 0
    print(f"{options.requests:,} requests a round, {RATE:g} requests/s, ms from the time a request was due")
    with Peer.of(options.peer_python, Path(), Path()) as peer:
        for seed in range(1, options.rounds + 1):
            due = loadgen_schedule(RATE, options.requests, seed)
            schedule = plan_schedule(schedule=due.tolist(), duration_s=1.0)
            server = ms.serve(ConstantServer(SERVICE_S))
            requests = requests_of(np.zeros((1, 1), np.float32), 1)
            run = run_load(server, server, requests, schedule, LoadSettings(0.0))
            theirs = peer.server_percentiles_ms(RATE, options.requests, seed, SERVICE_S)
            print(f"round {seed}: issue lag p99 {quantile_of(run.issue_lag_ms, 0.99):.3f} ms")
            for quantile in QUANTILES:
                bounds = serial_quantile_bounds(run.latency_ms, quantile, low_level=0.95, high_level=0.95)
                is_inside = bounds.low <= theirs[quantile] <= bounds.high
                inside += is_inside
                print(
                    f"  p{100 * quantile:<4g} ours {bounds.estimate:7.3f} [{bounds.low:.3f}, {bounds.high:.3f}]   "
                    f"LoadGen {theirs[quantile]:7.3f}   {theirs[quantile] / bounds.estimate - 1:+.1%}"
                    f"{'' if is_inside else '   outside'}"
                )
    print(f"{inside} of {options.rounds * len(QUANTILES)} percentiles of LoadGen lie within our intervals")


if __name__ == "__main__":
    main()
