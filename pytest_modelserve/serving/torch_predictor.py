"""An eager torch module as the reference that an exported model is held against."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.calling import Call, Forward
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.outputs import named_outputs
from pytest_modelserve.serving.predictor import Inputs, Predictor, check_threads

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchPredictor(Predictor):
    """Answers with `module` in inference mode on the CPU, on `threads` threads so that results are the same each time.

    The module has to be in eval mode. Inputs are named by the parameters of its `forward`; arrays inside a mapping or
    sequence are given in that, or under the flat names that an export of the module gives them (`Forward.call_of`).
    `call` says where each flat name goes, where the names alone do not tell. What the module returns is named by
    `named_outputs`. torch's own exceptions pass through: it decides which dtypes and shapes fit.
    """

    transport = "torch"

    def __init__(
        self, module: nn.Module, *, subject: Subject | None = None, threads: int = 1, call: Call | None = None
    ) -> None:
        super().__init__(Subject(type(module).__name__, "torch") if subject is None else subject)
        _check_eval(module)
        _check_on_cpu(module)
        self._module = module
        self._threads = check_threads(threads)
        self._forward = Forward.of(module)
        self._calls = {} if call is None else {frozenset(call.names): call}

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The module's outputs as numpy arrays.

        InputError for inputs that are not arrays, are not named as `forward` names them, or are missing; UsageError if
        the module was put back into training mode, or returns something that is no dense tensor numpy can hold.
        """
        import torch

        if self.closed:
            raise self._closed_error()
        if self._module.training:
            raise _training_error(type(self._module).__name__)
        call, arrays = self._call_of(inputs)
        several = isinstance(inputs, Mapping) or len(arrays) > 1
        tensors = {name: _tensor(f"input {name!r}" if several else "the input", arrays[name]) for name in call.names}
        args, kwargs = call.arguments(tensors)
        try:
            with torch.inference_mode(), _threads(self._threads):
                outputs = named_outputs(self._module(*args, **kwargs))
        except (TypeError, AttributeError, KeyError) as error:
            if call.guess:
                raise InputError(f"{call.guess} ({type(error).__name__}: {error})") from error
            raise
        return {name: self._array(name, value) for name, value in outputs.items()}

    def describe(self) -> str:
        """One line: the subject, torch's version and the number of threads."""
        import torch

        threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        return f"{self.subject} in eager torch {torch.__version__}, {threads}"

    def in_float64(self) -> TorchPredictor:
        """Another predictor, of a copy of the module in float64; inputs are named and handed over as here."""
        double = copy.copy(self)
        double._module = copy.deepcopy(self._module).double()
        return double

    def _call_of(self, inputs: object) -> tuple[Call, Mapping[str, object]]:
        """The call that `inputs` mean, and the arrays in it by name; names that came before are not looked up again,
        as that takes as long as a small model."""
        arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
        names = frozenset(arrays)
        if names in self._calls and all(isinstance(array, np.ndarray) for array in arrays.values()):
            call = self._calls[names]
            return call, arrays if isinstance(inputs, Mapping) else {call.names[0]: inputs}
        call, values = self._forward.call_of(inputs)
        if names == frozenset(call.names) or isinstance(inputs, np.ndarray):
            self._calls[names] = call
        return call, values

    def _array(self, name: str, value: object) -> NDArray[Any]:
        import torch

        if not isinstance(value, torch.Tensor):
            raise UsageError(f"{self.subject} returned a {type(value).__name__} as {name!r}, not a tensor")
        try:
            # A copy: the tensor may be a parameter, a buffer or an input of the module.
            return np.array(value.numpy(force=True))
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse, quantised
            kind = f"{str(value.dtype).removeprefix('torch.')}, {str(value.layout).removeprefix('torch.')}"
            raise UsageError(
                f"{self.subject} returned {name!r} as a tensor ({kind}) that numpy cannot hold: return a dense one "
                "of another dtype, .float() say"
            ) from error


def _tensor(what: str, value: object) -> torch.Tensor:
    """A tensor of its own, so that a module that works in place leaves the caller's array as it is."""
    import torch

    array = check_array(what, value)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"{what} has dtype {array.dtype}: torch has no tensors of text or objects")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads: sums are split differently, and come out differently, on another number."""
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_eval(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if part.training:
            raise _training_error(type(module).__name__ + (f".{path}" if path else ""))


def _training_error(name: str) -> UsageError:
    return UsageError(
        f"{name} is in training mode, in which dropout and batch normalisation answer differently: call .eval() first"
    )


def _check_on_cpu(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise UsageError(
                f"{type(module).__name__}.{name} is on {tensor.device}: references answer on the CPU, call .cpu() first"
            )
