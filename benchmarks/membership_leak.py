"""Membership inference on digits: `python -m benchmarks.membership_leak [--seeds 100] [--only noisy clean]`.

The 1,797 digits, a random third of which are the members and 1,198 the non-members, with 16 shadow models a seed:

- exchanged: models that cannot leak, because who is a member is drawn without regard to their training. How many of the
  seeds FAIL (0 expected), at max_tpr 0.01 and 0.05, and how many PASS at 0.05.
- noisy: a network trained until it has memorized 10 % random labels. How many seeds are found at max_tpr 0.05, and the
  mean rate and its lower bound. The threshold attack, the same models served.
- clean: the same network with the true labels, at max_tpr 0.01.
- oracle: the largest difference of our scores from the published formulas by scipy on the shadow models of a seed, and
  from those of another implementation: `--oracle advanced_mia.py` is the path of that file of tensorflow_privacy,
  `tensorflow_privacy/privacy/privacy_tests/membership_inference_attack/`. Also how often each row is in a shadow model.
- bounds: how often, of samples exactly at the budget, the lower bound at 0.99 is above the true rate (FAIL), and the
  upper bound at 0.95 below it (PASS); the worst of 24 kinds of samples.
- time: seconds of 16 shadow models by the pool of processes, and of 16 trainings one after another in this process, in
  turn, with the ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

import pytest_modelserve as ms
from fixtures.digits import DATA
from pytest_modelserve.artifacts import Store
from pytest_modelserve.privacy.shadow_models import (
    ScoreReading,
    ShadowPlan,
    label_log_odds,
    likelihood_ratios,
    shadow_log_odds,
)
from pytest_modelserve.stats.roc_bounds import true_positive_rate_bounds
from pytest_modelserve.training.model_pool import train_models

MEMBERS = 599
SPEC = ms.TrainSpec(loss="cross_entropy", epochs=100, batch_size=128, learning_rate=4e-3)
SHORT = ms.TrainSpec(loss="cross_entropy", epochs=20, batch_size=128, learning_rate=4e-3)
Rows = dict[str, NDArray[Any]]


def build() -> nn.Module:
    """Return the network."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def digits(seed: int, random_labels: float) -> tuple[Rows, Rows]:
    """Return members and non-members; a proportion of the labels is replaced by random ones."""
    with np.load(DATA) as stored:
        images = (stored["images"].reshape(-1, 64) / 16).astype(np.float32)
        labels = stored["labels"].astype(np.int64)
    rng = np.random.default_rng(seed)
    changed = rng.choice(len(labels), round(random_labels * len(labels)), replace=False)
    labels[changed] = rng.integers(0, 10, len(changed))
    order = rng.permutation(len(labels))
    first, second = order[:MEMBERS], order[MEMBERS:]
    return {"x": images[first], "y": labels[first]}, {"x": images[second], "y": labels[second]}


def source(members: Rows, spec: ms.TrainSpec = SPEC) -> ms.ModelSource:
    """Return the source of a network that is trained on the members."""
    return ms.ModelSource(name="digits_mlp", build=build, fit=spec, data=members, example_inputs=members["x"][:2])


def exchanged(seeds: int) -> None:
    verdicts: Counter[str] = Counter()
    fails = 0
    for seed in range(seeds):
        members, others = digits(seed, 0.1)
        pool = {name: np.concatenate([members[name], others[name]]) for name in members}
        trained_on = np.random.default_rng([seed, 1]).permutation(len(pool["y"]))[:MEMBERS]
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            trained = ms.train(source({name: array[trained_on] for name, array in pool.items()}, SHORT), store=store)
            model = dataclasses.replace(trained, source=source(members, SHORT))
            evidence = ms.measure_membership_leak(model, None, others, max_tpr=0.05, seed=seed, store=store)
        assert evidence.interval is not None
        verdicts[str(evidence.verdict)] += 1
        fails += evidence.interval.low > 0.01
        if (seed + 1) % 10 == 0 or seed + 1 == seeds:
            print(
                f"exchanged   {seed + 1} seeds: FAIL at max_tpr 0.01 {fails}, at 0.05 {verdicts['FAIL']}; at 0.05 PASS "
                f"{verdicts['PASS']}, INCONCLUSIVE {verdicts['INCONCLUSIVE']}",
                flush=True,
            )


def leaking(name: str, seeds: int, random_labels: float, max_tpr: float) -> None:
    rates, lows, found, by_threshold = [], [], 0, []
    for seed in range(seeds):
        members, others = digits(seed, random_labels)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            trained = ms.train(source(members), seed=seed, store=store)
            evidence = ms.measure_membership_leak(trained, None, others, max_tpr=max_tpr, seed=seed, store=store)
            pairs = [(rows["x"], rows["y"]) for rows in (members, others)]
            by_threshold.append(ms.measure_membership_leak(ms.serve(trained), *pairs, max_tpr=max_tpr).value)
        assert evidence.interval is not None
        rates.append(evidence.value)
        lows.append(evidence.interval.low)
        found += evidence.verdict is ms.Verdict.FAIL
        if (seed + 1) % 10 == 0 or seed + 1 == seeds:
            print(
                f"{name:<11} {seed + 1} seeds: found at max_tpr {max_tpr:g} in {found}; TPR at 1 % FPR "
                f"{100 * mean(rates):.1f} %, lower bound {100 * mean(lows):.1f} %, at least {100 * min(lows):.1f} %; "
                f"threshold attack {100 * mean(by_threshold):.1f} %",
                flush=True,
            )


