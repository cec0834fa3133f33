"""Certified, attacked and clean rows of 20 models at 5 radii: `python -m benchmarks.certificate_soundness`.

    python -m benchmarks.certificate_soundness [--rows 30] [--tries 1000000] [--steps 20] [--seconds 5] [--models NAME]

On every row a certificate must imply that attacks find nothing, and that must imply a right prediction without any
change. The attacks are PGD by the gradients of the torch module and Square (`ms.attacks`), on the served file, and
branch and bound with `--seconds` for each model and radius. Then all certified rows, at all radii, are tried `--tries`
times in all, a third each: uniform points of the box, corners, and the ends of PGD of `--steps` steps by the module's
gradient from random starts. Every try goes through the served model. Families come from `fixtures.families`, with their
own predictions as labels. Exits with 1 if a certified row was fooled once, or the order does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from benchmarks.gradient_attack import fitted
from fixtures.breast_cancer import load
from fixtures.digits import DATA
from fixtures.families import FAMILIES
from pytest_modelserve.metrics import Output, decode
from pytest_modelserve.robustness.attacks.attacked_rows import attack_rows
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel
from pytest_modelserve.robustness.batched_predictor import batched
from pytest_modelserve.robustness.certificates import Network
from pytest_modelserve.robustness.certificates.certified_rows import box_of, certify_rows, question_of
from pytest_modelserve.serving import Predictor

RADII = {"digits": (0.005, 0.01, 0.02, 0.04, 0.08), "tumors": (0.02, 0.05, 0.1, 0.3, 0.6),
         "families": (1e-4, 1e-3, 5e-3, 0.02, 0.1)}  # fmt: skip
KINDS = ("random", "corners", "PGD")
_BATCH = 8192


class Residual(nn.Module):
    """A block with a shortcut."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of input and block."""
        result: torch.Tensor = x + self.block(x)
        return result


def mlp(inputs: int, outputs: int, activation: Callable[[], nn.Module], hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def cnn(*features: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *features, nn.Flatten(), nn.Linear(width, 10))


MODULES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "mlp relu 64-64": ("digits", lambda: mlp(64, 10, nn.ReLU, (64,))),
    "mlp relu 5 layers": ("digits", lambda: mlp(64, 10, nn.ReLU, (32, 32, 32, 32))),
    "mlp leaky relu": ("digits", lambda: mlp(64, 10, nn.LeakyReLU, (32, 32))),
    "mlp tanh": ("digits", lambda: mlp(64, 10, nn.Tanh, (32, 32))),
    "mlp sigmoid": ("digits", lambda: mlp(64, 10, nn.Sigmoid, (32, 32))),
    "mlp gelu": ("digits", lambda: mlp(64, 10, nn.GELU, (32, 32))),
    "mlp softmax head": ("digits", lambda: nn.Sequential(*mlp(64, 10, nn.ReLU, (32, 32)), nn.Softmax(1))),
    "mlp batch norm": (
        "digits",
        lambda: nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    ),
    "mlp residual": (
        "digits",
        lambda: nn.Sequential(nn.Linear(64, 32), Residual(nn.ReLU(), nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 10)),
    ),
    "cnn max pool": ("digits", lambda: cnn(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), width=128)),
    "cnn average pool": (
        "digits",
        lambda: cnn(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), width=32),
    ),
    "cnn batch norm": (
        "digits",
        lambda: cnn(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), width=72),
    ),
    "cnn residual": (
        "digits",
        lambda: cnn(
            nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), Residual(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()), width=54
        ),
    ),
    "tumors relu": ("tumors", lambda: mlp(30, 2, nn.ReLU, (16, 16))),
    "tumors sigmoid": ("tumors", lambda: mlp(30, 2, nn.Sigmoid, (16,))),
}  # fmt: skip
DERIVED = {
    "mlp int8": ("mlp relu 64-64", "int8-static"),
    "mlp tanh int8": ("mlp tanh", "int8-static"),
    "cnn int8": ("cnn average pool", "int8-static"),
    "mlp pruned": ("mlp relu 64-64", "pruned"),
    "family mlp": ("mlp", "family"),
}
NAMES = (*MODULES, *DERIVED)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A served model, the module whose gradients attack it, and rows with labels."""

    name: str
    artifact: ms.Artifact
    module: nn.Module
    rows: NDArray[np.float32]
    labels: NDArray[np.int64]
    radii: tuple[float, ...]
    limits: tuple[float | None, float | None]


def data_of(kind: str) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return rows and labels for training and of held-out data."""
    if kind == "digits":
        with np.load(DATA) as file:
            images, labels = file["images"].reshape(-1, 64).astype(np.float32) / 16, file["labels"].astype(np.int64)
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images[order], labels[order]
        return images[:1200], labels[:1200], images[1200:], labels[1200:]
    cancer = load()
    mean, scale = cancer.training.rows.mean(axis=0), cancer.training.rows.std(axis=0)
    first, second = ((part.rows - mean) / scale for part in (cancer.training, cancer.held_out))
    return first, cancer.training.benign, second, cancer.held_out.benign


