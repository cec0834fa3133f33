"""Eager torch modules as references, and the mapping of named arrays to arguments of `forward`."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.inputs import check_threads
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.pytree import flat_names, leaves, map_leaves, named_outputs, split_name

if TYPE_CHECKING:
    import torch
    from torch import nn


_NUMBERS = (bool, int, float, complex, str)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `forward` with a name in place of every array; `names` lists them in order.

    `guess` is set if the names are not parameters of `forward`: the message in case the module rejects the call.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guess: str = ""

    @property
    def plain(self) -> bool:
        """Whether every array is a keyword argument of its own name."""
        return not self.args and all(name == tree for name, tree in self.kwargs.items())

    def arguments(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of the call, with `values` in place of the names."""

        def placed(tree: Any) -> Any:
            return map_leaves(tree, (), lambda _, name: values[name])

        return placed(self.args), {name: placed(tree) for name, tree in self.kwargs.items()}


@dataclass(frozen=True, slots=True)
class Forward:
    """The parameters of a module's `forward`; `call_of` maps inputs to a call."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Forward:
        """Return the parameters of `module.forward`."""
        try:
            signature = inspect.signature(module.forward, eval_str=True)
        except (NameError, TypeError, SyntaxError):  # annotations that only a type checker can read
            signature = inspect.signature(module.forward)
        return cls(tuple(signature.parameters.values()))

    def call_of(self, inputs: object) -> tuple[Call, dict[str, Any]]:
        """Return the call of `forward` for `inputs`, and the arrays by their flat names.

        `inputs` is one array; a tuple or list of arrays by position; or a mapping by the names of the parameters,
        nested where one takes a mapping or a sequence. An array is named after its parameter. Within a mapping it is
        named after its key if that is unique ({"batch": {"ids": a, "mask": b}} gives "ids" and "mask"), otherwise by
        the full path ("batch.ids"). Items of a sequence and of `*args` are numbered: "state_0", "args_0". The flat
        names are accepted in place of the nested form, too.

        InputError for names that `forward` does not have, and for parameters without a value.
        """
        if isinstance(inputs, Mapping):
            return self._call(*self._by_name(inputs))
        by_place = isinstance(inputs, (tuple, list)) and not _is_numbers(inputs)
        return self._call(self._by_position(inputs if by_place else (inputs,)), "")

    @property
    def _named(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.kind in (*_BY_NAME, Parameter.POSITIONAL_ONLY))

    @property
    def required(self) -> tuple[str, ...]:
        """The parameters without a default."""
        return tuple(p.name for p in self.parameters if p.name in self._named and p.default is Parameter.empty)

    def _open(self, kind: Any) -> str | None:
        return next((p.name for p in self.parameters if p.kind is kind), None)

    def _by_position(self, values: Any) -> dict[str, Any]:
        positional = [p.name for p in self.parameters if p.name in self._named and p.kind is not Parameter.KEYWORD_ONLY]
        rest = tuple(values[len(positional) :])
        rest_name = self._open(Parameter.VAR_POSITIONAL)
        if rest and rest_name is None:
            hint = "; of a pair of inputs and labels pass the inputs alone" if len(values) == 2 else ""
            raise InputError(
                f"got {len(values)} inputs by position, but forward() takes {len(positional)}: {_quoted(positional)}"
                f"{hint}"
            )
        bound = dict(zip(positional, values, strict=False))
        missing = [name for name in self.required if name not in bound]
        if missing:
            raise InputError(
                f"forward() takes {len(self.required)} inputs ({_quoted(self.required)}): give a mapping from their "
                "names to arrays"
            )
        return bound if rest_name is None or not rest else {**bound, rest_name: rest}

    def _by_name(self, inputs: Mapping[Any, Any]) -> tuple[dict[str, Any], str]:
        bound = {name: value for name, value in inputs.items() if name in self._named}
        others = {name: value for name, value in inputs.items() if name not in self._named}
        others = self._unflatten(others, bound)
        guess = ""
        if others and self._open(Parameter.VAR_KEYWORD) is None:
            others, guess = self._absorb(others, bound)
        for name in self.required:
            if name not in bound:
                raise InputError(f"input {name!r} is missing: forward() takes {_quoted(self._named)}")
        return {**bound, **others}, guess

    def _unflatten(self, others: Mapping[Any, Any], bound: dict[str, Any]) -> dict[Any, Any]:
        """Put arrays that are named by a path, such as "batch.ids" or "state_0", into the parameter at its root."""
        left: dict[Any, Any] = {}
        nests: dict[str, dict[Any, Any]] = {}
        roots = {*self._named, self._open(Parameter.VAR_POSITIONAL)} - {*bound}
        for name, value in others.items():
            path = split_name(name) if isinstance(name, str) else None
            if path is None or path[0] not in roots:
                left[name] = value
                continue
            nest = nests.setdefault(str(path[0]), {})
            for key in path[1:-1]:
                nest = nest.setdefault(key, {})
                if not isinstance(nest, dict):
                    raise InputError(f"input {name!r} is inside another input: pass one of the two")
            nest[path[-1]] = value
        bound.update({name: _sequenced(nest) for name, nest in nests.items()})
        return left

    def _absorb(self, others: dict[Any, Any], bound: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Put names that `forward` lacks into the only parameter without a value, if it can be a mapping."""
        unknown = unknown_choice("input", next(iter(others)), self._named)
        missing = [p for p in self.parameters if p.name in self.required and p.name not in bound]
        if len(missing) != 1:
            raise InputError(unknown)
        (parameter,) = missing
        certain = _is_mapping(parameter.annotation)
        if not certain and (parameter.annotation is not Parameter.empty or len(self.required) > 1 or bound):
            raise InputError(unknown)
        bound[parameter.name] = others
        return {}, "" if certain else f"{unknown}; as a mapping for {parameter.name!r} the module does not take it"

    def _call(self, bound: Mapping[str, Any], guess: str) -> tuple[Call, dict[str, Any]]:
        """Return the call with names in place of arrays; arguments in the order of the parameters."""
        ordered = {name: bound[name] for name in (p.name for p in self.parameters) if name in bound}
        ordered |= {name: value for name, value in bound.items() if name not in ordered}
        for name, value in ordered.items():
            if _is_numbers(value):
                numbers = as_array(f"input {name!r}", value)  # floats in float32, as in torch.tensor(value)
                ordered[name] = numbers.astype(np.float32) if numbers.dtype == np.float64 else numbers
        found = [leaf for name, value in ordered.items() for leaf in leaves(value, (name,))]
        names = dict(zip([path for path, _ in found], flat_names([path for path, _ in found]), strict=True))
        if len(set(names.values())) < len(names):
            raise InputError(f"two inputs have the same name: {_quoted(names.values())}")
        trees = {name: map_leaves(value, (name,), lambda path, _: names[path]) for name, value in ordered.items()}
        rest = self._open(Parameter.VAR_POSITIONAL)
        by_place = {p.name for p in self.parameters if p.kind is Parameter.POSITIONAL_ONLY}
        if rest in trees:  # whatever stands before *args goes by its place
            by_place = {p.name for p in self.parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
            skipped = [p.name for p in self.parameters if p.name in by_place and p.name not in trees]
            if skipped:
                raise InputError(f"input {skipped[0]!r} is missing: forward() takes it by position, before *{rest}")
        args = (*(trees[name] for name in trees if name in by_place), *trees.get(rest or "", ()))
        kwargs = {name: tree for name, tree in trees.items() if name not in by_place and name != rest}
        return Call(tuple(names.values()), args, kwargs, guess), {names[path]: value for path, value in found}


def _sequenced(nest: Any) -> Any:
    """Return `nest` with every mapping from 0, 1, 2, ... converted to a tuple."""
    if not isinstance(nest, dict):
        return nest
    values = {key: _sequenced(value) for key, value in nest.items()}
    if set(values) == set(range(len(values))):
        return tuple(values[place] for place in range(len(values)))
    return values


def _is_numbers(value: Any) -> bool:
    """Return True for a list of numbers, which should be an array."""
    return isinstance(value, (tuple, list)) and all(isinstance(leaf, _NUMBERS) for _, leaf in leaves(value, ()))


def _is_mapping(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    if isinstance(kind, str):
        return kind.partition("[")[0].rpartition(".")[2].lower() in ("dict", "mapping")
    return isinstance(kind, type) and (issubclass(kind, Mapping) or typing.is_typeddict(kind))


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))


