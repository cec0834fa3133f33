"""How often a bound of a latency misses where calls come in bursts: `python benchmarks/dependent_quantiles.py`.

A tenth of the time is spent in bursts of a mean length; the p95 lies inside them, at 3.5. The high end, on which PASS
rests, may miss in 5 % of samples and the low end, on which FAIL rests, in 0.1 %. "unbounded" are samples that say
neither, which is INCONCLUSIVE.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.stats.quantiles import dependent_quantile_bounds

QUANTILE, P95, SHARE, SAMPLES = 0.95, 3.5, 0.1, 2000
SIZES = ((472, 1), (472, 3), (472, 10), (472, 20), (472, 40), (5000, 10), (5000, 100), (5000, 400))


def bursts(rng: np.random.Generator, n: int, length: float) -> NDArray[np.float64]:
    """1 to 2, and 3 to 4 in bursts; begun in the steady state. Bursts of mean length 1 are independent calls."""
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
    print(f"{SAMPLES} samples a row; bursts take {SHARE:.0%} of the time")
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
