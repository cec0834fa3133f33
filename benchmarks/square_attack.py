"""Strength and queries of `ms.attacks.square` against ART's Square attack: `python -m benchmarks.square_attack`.

    python -m benchmarks.square_attack [--rows 300] [--iterations 500] [--peer PYTHON]

The five models of `benchmarks.gradient_attack`: three of digits, two of tumors. ART 1.20.1 runs with `--iterations`
iterations, ours with as many queries and with a third of them, both from one start. ART asks the model for all rows
and again for those that hold in every iteration; ours asks once for the rows that hold. ART attacks the bare module on
prepared rows, shaped as images, which it requires: the 30 measurements of a tumor and 6 pixels that the model does not
read. Ours is the whole gate on the exported file, on flat rows as they are before preprocessing: it verifies what it
found and makes its evidence.

"robust" is the accuracy in percent under attack: lower is the stronger attack. Queries are rows that the model
predicted, the verification of ours not counted. `--peer` is a Python as `benchmarks/art_peer.py` says.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pytest_modelserve as ms
from benchmarks.art_peer import Job, Peer
from benchmarks.gradient_attack import BALLS, Model, accuracy, models, ours

IMAGES = {"digits": (1, 8, 8), "tumors": (1, 6, 6)}
"""ART's Square attack takes images only."""


def art(peer: Peer, model: Model, norm: str, eps: float, iterations: int, folder: Path) -> tuple[float, int, float]:
    """Return the module's accuracy on ART's rows, its queries and its seconds."""
    paths = {name: str(folder / name) for name in ("module.pt", "rows.npz", "found.npz")}
    shape = IMAGES[model.data]
    features = model.prepared.shape[1]
    unread = int(np.prod(shape)) - features
    first = nn.Linear(features + unread, features, bias=False)  # leaves out the pixels that fill the image
    with torch.no_grad():
        first.weight.copy_(torch.eye(features, features + unread))
    torch.save(nn.Sequential(nn.Flatten(), first, model.module), paths["module.pt"])
    filled = np.pad(model.prepared, ((0, 0), (0, unread)))
    np.savez(paths["rows.npz"], rows=filled.reshape(-1, *shape), labels=model.labels)
    low, high, unit = (0.0, 1.0, 16.0) if model.limits else (-1e3, 1e3, 1.0)
    settings = {
        "norm": "inf" if norm == "linf" else 2,
        "eps": eps / unit,
        "max_iter": iterations,
        "batch_size": len(model.rows),
    }
    job = Job("square", *paths.values(), low=low, high=high, classes=int(model.labels.max()) + 1, settings=settings)
    result = peer.run(job)
    with np.load(paths["found.npz"]) as file:
        found = file["rows"].reshape(len(model.rows), -1)[:, :features].astype(np.float32)
    return accuracy(model, found), result.queries, result.seconds


def compare(model: Model, norm: str, eps: float, iterations: int, peer: Peer | None, folder: Path) -> None:
    equal = ours(model, ms.attacks.square(queries=iterations), norm, eps)
    third = ours(model, ms.attacks.square(queries=iterations // 3), norm, eps)
    other = None if peer is None else art(peer, model, norm, eps, iterations, folder)
    cells = [f"{100 * accuracy(model, model.prepared):6.1f}"]
    for robust, queries, seconds in (third, equal, other or (float("nan"),) * 3):
        cells.append(f"{100 * robust:6.1f} {queries:8.0f} {seconds:6.2f}")
    if other is not None:
        cells.append(f"{third[1] / other[1]:6.2f} {100 * (third[0] - other[0]):+6.1f}")
        cells.append(f"{equal[1] / other[1]:6.2f} {100 * (equal[0] - other[0]):+6.1f}")
    print(f"{model.data} {model.name}".ljust(28), f"{norm:>4} {eps:4g}", "  ".join(cells), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300, help="held-out rows at most (default: 300)")
    parser.add_argument("--iterations", type=int, default=500, help="iterations of ART (default: 500)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="a Python with ART")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        peer = None if given.peer is None else stack.enter_context(Peer.of(given.peer))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        columns = "robust  queries      s"
        print(f"{'':41}clean", *(f"{name:<22}" for name in ("a third of the queries", "as many", "ART")), sep="  ")
        print(f"{'':46}", *[columns] * 3, "queries/ART, points more robust: third, as many", sep="  ")
        for model in models(given.rows):
            with model.served:
                for norm, eps in BALLS[model.data]:
                    compare(model, norm, eps, given.iterations, peer, folder)


if __name__ == "__main__":
    main()