class TorchPredictor(Predictor):
    """A torch module in inference mode on the CPU, on a fixed number of threads for reproducible results.

    The module must be in eval mode. Inputs are named after the parameters of its `forward`; nested arrays are passed
    nested, or under the flat names of an export (`Forward.call_of`). `call` maps flat names to arguments if the names
    alone are ambiguous. Outputs are named by `named_outputs`. torch's own exceptions propagate: it decides which dtypes
    and shapes it accepts.
    """

    transport = "torch"
    is_thread_safe = False  # the number of threads is a setting of the process

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

    @property
    def module(self) -> nn.Module:
        """The module that is served."""
        return self._module

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
        """Return one line: the subject, torch's version and the number of threads."""
        import torch

        threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        return f"{self.subject} in eager torch {torch.__version__}, {threads}"

    def in_float64(self) -> TorchPredictor:
        """Return a predictor of a copy of the module in float64, with the same input names."""
        double = copy.copy(self)
        double._module = copy.deepcopy(self._module).double()
        return double

    def _call_of(self, inputs: object) -> tuple[Call, Mapping[str, object]]:
        """Return the call for `inputs`, and its arrays by name; cached, as it takes as long as a small model."""
        if is_frame(inputs) or isinstance(inputs, Frame):
            frame = inputs if isinstance(inputs, Frame) else Frame(inputs)
            inputs = dict(frame) if len(self._forward.required) > 1 else frame.matrix(self._dtype)
        arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
        names = frozenset(arrays)
        if names in self._calls and all(isinstance(array, np.ndarray) for array in arrays.values()):
            call = self._calls[names]
            return call, arrays if isinstance(inputs, Mapping) else {call.names[0]: inputs}
        call, values = self._forward.call_of(inputs)
        if names == frozenset(call.names) or isinstance(inputs, np.ndarray):
            self._calls[names] = call
        return call, values

    @property
    def _dtype(self) -> str | None:
        """The dtype of the module's first parameter of floats, which its inputs have, too."""
        found = (each.dtype for each in self._module.parameters() if each.is_floating_point())
        return next((str(dtype).removeprefix("torch.") for dtype in found), None)

    def _array(self, name: str, value: object) -> NDArray[Any]:
        import torch

        if not isinstance(value, torch.Tensor):
            raise UsageError(f"{self.subject} returned a {type(value).__name__} as {name!r}, not a tensor")
        try:
            # A copy: the tensor may be a parameter, a buffer or an input of the module.
            return np.array(value.numpy(force=True))
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse, quantized
            kind = f"{str(value.dtype).removeprefix('torch.')}, {str(value.layout).removeprefix('torch.')}"
            raise UsageError(
                f"{self.subject} returned {name!r} as a tensor ({kind}) that numpy cannot represent: return a "
                "dense tensor of another dtype, for example with .float()"
            ) from error


def _tensor(what: str, value: object) -> torch.Tensor:
    """Return a copy as a tensor, so that a module that works in place does not change the caller's array."""
    import torch

    array = as_array(what, value)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"{what} has dtype {array.dtype}: torch has no such tensors")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads: another number splits and rounds sums differently."""
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
    return UsageError(f"{name} is in training mode, which changes dropout and batch normalization: call .eval() first")


def _check_on_cpu(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise UsageError(
                f"{type(module).__name__}.{name} is on {tensor.device}: call .cpu() first, as references run on the CPU"
            )
