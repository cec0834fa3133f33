"""Training: seeded, on one thread, and done once."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Store, digest_of, package_hash
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, require
from pytest_modelserve.evidence import Subject, package_versions
from pytest_modelserve.progress import Progress, progress
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.pytree import leaves, path_name

if TYPE_CHECKING:
    from torch import Tensor, nn


# The state of the process in which a training comes out the same, bit for bit.


def check_seed(seed: int) -> None:
    """UsageError unless all three generators take `seed`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"seed is a whole number from 0 to 4294967295, which numpy's generator can take; got {seed!r}")


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random, use one thread and deterministic algorithms; put everything back afterwards.

    Gradients are on and float32 is the default dtype inside, whatever the caller has set. One thread, because a sum
    that two threads share is rounded in another order (and was measured 8 times slower on small models).
    """
    import torch

    with ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        undo.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(True)
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        yield


# What a training needs, as a value: how to build the model, how to fit it, and the data.


# One array, or a mapping or sequence of arrays and of further mappings and sequences.
Examples = NDArray[Any] | Mapping[str, Any] | Sequence[Any]

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, eq=False)
class ModelSource:
    """A model before it is trained; two sources are equal where they are the same object.

    `build()` returns the untrained module. `fit(module, data, progress)` trains it in place; it is handed copies of
    `data` and a `progress(batches, "epoch 3")` that shows a bar on a terminal. Hyperparameters go in by
    `functools.partial(fit, epochs=30)`: they are part of what the stored training is found by, and so are the source
    files of both functions. `example_inputs` are one array for a module of one input, a tuple by position, or a
    mapping by the names of `forward`'s parameters, nested where a parameter takes a mapping; rows lie along the first
    axis.

    NaN in the data is allowed, as a model may impute it. UsageError for a name that is no file name and for anything
    but functions where functions belong; InputError for data that are not arrays, or that are empty.
    """

    name: str
    build: Callable[[], nn.Module]
    fit: Callable[[nn.Module, Mapping[str, NDArray[Any]], Progress], None]
    data: Mapping[str, NDArray[Any]]
    example_inputs: Examples

    def __post_init__(self) -> None:
        check_name(self.name)
        for role, function in (("build", self.build), ("fit", self.fit)):
            if not callable(function):
                raise UsageError(f"{role} of source {self.name!r} is a function, not {type(function).__name__}")
        if not isinstance(self.data, Mapping):
            raise InputError(f"data of source {self.name!r} map names to arrays; got {type(self.data).__name__}")
        check_arrays(self.data, f"data of source {self.name!r}")
        check_examples(self.example_inputs, f"example_inputs of source {self.name!r}")
        object.__setattr__(self, "data", dict(self.data))


def check_name(name: str) -> None:
    """UsageError unless `name` can name a file on every system."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r}: letters, digits, '.', '_' and '-' make a name, and a letter or digit starts it, "
            "as it names files too"
        )


def check_examples(examples: object, what: str) -> None:
    """InputError unless `examples` are one array, or a mapping or sequence of arrays, with something in it."""
    found = dict(leaves(examples, ()))
    if isinstance(examples, (tuple, list)) and found and all(isinstance(v, (int, float)) for v in found.values()):
        raise InputError(
            f"{what} are a {type(examples).__name__} of numbers: give np.asarray(...) of the model's dtype"
        )
    if not found:
        raise InputError(f"{what} are empty: there is no array in them")
    for path, value in found.items():
        where = f"{what}: {path_name(path)!r}" if path else what
        if isinstance(value, (bool, int, float, complex, str)) or value is None:
            raise InputError(
                f"{where} is the {type(value).__name__} {value!r}, and what a model takes is arrays: give "
                "np.asarray(...) of the model's dtype, leave a parameter with a default out, or set the value in the "
                "module"
            )
        array = check_array(where, value)
        check_arrays({"": array}, where)
        if array.dtype.kind not in "fiubc":
            raise InputError(f"{where} has dtype {array.dtype}, which torch cannot take")


def check_arrays(arrays: Mapping[str, object], what: str) -> None:
    """InputError for no array at all, for something else than an array, for objects and for zero rows."""
    if not arrays:
        raise InputError(f"{what} are empty: there is no array in them")
    for name, array in arrays.items():
        where = f"{what}: {name!r}" if name else what
        if not isinstance(array, np.ndarray):
            raise InputError(f"{where} is no numpy array but {type(array).__name__}")
        if array.dtype.hasobject:
            raise InputError(f"{where} has dtype object, which torch cannot take")
        if array.size == 0:
            raise InputError(f"{where} has shape {array.shape}: there are no values in it")


# A model after training: its source, and the file that holds its weights.


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Trained weights and the source that they belong to.

    `weights` is a state dict as `torch.save` writes it, and `sha256` is over the tensors in it (names, dtypes, shapes
    and values), so it is the same wherever and however often the same training ran.
    """

    source: ModelSource
    weights: Path
    sha256: str
    seed: int

    @property
    def subject(self) -> Subject:
        """What reports call this model."""
        return Subject(self.source.name, "torch", self.sha256)

    def module(self) -> nn.Module:
        """A fresh module with the trained weights, in eval mode, on the CPU.

        ArtifactError where the weights are gone from the store; UsageError where `build()` no longer gives a module
        that they fit.
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
                f"build() of {self.source.name!r} gives another module than the one that was trained: {error}"
            ) from error
        return module.eval()


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
            "own_code": package_hash(),
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


# One digest for one module: what it computes, not what it is called.


def module_digest(module: nn.Module) -> str:
    """The sha256 of all that decides what `module` answers.

    That is, for it and every module inside: the class with its source files, parameters, buffers (kept in the state
    dict or not), hooks, and whatever `__init__` left as attributes; two modules with equal weights and another
    activation differ. An attribute that neither `digest_of` nor pickle takes makes the digest new at every call: the
    export then runs again, which is slow, rather than find another module's result, which is wrong.
    """
    paths = {id(each): path for path, each in module.named_modules()}
    return digest_of({path: _own(each, paths) for path, each in module.named_modules(remove_duplicate=False)})


def weights_digest(module: nn.Module) -> str:
    """The sha256 of the state dict: equal to `TrainedModel.sha256` for a module that `TrainedModel.module()` gave."""
    return digest_of(dict(module.state_dict()))


def _own(module: nn.Module, paths: Mapping[int, str]) -> dict[str, Any]:
    from torch import nn

    attributes = {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return {
        "class": type(module),
        "tensors": {**module._parameters, **module._buffers},
        "hooks": _plain(hooks, paths),
        "attributes": {name: _plain(value, paths) for name, value in attributes.items()},
    }


def _plain(value: Any, paths: Mapping[int, str]) -> Any:
    """`value` as something that has a digest; `paths` names the modules that are digested anyway."""
    import torch

    if isinstance(value, torch.nn.Module):
        return ("module", paths[id(value)] if id(value) in paths else module_digest(value))
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return (type(value).__name__, str(value))
    if isinstance(value, weakref.ReferenceType):
        return _plain(value(), paths)
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_plain(item, paths) for item in value)]
    if isinstance(value, Mapping):
        return {"mapping": [(_plain(key, paths), _plain(item, paths)) for key, item in value.items()]}
    try:
        digest_of(value)
    except UsageError:
        return ("pickle", _pickled(value))
    return value


def _pickled(value: Any) -> str:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever a stranger's __reduce__ raises
        return uuid.uuid4().hex
