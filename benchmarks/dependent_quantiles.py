"""Error rates of the latency bounds for calls that are slow in bursts: `python benchmarks/dependent_quantiles.py`.

A tenth of the calls belongs to bursts of a given mean length; the true p95 lies inside them, at 3.5. The high end may
be below it in 5 % of samples (a false PASS) and the low end above it in 0.1 % (a false FAIL). "unbounded" counts
samples without a finite high end, which are INCONCLUSIVE.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.stats.quantiles import dependent_quantile_bounds

QUANTILE, P95, SHARE, SAMPLES = 0.95, 3.5, 0.1, 2000
SIZES = ((472, 1), (472, 3), (472, 10), (472, 20), (472, 40), (5000, 10), (5000, 100), (5000, 400))


def bursts(rng: np.random.Generator, n: int, length: float) -> NDArray[np.float64]:
    """Return durations of 1 to 2, and 3 to 4 in bursts, from the stationary state; length 1 means independence."""
    if length == 1:
        return 1 + 2 * (rng.random(n) < SHARE) + rng.random(n)
    leave = 1 / length
    enter = leave * SHARE / (1 - SHARE)
    states, inside = np.empty(n), rng.random() < SHARE
    for i, u in enumerate(rng.random(n)):
        inside = u >= leave if inside else u < enter
        states[i] = inside
    return 1 + 2 * states + rng.random(n)


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{SAMPLES} samples a row; bursts are {SHARE:.0%} of the calls")
    print("calls  burst  high end misses  unbounded  low end misses")
    for n, length in SIZES:
        found = [
            dependent_quantile_bounds(bursts(rng, n, length), QUANTILE, low_level=0.999, high_level=0.95).bounds
            for _ in range(SAMPLES)
        ]
        missed = np.mean([bounds.high < P95 for bounds in found])
        unbounded = np.mean([math.isinf(bounds.high) for bounds in found])
        low = np.mean([bounds.low > P95 for bounds in found])
        print(f"{n:5}  {length:5}  {missed:15.1%}  {unbounded:9.1%}  {low:14.2%}", flush=True)


if __name__ == "__main__":
    main()
