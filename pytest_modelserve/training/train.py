"""Training: seeded, on one thread, and done once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts import Store, digest_of, own_code
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.progress import progress
from pytest_modelserve.training.extra import require
from pytest_modelserve.training.reproducible import check_seed, reproducible
from pytest_modelserve.training.source import ModelSource
from pytest_modelserve.training.trained import TrainedModel

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGES = ("torch", "numpy")


def train(source: ModelSource, *, seed: int = 0, store: Store) -> TrainedModel:
    """The trained model of `source`: from the store where the same training was done before, else trained now.

    The same training means the same source files behind `build`, `fit` and the module's classes, the same data, seed,
    and versions of Python, torch and numpy. Of several processes that ask at once one trains. On one machine a rerun
    gives the same bits: torch, numpy and random start from `seed`, on one thread, with deterministic algorithms; what
    the process had set before is put back, also after an error.

    UsageError for a seed out of range, for a `build` that returns no module, and for a training that leaves NaN or
    infinite weights (nothing is stored then); MissingDependencyError without torch. What `fit` raises passes through.
    """
    check_seed(seed)
    require("torch", "training")
    entry = store.get_or_build(
        _key(source, seed), lambda folder: _train_into(folder, source, seed), what=f"training of {source.name}"
    )
    record = json.loads((entry / "training.json").read_text(encoding="utf-8"))
    return TrainedModel(source, entry / "weights.pt", record["sha256"], seed)


def _key(source: ModelSource, seed: int) -> str:
    with reproducible(seed):
        module = _built(source)
    classes = {type(each) for each in module.modules()}
    return digest_of(
        {
            "stage": "training",
            "build": source.build,
            "fit": source.fit,
            "classes": sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)),
            "data": dict(source.data),
            "seed": seed,
            "python": sys.version_info[:2],
            "versions": package_versions(_PACKAGES),
            "own_code": own_code(),
        }
    )


def _train_into(folder: Path, source: ModelSource, seed: int) -> None:
    import torch

    with reproducible(seed):
        module = _built(source)
        # Copies: a `fit` that standardises in place would change the key of every later call.
        source.fit(module, {name: array.copy() for name, array in source.data.items()}, progress)
        weights = module.state_dict()
    _refuse_broken(weights, source, seed)
    torch.save(weights, folder / "weights.pt")
    record = {"name": source.name, "seed": seed, "sha256": digest_of(dict(weights))}
    (folder / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _built(source: ModelSource) -> nn.Module:
    from torch import nn

    module: Any = source.build()
    if not isinstance(module, nn.Module):
        raise UsageError(f"build() of {source.name!r} returns a torch module, not {type(module).__name__}")
    return module


def _refuse_broken(weights: dict[str, Tensor], source: ModelSource, seed: int) -> None:
    for name, tensor in weights.items():
        broken = int((~tensor.isfinite()).sum())
        if broken:
            raise UsageError(
                f"training {source.name!r} with seed {seed} left {broken} of {tensor.numel()} values of {name!r} NaN "
                "or infinite: lower the learning rate, clip the gradients, or look for NaN in the data"
            )
