"""Seeded training: a model source, its trained weights, and the digests that identify them."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Store, as_store, digest_of, package_hash
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, check_call, require
from pytest_modelserve.evidence import Subject, package_versions
from pytest_modelserve.progress import progress
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.pytree import Path as TreePath, leaves, map_leaves, path_name
from pytest_modelserve.serving.serve import is_torch_module
from pytest_modelserve.training.checkpoint import CheckpointFile, check_every
from pytest_modelserve.training.data_parallel import (
    check_hang_limit,
    check_processes,
    cluster_group,
    cluster_size,
    fit_in_processes,
    lost_peers,
)
from pytest_modelserve.training.module_digest import digestible, state_digest, weights_digest
from pytest_modelserve.training.seeds import check_seed, reproducible
from pytest_modelserve.training.train_spec import TrainSpec, split_rows
from pytest_modelserve.training.training_loop import Group, TrainingMetrics, run_training

if TYPE_CHECKING:
    from torch import nn

# One array, or a mapping or sequence of arrays and of further mappings and sequences.
Examples = NDArray[Any] | Mapping[str, Any] | Sequence[Any]

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PACKAGES = ("torch", "numpy")
DIVERGED = "lower the learning rate, clip the gradients, or look for NaN in the data"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ModelSource:
    """A model before training: how to build it, how to fit it, and the data.

    Two sources are equal only if they are the same object.

    Args:
        name: Name of the model in reports and files: letters, digits, `.`, `_` and `-`.
        build: Function without arguments that returns the untrained module.
        fit: A `TrainSpec`, or `fit(module, data)`, which trains the module in place on copies of `data`. If it has a
            parameter `progress`, it also gets `progress(batches, "epoch 3")`, which shows a bar on a terminal. Bind
            hyperparameters with `functools.partial(fit, epochs=30)`: they and the source files of both functions belong
            to the store's key.
        data: Arrays by name, each with at least one row, and for a TrainSpec one row a sample. NaN is allowed, as a
            model may impute it.
        example_inputs: One array for a module of one input, a tuple by position, or a mapping by the names of
            `forward`'s parameters, nested where a parameter takes a mapping. Rows lie along the first axis.

    Raises:
        UsageError: `name` is not a file name, or `build` or `fit` cannot be called as described.
        InputError: `data` or `example_inputs` are not arrays, are empty, or do not suit a TrainSpec.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> def build():
        ...     import torch
        ...     return torch.nn.Linear(4, 2)
        >>> def fit(module, data):
        ...     "Train the module in place."
        >>> x = np.zeros((8, 4), np.float32)
        >>> ms.ModelSource(name="linear", build=build, fit=fit, data={"x": x}, example_inputs=x[:2]).name
        'linear'
    """

    name: str
    build: Callable[[], nn.Module]
    fit: Callable[..., None] | TrainSpec
    data: Mapping[str, NDArray[Any]] = field(repr=False)
    example_inputs: Examples = field(repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not callable(self.build) or is_torch_module(self.build):
            raise UsageError(
                f"build of source {self.name!r} must be a function that returns a new module; got "
                f"{type(self.build).__name__}"
            )
        check_call(f"build of source {self.name!r}", self.build)
        if not callable(self.fit) and not isinstance(self.fit, TrainSpec):
            raise UsageError(
                f"fit of source {self.name!r} must be a function or ms.TrainSpec(...); got {type(self.fit).__name__}"
            )
        data = as_data(self.data, f"data of source {self.name!r}")
        object.__setattr__(self, "data", data)
        examples = as_examples(self.example_inputs, f"example_inputs of source {self.name!r}")
        object.__setattr__(self, "example_inputs", examples)
        if isinstance(self.fit, TrainSpec):
            split_rows(self.fit, data, seed=0)
        else:
            extra = {"progress": progress} if _takes_progress(self.fit) else {}
            check_call(f"fit of source {self.name!r}", self.fit, "module", "data", **extra)

    def fit_module(
        self,
        module: nn.Module,
        *,
        seed: int = 0,
        checkpoint: CheckpointFile | None = None,
        group: Group | None = None,
    ) -> TrainingMetrics | None:
        """Fit `module` in place within `reproducible(seed)`; return the metrics of a TrainSpec, None of a function."""
        if isinstance(self.fit, TrainSpec):
            return run_training(
                module, self.fit, self.data, seed=seed, name=self.name, checkpoint=checkpoint, group=group
            )
        # Copies, so that a `fit` that writes into them changes no key.
        copies = {name: array.copy() for name, array in self.data.items()}
        returned: object = self.fit(module, copies, **({"progress": progress} if _takes_progress(self.fit) else {}))
        # A wrapper, as of torch.compile, has the same parameters.
        if is_torch_module(returned) and {*map(id, returned.parameters())}.isdisjoint(map(id, module.parameters())):
            raise UsageError(f"fit of source {self.name!r} must train the module that it gets; it returned another one")
        return None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Trained weights and the source that they belong to.

    Attributes:
        source: The model source.
        weights: File with the state dict as `torch.save` writes it.
        sha256: Digest of the tensors (names, dtypes, shapes, values): equal wherever the same training ran.
        seed: Seed of the training.
        metrics: Losses, epochs and seconds of a TrainSpec; None for a function.
    """

    source: ModelSource
    weights: Path
    sha256: str
    seed: int
    metrics: TrainingMetrics | None = None

    def __repr__(self) -> str:
        """Return one line, without the data."""
        result = "" if self.metrics is None else f", {self.metrics}"
        return f"<TrainedModel {self.source.name}, seed {self.seed}{result}, sha256 {self.sha256[:12]}…>"

    @property
    def subject(self) -> Subject:
        """The model's name in reports."""
        return Subject(self.source.name, "torch", self.sha256)

    def module(self) -> nn.Module:
        """Return a new module with the trained weights, in eval mode, on the CPU.

        Raises:
            ArtifactError: The weights no longer exist in the store.
            UsageError: `build()` returns a module that the weights do not fit.
        """
        import torch

        with reproducible(self.seed):
            module = self.source.build()
        try:
            weights = torch.load(self.weights, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise ArtifactError(f"the weights of {self.subject} are gone from {self.weights}: train again") from error
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(
                f"build() of {self.source.name!r} returns another module than the one that was trained: {error}"
            ) from error
        return module.eval()


def train(
    source: ModelSource,
    *,
    seed: int = 0,
    store: Store | Path | str | None = None,
    processes: int = 1,
    hang_limit_s: float = 300.0,
    checkpoint: Path | str | None = None,
    checkpoint_every_s: float = 30.0,
) -> TrainedModel:
    """Return the trained model of `source`, from the store if the same training was done before.

    The same training means equal source files of `build`, `fit` and the module's classes, equal data and seed, and
    equal versions of Python, torch and numpy. One process trains if several ask at once. A rerun on one machine gives
    the same bits: torch, numpy and random start from `seed`, on one thread, with deterministic algorithms. The
    process's own settings are restored, also after an error.

    A training by a TrainSpec that is killed continues from its last checkpoint when it is asked for again, and ends
    with the same bits. The checkpoint is deleted when the training is complete.

    Args:
        source: The model source.
        seed: Seed of all random generators, from 0 to 4294967295.
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        processes: Processes of this host that train together by a TrainSpec, each on a part of every batch, by torch's
            DistributedDataParallel. The loss is that of one process up to rounding. Processes that torchrun started
            train together without this parameter.
        hang_limit_s: Longest time in seconds in which several processes make no progress before all are ended.
        checkpoint: File of the checkpoint of a TrainSpec (default: in the store).
        checkpoint_every_s: Shortest time between two checkpoints in seconds.

    Returns:
        The trained model.

    Raises:
        UsageError: `seed` is out of range, `build` returns no module, a function leaves NaN or infinite weights,
            `checkpoint` belongs to another training, or `processes` are more than cores, or cannot train this source.
            Nothing is stored then.
        InputError: The labels do not suit the loss of a TrainSpec.
        TrainingError: The loss of a TrainSpec becomes NaN or infinite (the message names the step and the checkpoint),
            or one of several processes ends or hangs (it has the end of that process's log).
        ArtifactError: The checkpoint is cut, damaged or of a newer version, or the store cannot be written.
        MissingDependencyError: torch is not installed.

    Example:
        >>> trained = train(source, seed=0, store=store)  # doctest: +SKIP
        >>> trained.module().training  # doctest: +SKIP
        False
    """
    if not isinstance(source, ModelSource):
        raise UsageError(f"source must be a ModelSource; got {type(source).__name__}")
    seed = check_seed(seed)
    require("torch", "training")
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise UsageError(f"checkpoint must be the path of a file; got {checkpoint!r}")
    if checkpoint is not None and not isinstance(source.fit, TrainSpec):
        raise UsageError(
            "checkpoint needs a source whose fit is ms.TrainSpec(...); a function keeps checkpoints of its own"
        )
    check_every(checkpoint_every_s)
    check_hang_limit(hang_limit_s)
    size = cluster_size()
    check_processes(processes, source.fit, size)
    store = as_store(store)
    spec = source.fit if isinstance(source.fit, TrainSpec) and max(processes, size) > 1 else None
    identity = training_identity(source, seed, 1 if spec is None else max(processes, size))
    key = digest_of(identity)
    path = store.checkpoint_path(key) if checkpoint is None else Path(checkpoint).expanduser().absolute()
    file = CheckpointFile(path, identity, checkpoint_every_s)
    group = cluster_group(spec, hang_limit_s) if spec is not None and size > 1 else None
    fitted: tuple[nn.Module, TrainingMetrics | None] | None = None

    def fit(folder: Path) -> tuple[nn.Module, TrainingMetrics | None]:
        with reproducible(seed):
            module = built(source)
            if spec is None or group is not None:
                return module, source.fit_module(module, seed=seed, checkpoint=file, group=group)
            return module, fit_in_processes(
                module,
                spec,
                source.data,
                name=source.name,
                seed=seed,
                processes=processes,
                checkpoint=file,
                hang_limit_s=hang_limit_s,
                folder=folder,
            )

    def build(folder: Path) -> None:
        nonlocal fitted
        fitted = fitted or fit(folder)
        _write(folder, *fitted, source, seed)

    if group is not None and group.sum(float(store.has(key))) < (float(group.size),):
        # Before the store's lock is taken, for which the processes of one host would wait. Each host then stores it.
        with lost_peers(source.name):
            fitted = fit(store.root)
            group.sum(0.0)  # whoever stores the result deletes the checkpoint, which rank 0 may still be writing
    entry = store.get_or_build(key, build, what=f"training of {source.name}")
    if fitted is not None:
        path.unlink(missing_ok=True)
    record = json.loads((entry / "training.json").read_text(encoding="utf-8"))
    metrics = TrainingMetrics(**record["metrics"]) if record.get("metrics") else None
    return TrainedModel(source, entry / "weights.pt", record["sha256"], seed, metrics)


def train_entry(source: ModelSource, identity: Mapping[str, Any], *, seed: int, store: Store) -> None:
    """Train `source` in this process as the entry of its `training_identity`, unless the store has it."""
    key = digest_of(identity)
    file = CheckpointFile(store.checkpoint_path(key), identity, 30.0)

    def build(folder: Path) -> None:
        with reproducible(seed):
            module = built(source)
            metrics = source.fit_module(module, seed=seed, checkpoint=file)
        _write(folder, module, metrics, source, seed)

    store.get_or_build(key, build, what=f"training of {source.name}")


def training_identity(source: ModelSource, seed: int, processes: int) -> dict[str, Any]:
    """Return all that a training depends on, as JSON values."""
    with reproducible(seed):
        module = built(source)
    classes = {type(each) for each in module.modules()}
    fit = source.fit
    code = {
        "build": source.build,
        "fit": digestible(fit.functions()) if isinstance(fit, TrainSpec) else fit,
        "classes": sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)),
        "own_code": package_hash(),
    }
    return {
        "model": _initial_weights(module, source.name) if isinstance(fit, TrainSpec) else "",
        "code": digest_of(code),
        "data": digest_of(dict(source.data)),
        "settings": fit.describe() if isinstance(fit, TrainSpec) else {},
        "seed": seed,
        "processes": processes,
        "versions": {"python": ".".join(map(str, sys.version_info[:2])), **package_versions(_PACKAGES)},
    }


