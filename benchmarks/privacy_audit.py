"""Audits of private trainings on digits: sabotaged ones that are found, and honest ones that are not.

    python -m benchmarks.privacy_audit [--epsilon 0.5 1 2] [--runs 20] [--honest 40] [--only "clipping off"]

Each run trains a multilayer perceptron on 1,300 digits again, with other canaries, noise and rows of the steps.
*guesses*: runs in which the guesses about canaries alone refute the claimed epsilon. *steps*: runs in which measured
noise, clipping or sampling do. *FAIL*: runs with either. *low*: the median of the lower bound of epsilon by guesses.
*power*: the planned probability that guesses find noise of a quarter. *seconds*: the median of a run.

The sabotage lies in the private optimizer, or in opacus' sampler: *clipping off*, *noise / 4*, *full batches*,
*clipping by layer* (each parameter alone to the whole norm), and *shuffled* (batches of a permutation, for which the
accounting does not hold, and which is unlikely to be found).

Goals, at a claimed epsilon of at most 2: the first three found in at least 19 of 20 runs, honest ones in none of 40.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn

import pytest_modelserve as ms
from fixtures.digits import DATA
from pytest_modelserve.artifacts import Store
from pytest_modelserve.progress import progress

ROWS, DELTA = 1300, 1e-5
COLUMNS = ("guesses", "steps", "FAIL", "low", "power", "seconds")


class WithoutClipping(DPOptimizer):  # type: ignore[misc]
    """Adds the gradients of rows as they are."""

    def clip_and_accumulate(self) -> None:
        """See opacus."""
        for each in self.params:
            each.summed_grad = self._get_flat_grad_sample(each).sum(0)


class ClippingByLayer(DPOptimizer):  # type: ignore[misc]
    """Clips the gradient of each parameter alone, each to the whole norm."""

    def clip_and_accumulate(self) -> None:
        """See opacus."""
        for each in self.params:
            rows = self._get_flat_grad_sample(each)
            factors = self.max_grad_norm / (rows.flatten(1).norm(dim=1) + 1e-6)
            each.summed_grad = torch.einsum("i,i...", factors.clamp(max=1), rows)


class QuarterNoise(DPOptimizer):  # type: ignore[misc]
    """Adds a quarter of the noise."""

    def add_noise(self) -> None:
        """See opacus."""
        claimed = self.noise_multiplier
        self.noise_multiplier = claimed / 4
        super().add_noise()
        self.noise_multiplier = claimed


@contextmanager
def sampled_by(draw: Callable[[Any], Iterator[list[int]]]) -> Iterator[None]:
    """Replace the sampling of opacus."""
    kept = UniformWithReplacementSampler.__iter__
    UniformWithReplacementSampler.__iter__ = draw
    try:
        yield
    finally:
        UniformWithReplacementSampler.__iter__ = kept


def full_batch(sampler: Any) -> Iterator[list[int]]:
    return iter([list(range(sampler.num_samples))])


def shuffled() -> Callable[[Any], Iterator[list[int]]]:
    """Return a sampler that draws the rows in batches of a permutation."""
    left: list[int] = []
    generator = np.random.default_rng(0)

    def sample(sampler: Any) -> Iterator[list[int]]:
        size = round(sampler.num_samples * sampler.sample_rate)
        if len(left) < size:
            left[:] = generator.permutation(sampler.num_samples).tolist()
        batch = left[:size]
        del left[:size]
        return iter([batch])

    return sample


KINDS: dict[str, tuple[type[DPOptimizer] | None, Callable[[], Any]]] = {
    "honest": (None, lambda: None),
    "clipping off": (WithoutClipping, lambda: None),
    "noise / 4": (QuarterNoise, lambda: None),
    "full batches": (None, lambda: full_batch),
    "clipping by layer": (ClippingByLayer, lambda: None),
    "shuffled": (None, shuffled),
}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def source(epsilon: float, optimizer: type[DPOptimizer] | None, epochs: int) -> ms.ModelSource:
    with np.load(DATA) as file:
        data = {
            "x": (file["images"].reshape(-1, 64)[:ROWS] / 16).astype(np.float32),
            "y": file["labels"][:ROWS].astype(int),
        }
    privacy = ms.PrivateTraining(epsilon=epsilon, delta=DELTA, max_grad_norm=1.0, optimizer=optimizer)
    spec = ms.TrainSpec(loss="cross_entropy", epochs=epochs, batch_size=128, learning_rate=5e-3, privacy=privacy)
    return ms.ModelSource(name="digits", build=build, fit=spec, data=data, example_inputs=data["x"][:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind of sabotage")
    parser.add_argument("--honest", type=int, default=40, help="honest runs")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--only", choices=list(KINDS), nargs="+", default=list(KINDS))
    options = parser.parse_args()
    print(f"{'epsilon':>7} {'training':18}" + "".join(f" {each:>8}" for each in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for epsilon in options.epsilon:
            for kind in options.only:
                report(epsilon, kind, options.honest if kind == "honest" else options.runs, options.epochs, store)


def report(epsilon: float, kind: str, runs: int, epochs: int, store: Store) -> None:
    optimizer, sampling = KINDS[kind]
    trained = ms.train(source(epsilon, optimizer, epochs), store=store)
    guesses = steps = failed = 0
    lows, seconds, power = [], [], 0.0
    for seed in progress(range(runs), f"epsilon {epsilon:g}, {kind}"):
        began = time.perf_counter()
        with sampled_by(sampling() or UniformWithReplacementSampler.__iter__):
            evidence = ms.measure_privacy_budget(trained, max_epsilon=epsilon, delta=DELTA, seed=seed)
        seconds.append(time.perf_counter() - began)
        _, audited, measured, _ = evidence.quantities
        guesses += audited.verdict is ms.Verdict.FAIL
        steps += measured.verdict is ms.Verdict.FAIL
        failed += not evidence.passed
        audit = evidence.details["audit"]
        lows.append(audit["epsilon_low"])
        power = audit["power_against_a_quarter_of_the_noise"]
    counts = "".join(f" {f'{count}/{runs}':>8}" for count in (guesses, steps, failed))
    print(f"{epsilon:7g} {kind:18}{counts} {median(lows):8.2f} {power:8.2f} {median(seconds):8.1f}", flush=True)


if __name__ == "__main__":
    main()
