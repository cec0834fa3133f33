"""Strength and time of `ms.attacks.pgd` against ART's PGD at equal steps: `python -m benchmarks.gradient_attack`.

    python -m benchmarks.gradient_attack [--rows 300] [--steps 40] [--repeats 3] [--peer PYTHON]

Five models, trained here: three of digits, two of tumors. Both attack the same rows with the same number of steps of
the same size from one random start, each in its usual form: ours with a batch of its own choice, ART 1.20.1 in one
batch of all rows, and in batches of 32, its default. Ours is the whole gate on the exported file: it attacks the rows
before preprocessing, asks the served file for every row that the module predicts wrong, verifies what it found and
makes its evidence. ART attacks the bare module on prepared rows. The times of ours and ART are taken in turn in one
run; both use one thread.

"robust" is the accuracy in percent under attack: lower is the stronger attack. "APGD" is ours with momentum and halved
steps at the same number of steps. `--peer` is a Python as `benchmarks/art_peer.py` says.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from benchmarks.art_peer import Job, Peer
from fixtures.breast_cancer import load
from fixtures.digits import DATA

STEP = 0.1
"""Size of a step as a proportion of eps."""
BALLS = {"digits": (("linf", 1.0), ("l2", 4.0)), "tumors": (("linf", 0.25), ("l2", 0.75))}
"""Radii: of digits in gray levels of 16, of tumors in standard deviations."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A trained module on prepared rows, its exported file with preprocessing, and held-out raw rows."""

    name: str
    data: str
    module: nn.Module
    served: ms.Predictor
    preprocess: list[Any]
    rows: NDArray[np.float32]
    prepared: NDArray[np.float32]
    labels: NDArray[np.int64]
    unit: NDArray[np.float64] | float
    limits: tuple[float, float] | None


def digits_modules() -> dict[str, nn.Module]:
    return {
        "CNN": nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
        ),
        "MLP 64-64-10": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        "linear": nn.Sequential(nn.Linear(64, 10)),
    }  # fmt: skip


def tumor_modules() -> dict[str, nn.Module]:
    return {
        "MLP 30-64-2": nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2)),
        "MLP 30-32-32-2, GELU": nn.Sequential(
            nn.Linear(30, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 2)
        ),
    }


