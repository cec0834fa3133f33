"""Error rates of the gates on task metrics, compared with their nominal rates.

    python benchmarks/metric_error_rates.py [--repeats 4000] [--seed 0] [--only counted,ranked,...]

The bounds are at 0.999 (low end) and 0.95 (high end), for a quantity with an upper budget: a low end above the truth is
a false FAIL at the budget, a high end below it a false PASS. "delta method alone" is the interval without the degrees
of freedom and without the allowance for unobserved kinds of rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from error_rates import HIGH_LEVEL, LOW_LEVEL, Row
from numpy.typing import NDArray
from scipy.special import ndtr

from pytest_modelserve.progress import progress
from pytest_modelserve.stats import (
    Linearized,
    auc_of,
    average_of,
    bca_bounds,
    bca_bounds_against,
    delta_method_bounds,
    mean_bounds,
    mean_of,
    ratio_of,
    unit_values,
)

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator], Linearized]
LEVELS = {"low_level": LOW_LEVEL, "high_level": HIGH_LEVEL}


def ends(method: str, case: str, repeats: int, truth: float, found: list[tuple[float, float]]) -> Iterator[Row]:
    """Compare both ends with the truth."""
    lows, highs = np.array(found).T
    yield Row(f"{method}, low end", case, 1 - LOW_LEVEL, float((lows > truth + 1e-12).mean()), repeats)
    yield Row(f"{method}, high end", case, 1 - HIGH_LEVEL, float((highs < truth - 1e-12).mean()), repeats)


def both(name: str, case: str, rng: np.random.Generator, repeats: int, truth: float, draw: Draw) -> Iterator[Row]:
    """Simulate the interval of the gates, and the delta method alone."""
    ours, alone = [], []
    for _ in range(repeats):
        one = draw(rng)
        bounds = delta_method_bounds(one.values, largest=one.largest, **LEVELS)
        plain = mean_bounds(one.values, **LEVELS)
        ours.append((bounds.low, bounds.high))
        alone.append((plain.low, plain.high))
    yield from ends(name, case, repeats, truth, ours)
    yield from ends(name, f"delta method alone: {case}", repeats, truth, alone)


def ratio(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Linearized:
    """Return the proportion of hits among some rows."""
    if not of.any():
        return Linearized(0.0, np.zeros(len(of)), float(len(of)))
    return ratio_of((hits & of).astype(float), of.astype(float), spread=1.0)


def f_score(actual: NDArray[np.bool_], predicted: NDArray[np.bool_], beta: float = 1.0) -> Linearized:
    """Return the linearized F score, as in the accuracy gates."""
    square = beta**2
    found = ratio_of((1 + square) * (actual & predicted), square * actual + predicted.astype(float), spread=1.0)
    spread = (1 + square) * (1 - found.value) + found.value * max(1.0, square)
    return Linearized(found.value, found.influence, found.largest * spread)


def balanced_drop(n: int, proportions: list[float], wrong: float, lost: float, gained: float) -> tuple[Draw, float]:
    """Return a generator of the drop of balanced accuracy, and its truth; the reference errs at the rate `wrong`."""

    def draw(rng: np.random.Generator) -> Linearized:
        kinds = rng.choice(len(proportions), n, p=proportions)
        before, uniform = rng.random(n) > wrong, rng.random(n)
        after = np.where(before, uniform > lost / (1 - wrong), uniform < gained / wrong)
        parts = [average_of([ratio(hits, kinds == kind) for kind in np.unique(kinds)]) for hits in (before, after)]
        return parts[0].minus(parts[1])

    return draw, lost - gained


def balanced_level(n: int, proportions: list[float], wrong: float) -> tuple[Draw, float]:
    """Return a generator of 1 - balanced accuracy, and its truth."""

    def draw(rng: np.random.Generator) -> Linearized:
        kinds, hits = rng.choice(len(proportions), n, p=proportions), rng.random(n) > wrong
        return average_of([ratio(~hits, kinds == kind) for kind in np.unique(kinds)])

    return draw, wrong


def f_level(n: int, positive: float, missed: float, alarms: float, beta: float) -> tuple[Draw, float]:
    """Return a generator of 1 - F, and its truth."""

    def draw(rng: np.random.Generator) -> Linearized:
        actual = rng.random(n) < positive
        uniform = rng.random(n)
        return Linearized(1.0, np.zeros(n)).minus(
            f_score(actual, np.where(actual, uniform > missed, uniform < alarms), beta)
        )

    hits, square = positive * (1 - missed), beta**2
    return draw, 1 - (1 + square) * hits / (square * positive + hits + (1 - positive) * alarms)


def pair_drop(
    score: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Linearized],
    truth: Callable[[float, float, float], float],
    n: int,
    positive: float,
    missed: float,
    alarms: float,
    more_missed: float,
    more_alarms: float,
) -> tuple[Draw, float]:
    """Return a generator of the drop of a binary score, and its truth; the candidate has more errors of both kinds."""

    def draw(rng: np.random.Generator) -> Linearized:
        actual, uniform, flip = rng.random(n) < positive, rng.random(n), rng.random(n)
        before = np.where(actual, uniform > missed, uniform < alarms)
        after = np.where(actual, before & (flip > more_missed), before | (flip < more_alarms))
        return score(actual, before).minus(score(actual, after))

    later = (1 - (1 - missed) * (1 - more_missed), alarms + (1 - alarms) * more_alarms)
    return draw, truth(positive, missed, alarms) - truth(positive, *later)


def precision_of(positive: float, missed: float, alarms: float) -> float:
    hits = positive * (1 - missed)
    return hits / (hits + (1 - positive) * alarms)


def f1_of(positive: float, missed: float, alarms: float) -> float:
    hits = positive * (1 - missed)
    return 2 * hits / (positive + hits + (1 - positive) * alarms)


def counted(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate balanced accuracy, precision and F."""
    for drop_case in (
        (200, [0.5, 0.5], 0.1, 0.01, 0.0),
        (200, [0.9, 0.1], 0.1, 0.01, 0.0),
        (500, [0.9, 0.1], 0.1, 0.03, 0.01),
        (1000, [0.95, 0.05], 0.1, 0.05, 0.03),
        (1000, [0.1] * 10, 0.1, 0.02, 0.01),
        (2000, [0.5, 0.5], 0.05, 0.02, 0.01),
        (5000, [0.5, 0.5], 0.1, 0.06, 0.05),
    ):
        draw, truth = balanced_drop(*drop_case)
        yield from both("balanced drop", _format_case(drop_case), rng, repeats, truth, draw)
    for level_case in ((100, [0.5, 0.5], 0.02), (200, [0.9, 0.1], 0.1), (1000, [0.1] * 10, 0.02)):
        draw, truth = balanced_level(*level_case)
        yield from both("1 - balanced", _format_case(level_case), rng, repeats, truth, draw)
    for f_case in (
        (200, 0.5, 0.05, 0.05, 1),
        (1000, 0.02, 0.1, 0.002, 1),
        (500, 0.1, 0.2, 0.02, 1),
        (500, 0.1, 0.02, 0.001, 1),
        (500, 0.1, 0.2, 0.02, 2),
        (5000, 0.3, 0.1, 0.1, 0.5),
    ):
        draw, truth = f_level(*f_case)
        yield from both("1 - F", _format_case(f_case), rng, repeats, truth, draw)
    for pair_case in (
        (500, 0.1, 0.2, 0.02, 0.0, 0.002),
        (2000, 0.1, 0.2, 0.01, 0.01, 0.0005),
        (2000, 0.3, 0.05, 0.01, 0.01, 0.005),
        (2000, 0.3, 0.1, 0.05, 0.05, 0.03),
    ):
        draw, truth = pair_drop(lambda a, p: ratio(a, p), precision_of, *pair_case)
        yield from both("precision drop", _format_case(pair_case), rng, repeats, truth, draw)
        draw, truth = pair_drop(f_score, f1_of, *pair_case)
        yield from both("F1 drop", _format_case(pair_case), rng, repeats, truth, draw)


