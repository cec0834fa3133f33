"""Coverage of the intervals of a load: latencies in simulated queues, the search for the highest rate, throughput.

The 95 % high end of the 95th percentile should lie below the true one in 5 % of samples, the 99.9 % low end above it in
0.1 %. "independent" are the order statistics that take requests for independent. Run with one number, the proportion of
the repetitions (default 1).
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.load.load_run import REQUEST, LoadRun
from pytest_modelserve.load.max_rate import RateStep, ends_of, search
from pytest_modelserve.load.schedule import Schedule
from pytest_modelserve.load.throughput import rows_per_second, throughput_bounds
from pytest_modelserve.stats.batch_quantiles import serial_quantile_bounds
from pytest_modelserve.stats.quantiles import quantile_bounds

QUANTILE, LOAD = 0.95, 0.8
SEED = 20261129
RATE = 800.0
"""The highest rate of a server with 1 ms of service, if the budget is the p95 at load 0.8."""


def sojourn_times(n: int, load: float, rng: np.random.Generator, *, exponential: bool) -> NDArray[np.float64]:
    """Return those of a queue with a mean service time of 1, after a warm-up, by Lindley's recursion."""
    warm_up = 2_000
    gaps = rng.exponential(1 / load, n + warm_up)
    service = rng.exponential(1.0, n + warm_up) if exponential else np.ones(n + warm_up)
    steps = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    return np.asarray((steps - np.minimum.accumulate(steps) + service)[warm_up:])


def known_p95(load: float) -> float:
    """Return the 95th percentile of sojourn times of M/D/1 with a service time of 1, from the distribution of waiting.

    Source: Crommelin (1932); P(W <= t) = (1 - load) sum over k <= t of (-load (t - k))^k / k! exp(load (t - k)).
    """
    from scipy.optimize import brentq

    def waits_at_most(t: float) -> float:
        terms = ((-load * (t - k)) ** k / math.factorial(k) * math.exp(load * (t - k)) for k in range(int(t) + 1))
        return (1 - load) * sum(terms)

    return 1 + float(brentq(lambda t: waits_at_most(t) - QUANTILE, 1e-9, 12.0))


def coverage(scale: float) -> None:
    """Print the table of coverage."""
    print(f"{'latencies':<14} {'n':>6} {'runs':>5}   {'high too low':>12} {'low too high':>12} {'high infinite':>13}   "
          f"{'median interval':<16} independent: high, low")  # fmt: skip
    for name in ("M/M/1", "M/D/1", "independent"):
        rng = np.random.default_rng(SEED)
        for n in (500, 2_000, 10_000, 40_000):
            runs = max(20, round(scale * min(600, 6_000_000 / n)))
            true = -math.log(1 - QUANTILE) / (1 - LOAD) if name == "M/M/1" else known_p95(LOAD)
            if name == "independent":
                true = -math.log(1 - QUANTILE)
            ends, plain = [], []
            for _ in range(runs):
                if name == "independent":
                    times = rng.exponential(1.0, n)
                else:
                    times = sojourn_times(n, LOAD, rng, exponential=name == "M/M/1")
                for found, bounds in ((ends, serial_quantile_bounds), (plain, quantile_bounds)):
                    each = bounds(times, QUANTILE, low_level=0.999, high_level=0.95)
                    found.append((each.low, each.high))
            low, high = np.array(ends).T
            plain_low, plain_high = np.array(plain).T
            interval = f"[{np.median(low) / true:.2f}, {np.median(high) / true:.2f}]"
            print(
                f"{name:<14} {n:>6} {runs:>5}   {(high < true).mean():>12.1%} {(low > true).mean():>12.1%} "
                f"{np.isinf(high).mean():>13.1%}   {interval:<16} {(plain_high < true).mean():.1%}, "
                f"{(plain_low > true).mean():.1%}"
            )


