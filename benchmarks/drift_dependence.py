"""How often the drift gate FAILs if rows depend on their neighbors and nothing changed, with an estimated block length.

    python benchmarks/drift_dependence.py [--worlds 4000] [--seed 0] [--only chains memories kinds groups]

chains: an autoregression with coefficient 0.7 in the profile and in the data, each of 200 to 5,000 rows (uniform on a
logarithmic scale), at three alphas. memories: other coefficients, moving averages and independent rows, by number of
rows. kinds: booleans, categories, rounded numbers and columns with nulls. groups: pairs of columns and whole rows of
several chains. FAIL is counted at a budget of nothing, where significance alone decides. The limits are the one-sided
95 % limits of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import binomial_bounds

Floats = NDArray[np.float64]
Transform = Callable[[np.random.Generator, Floats], NDArray[np.generic]]
ALPHA, COEFFICIENT = 0.01, 0.7
FEWEST, MOST = 200, 5_000


def chain(rng: np.random.Generator, shape: tuple[int, ...], coefficient: float) -> Floats:
    """Autoregressions along the last axis, with standard normal values."""
    noise = rng.standard_normal((*shape[:-1], shape[-1] + 500))
    return np.asarray(np.sqrt(1 - coefficient**2) * lfilter([1.0], [1.0, -coefficient], noise, axis=-1)[..., 500:])


def moving_average(rng: np.random.Generator, shape: tuple[int, ...], span: int) -> Floats:
    noise = rng.standard_normal((*shape[:-1], shape[-1] + span - 1))
    return np.asarray(lfilter(np.full(span, span**-0.5), [1.0], noise, axis=-1)[..., span - 1 :])


def rate(failed: int, worlds: int, alpha: float) -> str:
    bounds = binomial_bounds(failed, worlds, low_level=0.95, high_level=0.95)
    return f"FAIL {failed / worlds:.4f} [{bounds.low:.4f}, {bounds.high:.4f}] at alpha {alpha}"


def fails(then: NDArray[np.generic], now: NDArray[np.generic], alpha: float, block: int | None = None) -> bool:
    profile = reference_profile({"x": then})
    return measure_drift({"x": now}, profile, max_distance=1e-9, alpha=alpha, block=block).verdict is Verdict.FAIL


def chain_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    alphas = (0.05, 0.01, 0.001)
    failed, unaware = dict.fromkeys(alphas, 0), 0
    for _ in range(worlds):
        sizes = np.exp(rng.uniform(np.log(FEWEST), np.log(MOST), size=2)).astype(int)
        then, now = (chain(rng, (size,), COEFFICIENT) for size in sizes)
        profile = reference_profile({"x": then})
        evidence = measure_drift({"x": now}, profile, max_distance=1e-9, alpha=0.4)
        # One column: the p-value in the details decides at every alpha.
        for alpha in alphas:
            failed[alpha] += evidence.details["distances"]["x"][2] <= alpha
        unaware += fails(then, now, ALPHA, block=1)
    for alpha in alphas:
        yield f"chain of {COEFFICIENT}, {FEWEST} to {MOST:,} rows".ljust(52) + rate(failed[alpha], worlds, alpha)
    yield "    as independent rows (block=1)".ljust(52) + rate(unaware, worlds, ALPHA)


def memory_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    processes: list[tuple[str, Callable[[int], Floats]]] = [
        ("independent rows", lambda rows: rng.standard_normal(rows)),
        *(
            (f"chain of {coefficient}", lambda rows, c=coefficient: chain(rng, (rows,), c))  # type: ignore[misc]
            for coefficient in (-0.5, 0.1, 0.3, 0.7, 0.9, 0.95, 0.99)
        ),
        ("moving average over 20", lambda rows: moving_average(rng, (rows,), 20)),
    ]
    for name, draw in processes:
        for then, now in ((200, 200), (200, 2_000), (1_000, 1_000), (5_000, 5_000)):
            failed = sum(fails(draw(then), draw(now), ALPHA) for _ in range(worlds))
            yield f"{name}, {then:,} against {now:,} rows".ljust(52) + rate(failed, worlds, ALPHA)


def kind_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    names = np.array(["a", "b", "c", "d", "e", "f"], dtype=object)
    kinds: list[tuple[str, Transform]] = [
        ("booleans", lambda _, x: x > 0),
        ("rare booleans", lambda _, x: x > 1.64),
        ("six categories", lambda _, x: names[np.digitize(x, [-1, -0.3, 0, 0.5, 1.5])]),
        ("rounded numbers", lambda _, x: np.round(x)),
        ("half null at random", lambda rng, x: np.where(rng.random(x.size) < 0.5, np.nan, x)),
    ]
    for name, transform in kinds:
        for rows in (200, 1_000, 5_000):
            failed = 0
            for _ in range(worlds):
                then, now = (transform(rng, values) for values in chain(rng, (2, rows), COEFFICIENT))
                failed += fails(then, now, ALPHA)
            yield f"{name} of a chain of {COEFFICIENT}, {rows:,} rows".ljust(52) + rate(failed, worlds, ALPHA)


def group_rows(rng: np.random.Generator, worlds: int) -> Iterator[str]:
    """Six chains as columns: FAIL of the whole gate, and of pairs and whole rows at their quarter of alpha."""
    for coefficient in (0.7, 0.9):
        for rows in (400, 2_000):
            failed = {"gate": 0, "pairs": 0, "whole rows": 0}
            for _ in range(worlds):
                then, now = chain(rng, (2, 6, rows), coefficient).transpose(0, 2, 1)
                profile = reference_profile(then, sketch_rows=400)
                evidence = measure_drift(now, profile, max_distance=1e-9, alpha=0.05)
                failed["gate"] += evidence.verdict is Verdict.FAIL
                failed["pairs"] += bool(evidence.details["moved_pairs"])
                failed["whole rows"] += evidence.details["rows_as_a_whole"][2] <= 0.05 / 4
            for name, count in failed.items():
                alpha = 0.05 if name == "gate" else 0.05 / 4
                yield f"6 chains of {coefficient}, {rows:,} rows, {name}".ljust(52) + rate(count, worlds, alpha)


STUDIES = {"chains": (chain_rows, 1), "memories": (memory_rows, 4), "kinds": (kind_rows, 4), "groups": (group_rows, 40)}
"""Each study, and how many requested worlds make one of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=4_000, help="simulated worlds of chains (default 4000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="studies to run")
    arguments = parser.parse_args()
    for name in progress(arguments.only, "drift of dependent rows"):
        study, cost = STUDIES[name]
        worlds = max(arguments.worlds // cost, 10)
        print(f"\n{name}: {worlds:,} worlds a row; seed {arguments.seed}", flush=True)
        for line in study(np.random.default_rng(arguments.seed), worlds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