def models(names: list[str], count: int) -> Iterator[Model]:
    modules: dict[str, tuple[nn.Module, ms.Artifact]] = {}
    for number, name in enumerate(NAMES):
        base, change = DERIVED.get(name, (name, ""))
        if name not in names and not any(DERIVED.get(each, ("",))[0] == name for each in names):
            continue
        if change == "family":
            family = FAMILIES[base]
            (rows,) = family.inputs(count, seed=1).values()
            module = family.build().eval()
            artifact = ms.export(module, rows[:2], dynamic=family.dynamic, name="family")
            with torch.no_grad():
                labels = module(torch.from_numpy(rows)).argmax(1).numpy()
            yield Model(name, artifact, module, rows, labels, RADII["families"], (None, None))
            continue
        kind = MODULES[base][0]
        train, targets, held_out, truth = data_of(kind)
        if not change:
            torch.manual_seed(number)
            module = fitted(MODULES[name][1](), train, targets, 30)
            modules[name] = module, ms.export(module, train[:2], name=name.replace(" ", "_"))
        elif change == "pruned":
            pruned = ms.prune(modules[base][0], amount=0.6, example_inputs=train[:2])
            modules[name] = pruned.build(), ms.export(pruned, train[:2])
        else:
            module, artifact = modules[base]
            modules[name] = module, ms.compress(artifact, change, calibration=train)
        if name in names:
            limits = (0.0, 1.0) if kind == "digits" else (None, None)
            module, artifact = modules[name]
            yield Model(name, artifact, module, held_out[:count], truth[:count], RADII[kind], limits)


@dataclass(slots=True)
class Counts:
    """Rows at all radii, and tries by kind."""

    cells: int = 0
    certified: int = 0
    attacked: int = 0
    clean: int = 0
    disorder: int = 0
    tries: Counter[str] = field(default_factory=Counter)
    fooled: Counter[str] = field(default_factory=Counter)