def _initial_weights(module: nn.Module, name: str) -> str:
    from torch.nn.parameter import is_lazy

    tensors = (*module.named_parameters(), *module.named_buffers())
    if lazy := next((path for path, tensor in tensors if is_lazy(tensor)), None):
        raise UsageError(
            f"{lazy!r} of {name!r} has no shape yet, and a TrainSpec needs the parameters before the first batch: call "
            "the module with one batch in build()"
        )
    return weights_digest(module)


def _write(folder: Path, module: nn.Module, metrics: TrainingMetrics | None, source: ModelSource, seed: int) -> None:
    import torch

    weights = module.state_dict()
    check_finite(weights, f"training {source.name!r} with seed {seed} left")
    torch.save(weights, folder / "weights.pt")
    record = {"name": source.name, "seed": seed, "sha256": state_digest(weights)}
    if metrics is not None:
        record["metrics"] = asdict(metrics)
    (folder / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def built(source: ModelSource) -> nn.Module:
    """Return the untrained module; UsageError if `build` returns anything else."""
    from torch import nn

    module: Any = source.build()
    if not isinstance(module, nn.Module):
        raise UsageError(f"build() of {source.name!r} returns a torch module, not {type(module).__name__}")
    return module


def check_finite(weights: Mapping[str, Any], what: str, advice: str = DIVERGED) -> None:
    """Raise UsageError for NaN or infinite weights: "`what` 3 of 48 values of 'w' NaN or infinite: `advice`"."""
    import torch

    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        broken = int((~tensor.isfinite()).sum())
        if broken:
            raise UsageError(f"{what} {broken} of {tensor.numel()} values of {name!r} NaN or infinite: {advice}")


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can name a file on every system."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r} is invalid: use letters, digits, '.', '_' and '-', and begin with a letter or digit"
        )


