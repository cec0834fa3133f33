"""An eager torch module as the reference that an exported model is held against."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.outputs import named_outputs
from pytest_modelserve.serving.predictor import Inputs, Predictor, check_threads

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchPredictor(Predictor):
    """Answers with `module` in inference mode on the CPU, on `threads` threads so that results are the same each time.

    The module has to be in eval mode. Inputs are named by the parameters of its `forward`; what it returns is named by
    `named_outputs`. torch's own exceptions pass through: it decides which dtypes and shapes fit.
    """

    transport = "torch"

    def __init__(self, module: nn.Module, *, subject: Subject | None = None, threads: int = 1) -> None:
        super().__init__(Subject(type(module).__name__, "torch") if subject is None else subject)
        _check_eval(module)
        _check_on_cpu(module)
        self._module = module
        self._threads = check_threads(threads)
        self._forward = _Forward.of(module)

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
        args, kwargs = self._arguments(inputs)
        with torch.inference_mode(), _threads(self._threads):
            outputs = named_outputs(self._module(*args, **kwargs))
        return {name: self._array(name, value) for name, value in outputs.items()}

    def describe(self) -> str:
        """One line: the subject, torch's version and the number of threads."""
        import torch

        threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        return f"{self.subject} in eager torch {torch.__version__}, {threads}"

    def _arguments(self, inputs: object) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if isinstance(inputs, Mapping):
            self._forward.check_names(inputs)
            return (), {name: _tensor(f"input {name!r}", value) for name, value in inputs.items()}
        required = self._forward.required
        if len(required) > 1:
            told = ", ".join(map(repr, required))
            raise InputError(
                f"forward() takes {len(required)} inputs ({told}): give a mapping from their names to arrays"
            )
        return (_tensor("the input", inputs),), {}

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


@dataclass(frozen=True, slots=True)
class _Forward:
    """The inputs that a module's `forward` names, those among them that it cannot do without, and whether it takes
    others as well."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_others: bool

    @classmethod
    def of(cls, module: nn.Module) -> _Forward:
        parameters = inspect.signature(module.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return cls(
            names=tuple(p.name for p in named),
            required=tuple(p.name for p in named if p.default is p.empty),
            takes_others=any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def check_names(self, inputs: Mapping[str, object]) -> None:
        if not self.takes_others:
            for name in inputs:
                if name not in self.names:
                    raise InputError(unknown_choice("input", name, self.names))
        for name in self.required:
            if name not in inputs:
                raise InputError(f"input {name!r} is missing: forward() takes {', '.join(map(repr, self.names))}")


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