def wrong(predictor: Predictor, inputs: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    found = [next(iter(predictor.predict(inputs[at : at + _BATCH]).values())) for at in range(0, len(inputs), _BATCH)]
    return np.asarray(decode(np.concatenate(found), "argmax").labels != labels)


def masks(model: Model, predictor: Predictor, seconds: float) -> tuple[list[ThreatModel], Any, list[Any], float]:
    """Return threats, clean rows, and for each radius the certified rows and those that no attack fooled."""
    started = time.perf_counter()
    low, high = model.limits
    threats = [ThreatModel(base=model.rows, norm="linf", eps=eps, low=low, high=high) for eps in model.radii]
    network = Network.of(model.artifact, model.rows)
    question = question_of(network, model.labels, "argmax")
    clean = ~wrong(predictor, model.rows, model.labels)
    batch, feed = batched(predictor, model.rows)
    attacked = attack_rows(
        batch,
        feed,
        model.labels,
        input_name=next(iter(feed)),
        output=Output(decode="argmax"),
        threats=threats,
        attacks=lambda _: [ms.attacks.pgd(model.module, steps=20, surrogate=True), ms.attacks.square(queries=100)],
        seed=0,
        dependent_inputs={},
    )
    found = []
    for number, threat in enumerate(threats):

        def confirm(inputs: NDArray[Any], which: NDArray[np.int64], threat: ThreatModel = threat) -> NDArray[np.bool_]:
            return threat.admissible(which, inputs) & wrong(predictor, inputs, model.labels[which])

        result = certify_rows(network, box_of(threat), question, method="branch", time_limit_s=seconds, confirm=confirm)
        robust = attacked.robust(number)
        robust[list(result.counterexamples)] = False
        found.append((result.certified, robust))
    return threats, clean, found, time.perf_counter() - started


def descended(model: Model, threat: ThreatModel, rows: NDArray[np.int64], steps: int, rng: Any) -> NDArray[np.float64]:
    """Return units (m, ...) of the box to which PGD comes from random starts.

    Each step goes along the sign of the gradient of a margin by the module: to the best other class in half of the
    rows, to a random one in the others. Steps shrink from 1 to 0.1 of the radius.
    """
    base, scale = torch.from_numpy(model.rows[rows]), float(np.max(threat.scale))
    low, high = (sign * np.inf if limit is None else limit for limit, sign in zip(model.limits, (-1, 1), strict=True))
    labels = torch.from_numpy(model.labels[rows])[:, None]
    units = torch.from_numpy(rng.uniform(-1, 1, base.shape).astype(np.float32))
    target = torch.from_numpy(rng.integers(0, 1 << 16, (len(rows), 1)))
    by_best = torch.from_numpy(rng.uniform(size=(len(rows), 1)) < 0.5)
    for step in range(steps):
        inputs = (base + scale * units).clamp(low, high).requires_grad_()
        scores = model.module(inputs)
        others = scores.scatter(1, labels, -torch.inf)
        classes = scores.shape[1]
        other = (labels + 1 + target % (classes - 1)) % classes
        rival = torch.where(by_best, others.max(1, keepdim=True).values, scores.gather(1, other))
        (gradient,) = torch.autograd.grad((rival - scores.gather(1, labels)).sum(), inputs)
        units = (units + 0.1 ** (step / max(1, steps - 1)) * gradient.sign()).clamp(-1, 1)
    return np.asarray(units.numpy(), np.float64)


def tried(
    model: Model, predictor: Predictor, threat: ThreatModel, rows: NDArray[np.int64], tries: int, steps: int, seed: int
) -> Iterator[tuple[str, int, int]]:
    """Yield for each kind the number of tries through the served model, and of those that fooled a row."""
    rng = np.random.default_rng(seed)
    for kind in KINDS if len(rows) else ():
        done = fooled = 0
        while done < tries // len(KINDS):
            each = np.repeat(rows, max(1, min(_BATCH, tries // len(KINDS) - done) // len(rows)))
            shape = (len(each), *model.rows.shape[1:])
            if kind == "random":
                units = rng.uniform(-1, 1, shape)
            elif kind == "corners":  # in half of the rows, few features change
                units = rng.choice([-1.0, 1.0], shape)
                units[::2] *= rng.uniform(size=units[::2].shape) < 0.2
            else:
                units = descended(model, threat, each, steps, rng)
            fooled += int(wrong(predictor, threat.place(each, units), model.labels[each]).sum())
            done += len(each)
        yield kind, done, fooled


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", type=int, default=30, help="rows of each model")
    parser.add_argument("--tries", type=int, default=1_000_000, help="tries of certified rows in all")
    parser.add_argument("--steps", type=int, default=20, help="steps of PGD for one try")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of bounds for one model and radius")
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES), metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    total = Counts()
    print(f"{'model':18} {'radius: certified ≤ attacked, of right rows':62} {'tries':>8} {'fooled':>6} {'s':>6}")
    for model in models(options.models, options.rows):
        with ms.serve(model.artifact) as predictor:
            threats, clean, found, seconds = masks(model, predictor, options.seconds)
            cells = []
            tries, fooled = Counter[str](), Counter[str]()
            reached = [number for number, (certified, _) in enumerate(found) if certified.any()]
            for number, (threat, (certified, robust)) in enumerate(zip(threats, found, strict=True)):
                total.cells += len(clean)
                total.certified += int(certified.sum())
                total.attacked += int(robust.sum())
                total.clean += int(clean.sum())
                total.disorder += int((certified & ~robust).sum() + (robust & ~clean).sum())
                cells.append(f"{model.radii[number]:g}: {certified.sum()} ≤ {robust.sum()}")
                share = options.tries // (len(options.models) * max(1, len(reached))) + 1
                for kind, done, bad in tried(
                    model, predictor, threat, np.flatnonzero(certified), share, options.steps, number
                ):
                    tries[kind] += done
                    fooled[kind] += bad
            total.tries += tries
            total.fooled += fooled
            line = f"{', '.join(cells)}, of {clean.sum()}"
            print(f"{model.name:18} {line:62} {tries.total():8} {fooled.total():6} {seconds:6.1f}", flush=True)
    print(
        f"{total.cells} cells: {total.certified} certified, {total.attacked} stood the attacks, {total.clean} right; "
        f"{total.disorder} out of order"
    )
    for kind in KINDS:
        print(f"{kind:8} {total.fooled[kind]} of {total.tries[kind]:,} tries fooled a certified row")
    seconds = time.perf_counter() - started
    print(f"together {total.fooled.total()} of {total.tries.total():,} tries, {seconds:.0f} s")
    sys.exit(bool(total.disorder or total.fooled.total()))


if __name__ == "__main__":
    main()