def as_examples(examples: object, what: str) -> Examples:
    """Return `examples` with every tensor as an array: one array, or a mapping or sequence of arrays.

    InputError for anything else in them, and for empty ones.
    """
    found = dict(leaves(examples, ()))
    if isinstance(examples, (tuple, list)) and found and all(isinstance(v, (int, float)) for v in found.values()):
        raise InputError(
            f"{what} are a {type(examples).__name__} of numbers: pass np.asarray(...) of the model's dtype"
        )
    if not found:
        raise InputError(f"{what} are empty: there is no array in them")
    return cast("Examples", map_leaves(examples, (), lambda path, value: _as_example(path, value, what)))


def _as_example(path: TreePath, value: object, what: str) -> NDArray[Any]:
    where = f"{what}: {path_name(path)!r}" if path else what
    if isinstance(value, (bool, int, float, complex, str)) or value is None:
        raise InputError(
            f"{where} must be an array; got the {type(value).__name__} {value!r}: pass np.asarray(...) of the model's "
            "dtype, leave out a parameter with a default, or set the value in the module"
        )
    array = as_array(where, value)
    check_arrays({"": array}, where)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"{where} has dtype {array.dtype}, which torch cannot take")
    return array


def as_data(data: object, what: str) -> dict[str, NDArray[Any]]:
    """Return `data` with every tensor, list and frame as an array; InputError for anything but arrays by name."""
    if not isinstance(data, Mapping):
        raise InputError(f"{what} must be a mapping from names to arrays; got {type(data).__name__}")
    found = {
        name: Frame(value).matrix(None) if is_frame(value) else as_array(f"{what}: {name!r}", value)
        for name, value in data.items()
    }
    check_arrays(found, what)
    return found


def check_arrays(arrays: Mapping[str, object], what: str) -> None:
    """Raise InputError for an empty mapping, and for values that are not arrays, hold objects or have no rows."""
    if not arrays:
        raise InputError(f"{what} are empty: there is no array in them")
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise InputError(f"{what}: names must be text; got {name!r}")
        where = f"{what}: {name!r}" if name else what
        if not isinstance(array, np.ndarray):
            raise InputError(f"{where} must be a numpy array; got {type(array).__name__}")
        if array.dtype.hasobject:
            raise InputError(f"{where} has dtype object, which torch cannot take")
        if array.size == 0:
            raise InputError(f"{where} has shape {array.shape}: there are no values in it")


def _takes_progress(fit: Callable[..., None]) -> bool:
    try:
        # A decorator and what it wraps.
        signatures = [inspect.signature(fit, follow_wrapped=follow) for follow in (False, True)]
    except (TypeError, ValueError):
        return False
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return all(
        any(
            each.kind is Parameter.VAR_KEYWORD or (each.name == "progress" and each.kind in by_name)
            for each in signature.parameters.values()
        )
        for signature in signatures
    )