def fitted(module: nn.Module, rows: NDArray[np.float32], labels: NDArray[np.int64], epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    x, y = torch.from_numpy(rows), torch.from_numpy(labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module.eval()


def models(rows: int) -> Iterator[Model]:
    """Yield the five models, each with at most `rows` held-out rows."""
    with np.load(DATA) as file:
        images, digit = file["images"].reshape(-1, 64).astype(np.float32), file["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(digit))
    images, digit = images[order], digit[order]
    tumors = load()
    mean, std = tumors.training.rows.mean(axis=0, dtype=np.float64), tumors.training.rows.std(axis=0, dtype=np.float64)
    for data, modules, train, test, steps, unit, limits in (
        (
            "digits", digits_modules(), (images[:1200], digit[:1200]), (images[1200:], digit[1200:]),
            [ms.Scale(1 / 16)], 1.0, (0.0, 16.0),
        ),
        (
            "tumors", tumor_modules(), (tumors.training.rows, tumors.training.benign),
            (tumors.held_out.rows, tumors.held_out.benign), [ms.Standardize(mean, std)], std, None,
        ),
    ):  # fmt: skip

        def prepare(x: NDArray[np.float32], data: str = data) -> NDArray[np.float32]:
            return (x / 16 if data == "digits" else (x - mean) / std).astype(np.float32)

        for number, (name, module) in enumerate(modules.items()):
            torch.manual_seed(number)
            for layer in module.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
            fitted(module, prepare(train[0]), train[1], 30 if data == "digits" else 60)
            exported = ms.export(module, prepare(train[0][:2]), name=name.split()[0].lower())
            served = ms.serve(ms.compose(exported, preprocess=steps), name=name)
            some = test[0][:rows], test[1][:rows]
            yield Model(name, data, module, served, steps, some[0], prepare(some[0]), some[1], unit, limits)


def ours(model: Model, attack: ms.attacks.Attack, norm: str, eps: float) -> tuple[float, float, float]:
    """Return robust accuracy, queries of the served file and seconds of the whole gate."""
    low, high = model.limits or (None, None)
    start = time.process_time()
    found = ms.measure_robust_accuracy(
        model.served, model.rows, model.labels, eps=eps, norm=norm, scale=model.unit, low=low, high=high,
        min_accuracy=0.5, attacks=[attack],
    )  # fmt: skip
    seconds = time.process_time() - start
    queries = next(each.value for each in found.quantities if each.name == "queries")
    return found.value, queries, seconds


def accuracy(model: Model, prepared: NDArray[np.float32]) -> float:
    with torch.no_grad():
        return float((model.module(torch.from_numpy(prepared)).argmax(dim=1).numpy() == model.labels).mean())


def art(peer: Peer, model: Model, norm: str, eps: float, steps: int, batch: int, folder: Path) -> tuple[float, float]:
    """Return the module's accuracy on ART's rows, and its seconds."""
    paths = {name: str(folder / name) for name in ("module.pt", "rows.npz", "found.npz")}
    torch.save(model.module, paths["module.pt"])
    np.savez(paths["rows.npz"], rows=model.prepared, labels=model.labels)
    low, high, unit = (0.0, 1.0, 16.0) if model.limits else (-1e3, 1e3, 1.0)
    settings = {
        "norm": "inf" if norm == "linf" else 2,
        "eps": eps / unit,
        "eps_step": STEP * eps / unit,
        "max_iter": steps,
        "num_random_init": 1,
        "batch_size": batch,
    }
    job = Job("pgd", *paths.values(), low=low, high=high, classes=int(model.labels.max()) + 1, settings=settings)
    seconds = peer.seconds(job)
    with np.load(paths["found.npz"]) as file:
        return accuracy(model, file["rows"].astype(np.float32)), seconds


def compare(model: Model, norm: str, eps: float, steps: int, repeats: int, peer: Peer | None, folder: Path) -> None:
    settings: dict[str, Any] = {"steps": steps, "preprocess": model.preprocess}
    pgd, apgd = ms.attacks.pgd(model.module, step_size=STEP, **settings), ms.attacks.apgd(model.module, **settings)
    ours(model, pgd, norm, eps)
    times: dict[str, list[float]] = {"ours": [], "apgd": [], "art": [], "art 32": []}
    robust: dict[str, float] = {}
    for _ in range(repeats):
        robust["ours"], queries, seconds = ours(model, pgd, norm, eps)
        times["ours"].append(seconds)
        if peer is not None:
            robust["art"], seconds = art(peer, model, norm, eps, steps, len(model.rows), folder)
            times["art"].append(seconds)
            _, seconds = art(peer, model, norm, eps, steps, 32, folder)
            times["art 32"].append(seconds)
        robust["apgd"], _, seconds = ours(model, apgd, norm, eps)
        times["apgd"].append(seconds)
    mid = {name: statistics.median(each) for name, each in times.items() if each}
    cells = [f"{100 * accuracy(model, model.prepared):6.1f}", f"{100 * robust['ours']:6.1f}"]
    cells += [f"{100 * robust['art']:6.1f}" if "art" in robust else "     -", f"{100 * robust['apgd']:6.1f}"]
    cells += [f"{queries:8.0f}", f"{1e3 * mid['ours']:8.0f}"]
    cells += [f"{1e3 * mid[name]:8.0f}" if name in mid else "       -" for name in ("art", "art 32")]
    cells += [f"{mid['ours'] / mid['art']:8.2f}" if "art" in mid else "       -", f"{1e3 * mid['apgd']:8.0f}"]
    print(f"{model.data} {model.name}".ljust(28), f"{norm:>4} {eps:4g}", *cells, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300, help="held-out rows at most (default: 300)")
    parser.add_argument("--steps", type=int, default=40, help="gradient steps (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each attack, in turn (default: 3)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="a Python with ART")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        peer = None if given.peer is None else stack.enter_context(Peer.of(given.peer))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(
            "robust accuracy in %, ms".ljust(28),
            "     ball",
            " clean   ours    ART   APGD  queries     ours      ART   ART 32 ours/ART     APGD",
        )
        for model in models(given.rows):
            with model.served:
                for norm, eps in BALLS[model.data]:
                    compare(model, norm, eps, given.steps, given.repeats, peer, folder)


if __name__ == "__main__":
    main()