def ranked(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate the AUC of normal scores (as 1 - AUC), and its drop between correlated scores."""
    for n, proportion, distance in (
        (200, 0.5, 1.5),
        (200, 0.1, 1.5),
        (1000, 0.02, 1.5),
        (100, 0.5, 3),
        (1000, 0.1, 3),
        (2000, 0.5, 1),
    ):

        def level(
            rng: np.random.Generator, n: int = n, proportion: float = proportion, distance: float = distance
        ) -> Linearized:
            positive = _some(rng, n, proportion)
            return Linearized(1.0, np.zeros(n)).minus(auc_of(rng.standard_normal(n) + distance * positive, positive))

        yield from both(
            "1 - AUC",
            _format_case((n, proportion, distance)),
            rng,
            repeats,
            float(1 - ndtr(distance / np.sqrt(2))),
            level,
        )
    for n, proportion, old, new, correlation in (
        (200, 0.5, 1.5, 1.3, 0.9),
        (500, 0.1, 2, 1.8, 0.95),
        (1000, 0.02, 1.5, 1.4, 0.9),
        (200, 0.5, 3, 2.8, 0.99),
        (2000, 0.3, 1.5, 1.45, 0.99),
    ):

        def drop(
            rng: np.random.Generator,
            n: int = n,
            proportion: float = proportion,
            old: float = old,
            new: float = new,
            correlation: float = correlation,
        ) -> Linearized:
            positive, base = _some(rng, n, proportion), rng.standard_normal(n)
            other = correlation * base + np.sqrt(1 - correlation**2) * rng.standard_normal(n)
            return auc_of(base + old * positive, positive).minus(auc_of(other + new * positive, positive))

        truth = float(ndtr(old / np.sqrt(2)) - ndtr(new / np.sqrt(2)))
        yield from both("AUC drop", _format_case((n, proportion, old, new, correlation)), rng, repeats, truth, drop)


def explained(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate 1 - R² and the drop of R², for normal targets and normal or t₅ errors."""
    for heavy in (False, True):
        for n in (50, 200, 1000):
            errors = (
                (lambda rng, n: rng.standard_t(5, n) / np.sqrt(5 / 3))
                if heavy
                else (lambda rng, n: rng.standard_normal(n))
            )

            def level(rng: np.random.Generator, n: int = n, errors: Callable[..., Floats] = errors) -> Linearized:
                targets = rng.standard_normal(n)
                return ratio_of(0.25 * errors(rng, n) ** 2, (targets - targets.mean()) ** 2)

            def drop(rng: np.random.Generator, n: int = n, errors: Callable[..., Floats] = errors) -> Linearized:
                targets, base = rng.standard_normal(n), errors(rng, n)
                spread = (targets - targets.mean()) ** 2
                worse = 1.1 * (0.9 * base + np.sqrt(1 - 0.81) * errors(rng, n))
                return ratio_of(0.25 * worse**2, spread).minus(ratio_of(0.25 * base**2, spread))

            case = f"n={n}, errors {'t₅' if heavy else 'normal'}"
            yield from both("1 - R²", case, rng, repeats, 0.25, level)
            yield from both("R² drop", case, rng, repeats, 0.25 * 0.21, drop)


def grouped(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate an error rate with correlated groups of ten rows, by group and as if rows were independent."""
    for groups, wrong, together in ((20, 0.1, 0.5), (50, 0.1, 0.5), (200, 0.05, 0.5), (50, 0.02, 1.0), (50, 0.1, 0.0)):
        case, ids = _format_case((groups, wrong, together)), np.repeat(np.arange(groups), 10)
        ours, naive = [], []
        for _ in range(repeats):
            shared, own = np.repeat(rng.random(groups) < wrong, 10), rng.random(10 * groups) < wrong
            errors = np.where(np.repeat(rng.random(groups) < together, 10), shared, own).astype(float)
            one = mean_of(errors, largest=1.0)
            bounds = delta_method_bounds(unit_values(one.values, ids), largest=1.0, rows=errors.size, **LEVELS)
            plain = delta_method_bounds(one.values, largest=1.0, **LEVELS)
            ours.append((bounds.low, bounds.high))
            naive.append((plain.low, plain.high))
        yield from ends("groups", case, repeats, wrong, ours)
        yield from ends("groups", f"as independent rows: {case}", repeats, wrong, naive)


def resampled(rng: np.random.Generator, repeats: int) -> Iterator[Row]:
    """Simulate BCa bounds for a mean at its budget, a tenth of the repeats: all resamples, and as many as decide."""
    few = max(repeats // 10, 1)
    for name, draw, truth in (
        ("normal", lambda n: rng.standard_normal(n), 0.0),
        ("normal²", lambda n: rng.standard_normal(n) ** 2, 1.0),
        ("-normal²", lambda n: -(rng.standard_normal(n) ** 2), -1.0),
    ):
        for n in (50, 200):
            found, decided, counts = [], [], []
            for seed in range(few):
                values = draw(n)

                def mean(rows: NDArray[np.intp], values: Floats = values) -> float:
                    return float(values[rows].sum() / rows.size)

                bounds = bca_bounds(mean, n, seed=seed, expanded=True, **LEVELS)
                found.append((bounds.low, bounds.high))
                bounds, count = bca_bounds_against(mean, n, limit=truth, seed=seed, **LEVELS)
                decided.append((bounds.low, bounds.high))
                counts.append(count)
            yield from ends("BCa", f"{name}, n={n}", few, truth, found)
            yield from ends("BCa as decides", f"{name}, n={n}, {np.mean(counts):,.0f} resamples", few, truth, decided)


STUDIES = {"counted": counted, "ranked": ranked, "explained": explained, "grouped": grouped, "resampled": resampled}


def _some(rng: np.random.Generator, n: int, proportion: float) -> NDArray[np.bool_]:
    """Return which rows are positive, with at least two of either class."""
    positive = rng.random(n) < proportion
    positive[:2], positive[2:4] = True, False
    return np.asarray(rng.permutation(positive))


def _format_case(case: tuple[object, ...]) -> str:
    return ", ".join(str(part) if len(str(part)) < 24 else "10 equal classes" for part in case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000, help="simulated samples a row (default 4000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations (default 0)")
    parser.add_argument("--only", default=",".join(STUDIES), help=f"which studies (default all: {', '.join(STUDIES)})")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    studies = [STUDIES[name] for name in arguments.only.split(",")]
    rows = [row for study in progress(studies, "error rates") for row in study(rng, arguments.repeats)]
    print(f"Rates in percent; {arguments.repeats} samples a row, seed {arguments.seed}.")
    print(f"{'method':<30} {'case':<52} {'nominal':>8} {'observed':>9}")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