def plain(target: NDArray[Any], shadows: NDArray[Any], included: NDArray[Any], *, fixed: bool) -> NDArray[Any]:
    """Return the likelihood ratios by the published formulas, row by row."""
    sides = (included, ~included)
    spreads = [
        np.concatenate(
            [scores[mask] - scores[mask].mean() for scores, mask in zip(shadows.T, side.T, strict=True)]
        ).std()
        for side in sides
    ]
    ratios = []
    for row, value in enumerate(target):
        of_row = [shadows[side[:, row], row] for side in sides]
        used = spreads if fixed else [scores.std() for scores in of_row]
        inside, outside = (
            norm.logpdf(value, scores.mean(), spread) for scores, spread in zip(of_row, used, strict=True)
        )
        ratios.append(inside - outside)
    return np.array(ratios)


def oracle(path: str | None) -> None:
    members, others = digits(0, 0.1)
    pool = {name: np.concatenate([members[name], others[name]]) for name in members}
    plan = ShadowPlan.of(len(pool["y"]), MEMBERS, 16, seed=0)
    reading = ScoreReading("logits")

    def log_odds(model: ms.TrainedModel) -> NDArray[Any]:
        with ms.serve(model) as predictor:
            return label_log_odds(next(iter(predictor.predict(pool["x"]).values())), pool["y"], reading)

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        target = log_odds(ms.train(source(members), store=store))
        settings: dict[str, Any] = {"seed": 0, "store": store, "processes": None, "time_limit_s": 600.0}
        shadows = shadow_log_odds(source(members), pool, plan, log_odds, **settings)
    counts = np.unique(plan.included.sum(axis=0))
    print(
        f"masks       each row in {', '.join(map(str, counts))} of 16, {np.ptp(plan.included.sum(axis=1))} rows apart"
    )
    other = None
    if path is not None:
        spec = importlib.util.spec_from_file_location("advanced_mia", path)
        assert spec is not None
        assert spec.loader is not None
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
    for name, prior, fixed in (("a row", 0.0, False), ("all rows", float("inf"), True)):
        ours = likelihood_ratios(target, shadows, plan.included, prior_shadows=prior)
        text = (
            f"variance of {name}: from scipy {relative(ours, plain(target, shadows, plan.included, fixed=fixed)):.1e}"
        )
        if other is not None:
            sides = [[scores[mask][:, None] for scores, mask in zip(shadows.T, side.T, strict=True)] for side in
                     (plan.included, ~plan.included)]  # fmt: skip
            theirs = -other.compute_score_lira(target[:, None], *sides, fix_variance=fixed, median_or_mean="mean")
            text += f", from tensorflow_privacy {relative(ours, theirs):.1e}"
        print(f"oracle      largest relative difference, {text}", flush=True)


def relative(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the largest difference, relative where scores are above 1."""
    return float((np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))).max())


def timing(rounds: int) -> None:
    members, others = digits(0, 0.1)
    pool = {name: np.concatenate([members[name], others[name]]) for name in members}
    plan = ShadowPlan.of(len(pool["y"]), MEMBERS, 16, seed=0)
    seconds: list[tuple[float, float]] = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            seeds = plan.seeds(number)
            train_models(lambda n: plan.source(source(members), pool, n), seeds, store=Store(Path(folder)))
            between = time.perf_counter()
        for each, seed in enumerate(seeds):
            shadow = plan.source(source(members), pool, each)
            torch.manual_seed(seed)
            shadow.fit_module(build(), seed=seed)
        seconds.append((between - started, time.perf_counter() - between))
    pooled, alone = (median(column) for column in zip(*seconds, strict=True))
    print(f"time        16 shadow models {pooled:.1f} s, one after another {alone:.1f} s, ratio {pooled / alone:.2f}")


def bounds(samples: int) -> None:
    """Print the worst rates at which the bounds miss, for normal scores and for a part of sure members."""
    rng = np.random.default_rng(0)
    worst = [0.0, 0.0]
    for n, m in ((1_198, 599), (1_000, 1_000), (2_000, 2_000)):
        for rate in (0.01, 0.02, 0.05, 0.2):
            for sure in (False, True):
                shift = 0.0 if sure else norm.isf(0.01) - norm.isf(rate)
                missed = np.zeros(2)
                for _ in range(samples):
                    members = rng.normal(shift, 1, m)
                    if sure:
                        members[rng.random(m) < (rate - 0.01) / 0.99] = 20
                    found = true_positive_rate_bounds(
                        members, rng.normal(size=n), false_positive_rate=0.01, low_level=0.99, high_level=0.95
                    )
                    missed += (found.low > rate, found.high < rate)
                worst = [max(w, float(each) / samples) for w, each in zip(worst, missed, strict=True)]
    print(f"bounds      {samples} samples of 24 kinds at the budget: FAIL in at most {100 * worst[0]:.2f} %, ", end="")
    print(f"PASS in at most {100 * worst[1]:.2f} %", flush=True)


PARTS = ("time", "oracle", "bounds", "noisy", "clean", "exchanged")


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="seeds with random labels")
    parser.add_argument("--exchanged", type=int, default=200, help="seeds of models that cannot leak")
    parser.add_argument("--clean", type=int, default=100, help="seeds with true labels")
    parser.add_argument("--samples", type=int, default=3_000, help="samples of each kind for the bounds")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the time")
    parser.add_argument("--oracle", help="path of advanced_mia.py of tensorflow_privacy")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {
        "time": lambda: timing(options.rounds),
        "oracle": lambda: oracle(options.oracle),
        "bounds": lambda: bounds(options.samples),
        "noisy": lambda: leaking("noisy", options.seeds, 0.1, 0.05),
        "clean": lambda: leaking("clean", options.clean, 0.0, 0.01),
        "exchanged": lambda: exchanged(options.exchanged),
    }
    for part in options.only:
        parts[part]()


if __name__ == "__main__":
    main()
