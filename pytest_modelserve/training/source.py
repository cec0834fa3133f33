"""What a training needs, as a value: how to build the model, how to fit it, and the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.progress import Progress
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.leaves import leaves, whole_name

if TYPE_CHECKING:
    from torch import nn

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
        where = f"{what}: {whole_name(path)!r}" if path else what
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
