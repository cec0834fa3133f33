"""Certified accuracy on 719 held-out digits, and its time: `python -m benchmarks.certified_digits`.

    python -m benchmarks.certified_digits [--rows 719] [--eps 0.04 0.08 0.16 0.32] [--seconds 10] [--repeats 3]

Four networks are trained on 1,078 digits (60 %) without any robust training, exported, and composed with the scaling of
pixels: eps is in gray levels of 16, so that 0.16 is 0.01 of the range. "interval", "linear" and "branch" are methods of
`ms.assert_certified`: the proportion of rows that are right and certified, in percent. "fooled" leaves out the rows
for which an input with another label was confirmed: robust accuracy lies between "branch" and it. The times are those
of the whole gate, opening of the session included: the median of the repeats. Each ends after `--seconds`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from example_models.digits_cnn.model import DigitsCNN, fit
from fixtures.digits import DATA

TRAINING_ROWS = 1078


class Flat(nn.Module):
    """Dense layers of these widths on images (batch, 8, 8), with an activation between them."""

    def __init__(self, *widths: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((64, *widths), (*widths, 10), strict=True):
            layers += [nn.Linear(before, after), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # noqa: D102
        scores: torch.Tensor = self.layers(image)
        return scores


MODELS = {
    "mlp-64": lambda: Flat(64),
    "mlp-100-100": lambda: Flat(100, 100),
    "gelu-64-64": lambda: Flat(64, 64, activation=nn.GELU),
    "digits_cnn": DigitsCNN,
}


def models(folder: Path) -> Iterator[tuple[str, ms.Artifact, np.ndarray, np.ndarray]]:
    """Yield name, served file, held-out images and labels."""
    with np.load(DATA) as file:
        images, labels = file["images"].astype(np.float32), file["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    training, held_out = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    pipeline = ms.Pipeline(folder)
    for name, build in MODELS.items():
        source = ms.ModelSource(
            name=name, build=build, fit=fit, data={"images": images[training] / 16, "labels": labels[training]},
            example_inputs=images[:2] / 16,
        )  # fmt: skip
        exported = pipeline.export(pipeline.train(source))
        yield name, pipeline.compose(exported, preprocess=[ms.Scale(1 / 16)]), images[held_out], labels[held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=719)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.04, 0.08, 0.16, 0.32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods = " ".join(f"{method:>15}" for method in ("interval", "linear", "branch"))
    print(f"{'model':<12} {'eps':>5} {'clean':>6} {methods} {'fooled':>6} {'open':>5}")
    with tempfile.TemporaryDirectory() as folder:
        for name, artifact, images, labels in models(Path(folder)):
            rows, truth = images[: given.rows], labels[: given.rows]
            for eps in given.eps:
                cells, evidence = [], None
                for method, repeats in (("interval", given.repeats), ("linear", given.repeats), ("branch", 1)):
                    seconds = []
                    for _ in range(repeats):
                        started = time.perf_counter()
                        evidence = ms.measure_certified_accuracy(
                            artifact, rows, truth, eps=eps, min_accuracy=0.5, low=0, high=16, method=method,
                            time_limit_s=given.seconds,
                        )  # fmt: skip
                        seconds.append(time.perf_counter() - started)
                    cells.append(f"{100 * evidence.value:6.1f} {statistics.median(seconds):6.2f} s")
                by_name = {quantity.name: quantity.value for quantity in evidence.quantities}
                print(
                    f"{name:<12} {eps:5g} {100 * by_name['clean accuracy']:6.1f} "
                    f"{' '.join(f'{cell:>15}' for cell in cells)} "
                    f"{100 * by_name['attacked accuracy']:6.1f} {by_name['open rows']:5.0f}"
                )


if __name__ == "__main__":
    main()
