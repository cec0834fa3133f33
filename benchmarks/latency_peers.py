"""Timing compared with LoadGen and pytest-benchmark: `python -m benchmarks.latency_peers [--peer-python PYTHON]`.

Two tables of one run each; the tools take turns. The first has the overhead of a harness for a call that does nothing:
inside its timed window, and in all, above a loop with one clock in the same Python. LoadGen's window includes its
callback from C++ into Python and back, which every model in Python needs. The second compares LoadGen's SingleStream
percentiles of one ONNX model with the intervals of `measure_latency` over as many calls. It counts how often LoadGen's
percentile lies inside, and how often our next estimate does, which depends on the load of the host.

PYTHON is a separate environment with mlcommons-loadgen, pytest-benchmark, onnxruntime and numpy. Without it, only ours
is measured.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import pytest_modelserve as ms
from benchmarks.latency_gates import X, stack
from benchmarks.loadgen_peer import HARNESSES, Cost, Peer, bare_loop, nothing
from pytest_modelserve.performance.timing import Clocks, run_delay_clock, time_calls
from pytest_modelserve.progress import progress

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# Reading the run delay takes 2 µs outside the timed window.
GOAL_INSIDE_NS, GOAL_OUTSIDE_NS = 200, 3_000
OURS = "pytest-modelserve"
ROUNDS_OF_OVERHEAD = 9
NO_BUDGET_MS = 1e6


def our_cost(calls: int) -> Cost:
    """Return the cost of a latency gate with undisturbed time, if the system reports it."""
    with run_delay_clock() as run_delay:
        clocks = Clocks(run_delay=run_delay)
        began = clocks.wall()
        times = time_calls(nothing, calls, clocks=clocks)
        ended = clocks.wall()
    return Cost(1e6 * float(np.median(times.wall_ms)), (ended - began) / calls)


def overheads(peer: Peer | None, calls: int) -> Iterator[str]:
    """Yield the lines of the table of overheads."""
    turns: dict[str, tuple[Callable[[int], Cost], Callable[[int], Cost]]] = {OURS: (our_cost, bare_loop)}
    if peer is not None:
        for name in HARNESSES:
            turns[name] = partial(peer.overhead, name), peer.bare_loop
    added: dict[str, list[Cost]] = {name: [] for name in turns}
    bare: list[Cost] = []
    for _ in progress(range(ROUNDS_OF_OVERHEAD), "overhead"):
        for name, (harness, loop) in turns.items():
            bare.append(loop(calls))
            added[name].append(harness(calls).above(bare[-1]))
    inside, call = _medians(bare)
    yield f"overhead of a call that does nothing, {calls} calls, medians of {ROUNDS_OF_OVERHEAD} rounds"
    yield f"  {'':18} {'inside':>9} {'in all':>9}"
    yield f"  {'bare loop':18} {inside:6.0f} ns {call:6.0f} ns"
    for name, costs in added.items():
        inside, call = _medians(costs)
        yield f"  {name:18} {inside:+6.0f} ns {call:+6.0f} ns" + (_verdict(inside, call) if name == OURS else "")
    yield f"  goal of ours: at most +{GOAL_INSIDE_NS} ns inside the timed window, +{GOAL_OUTSIDE_NS:,} ns in all"


def _medians(costs: Sequence[Cost]) -> tuple[float, float]:
    return statistics.median(cost.inside_ns for cost in costs), statistics.median(cost.call_ns for cost in costs)


def _verdict(inside: float, call: float) -> str:
    return "   met" if inside <= GOAL_INSIDE_NS and call <= GOAL_OUTSIDE_NS else "   missed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of one latency gate, and LoadGen's percentile right after it; None without LoadGen."""

    estimate: float
    low: float
    high: float
    theirs: float | None

    @property
    def is_bounded(self) -> bool:
        """Whether the interval has both ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def contains(self, ms: float) -> bool:
        """Return whether `ms` lies inside the interval."""
        return self.low <= ms <= self.high


def compare(artifact: ms.Artifact, peer: Peer | None, quantile: float) -> Comparison:
    """Measure with both, each with its own session; two sessions of one model differ by up to 3 %."""
    with ms.serve(artifact) as served:
        evidence = ms.measure_latency(served, X, max_ms=NO_BUDGET_MS, quantile=quantile)
    interval = evidence.quantities[0].interval
    assert interval is not None
    theirs = None if peer is None else peer.percentiles_ms(evidence.n)[quantile]
    return Comparison(evidence.quantities[0].value, interval.low, interval.high, theirs)


def percentiles(artifact: ms.Artifact, peer: Peer | None, rounds: int) -> Iterator[str]:
    """Yield the lines of the table of percentiles."""
    every: dict[float, list[Comparison]] = {quantile: [] for quantile in QUANTILES}
    for _ in progress(range(rounds), "percentiles"):
        for quantile, some in every.items():
            some.append(compare(artifact, peer, quantile))
    yield f"one model, ours and LoadGen's SingleStream in turn, {rounds} rounds"
    yield "  quantile   ours, median interval          LoadGen   LoadGen/ours   LoadGen inside   our next inside"
    for quantile, some in every.items():
        yield _row(f"p{100 * quantile:g}", some)
    yield "  an interval without both ends (calls that depend on each other throughout) is left out of the counts"
    yield "  goal: LoadGen lies inside as often as our own next estimate"


def _row(name: str, some: Sequence[Comparison]) -> str:
    ours, low, high = (statistics.median(getattr(each, end) for each in some) for end in ("estimate", "low", "high"))
    nexts = [first.contains(second.estimate) for first, second in itertools.pairwise(some) if first.is_bounded]
    row = f"  {name:8} {ours:7.4f} ms [{low:.4f}, {high:.4f}]"
    theirs = [(each, each.theirs) for each in some if each.theirs is not None]
    if not theirs:
        return f"{row:43} {'none':>7}   {'':12}   {'':14}   {sum(nexts)} of {len(nexts)}"
    inside = [each.contains(ms) for each, ms in theirs if each.is_bounded]
    ratio = statistics.median(ms / each.estimate for each, ms in theirs)
    row = f"{row:40} {statistics.median(ms for _, ms in theirs):7.4f} ms   × {ratio:.3f}"
    return f"{row:64} {f'{sum(inside)} of {len(inside)}':>14}   {f'{sum(nexts)} of {len(nexts)}':>15}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON", help="a Python with the peers (default: none)")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of a round of the overhead (default: 20000)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the percentiles (default: 12)")
    parser.add_argument("--layers", type=int, default=200, help="layers of the model (default: 200)")
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artifact = stack(folder, given.layers)
        np.savez(folder / "inputs.npz", x=X)
        python = given.peer_python
        with nullcontext() if python is None else Peer.of(python, artifact.path, folder / "inputs.npz") as peer:
            print("\n".join(overheads(peer, given.calls)))
            print("\n".join(percentiles(artifact, peer, given.rounds)))
    if python is None:
        print(f"without --peer-python, {' and '.join(HARNESSES)} are skipped")
    print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