def searches(scale: float) -> None:
    """Print how often the interval of `find_max_rate` misses the highest rate of an M/D/1 server."""
    budget, error = known_p95(LOAD), 0.05 / 2
    print(f"\n{'requests a step':>15} {'searches':>8}   {'low too high':>12} {'high too low':>12}   interval, steps")
    for per_step in (4_000, 20_000):
        rng = np.random.default_rng(SEED)

        def measure(rate: float, longer: int, per_step: int = per_step, rng: np.random.Generator = rng) -> RateStep:
            load = rate * LOAD / RATE
            n = max(400, round(longer * per_step * rate / RATE))
            if load < 1:
                times = sojourn_times(n, load, rng, exponential=False)
            else:
                times = 1 + np.maximum(np.arange(n) * (1 - 1 / load), 0.0)
            found = serial_quantile_bounds(times, QUANTILE, low_level=1 - error, high_level=1 - error)
            verdict = Verdict.INCONCLUSIVE
            if found.high <= budget or found.low > budget:
                verdict = Verdict.PASS if found.high <= budget else Verdict.FAIL
            return RateStep(rate, n, found.estimate, found.low, found.high, rate, 0.0, verdict)

        runs = max(10, round(scale * 300 * 4_000 / per_step))
        results = [
            search(measure, lambda *_: 0.0, 560.0, resolution=0.1, time_limit_s=math.inf)[0] for _ in range(runs)
        ]
        low, high = np.array([ends_of(steps) for steps in results]).T
        print(
            f"{per_step:>15,} {runs:>8}   {(low > RATE).mean():>12.1%} {(high < RATE).mean():>12.1%}   "
            f"[{np.median(low):.0f}, {np.median(high):.0f}] of {RATE:.0f}, {np.mean([*map(len, results)]):.1f}"
        )


def service_times(kind: str, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return service times of 10 ms on average: exponential, or of a server whose speed wanders within seconds."""
    count = round(200 * seconds)
    if kind == "exponential":
        return rng.exponential(0.01, count)
    steps = rng.normal(size=count)
    speed = np.empty(count)
    state = 0.0
    for i, step in enumerate(steps):  # correlated over about 30 requests
        state = speed[i] = 0.967 * state + math.sqrt(1 - 0.967**2) * step
    return np.asarray(0.01 * np.exp(0.3 * speed))


def one_client(kind: str, seconds: float, rng: np.random.Generator) -> LoadRun:
    """Return the run of one client that never pauses."""
    ends = np.cumsum(service_times(kind, seconds, rng))
    begins = np.concatenate([[0.0], ends[:-1]])
    requests = np.zeros(int(np.searchsorted(begins, seconds)), REQUEST)
    requests["index"] = np.arange(requests.size)
    requests["due"] = requests["taken"] = requests["sent"] = begins[: requests.size]
    requests["ended"], requests["answered"] = ends[: requests.size], True
    return LoadRun(Schedule("one client", seconds, clients=1), requests, 0.1 * seconds, in_flight_limit=1)


def throughputs(scale: float) -> None:
    """Print how often the interval of a throughput misses the true one."""
    row = [np.zeros((1, 1))]
    print(f"\n{'service times':<14} {'runs':>5}   {'low too high':>12} {'high too low':>12}   median interval")
    for kind in ("exponential", "wandering"):
        rng = np.random.default_rng(SEED)
        true = float(np.mean([rows_per_second(one_client(kind, 200.0, rng), row).mean() for _ in range(20)]))
        runs = max(20, round(scale * 500))
        ends = []
        for _ in range(runs):
            rates = rows_per_second(one_client(kind, 5.0, rng), row)
            bounds, _ = throughput_bounds(rates, low_level=0.95, high_level=0.999)
            ends.append((bounds.low, bounds.high))
        low, high = np.array(ends).T
        print(
            f"{kind:<14} {runs:>5}   {(low > true).mean():>12.1%} {(high < true).mean():>12.1%}   "
            f"[{np.median(low):.1f}, {np.median(high):.1f}] of {true:.1f} a second"
        )


if __name__ == "__main__":
    proportion = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    coverage(proportion)
    searches(proportion)
    throughputs(proportion)
