"""An eager torch module as the reference that an exported model is held against."""

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
from pytest_modelserve.serving.inputs import check_array, check_threads
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.pytree import flat_names, leaves, map_leaves, named_outputs, split_name

if TYPE_CHECKING:
    import torch
    from torch import nn


# Flat names for values that sit in mappings and sequences: one rule for what goes into a model and what comes out.


# How named arrays go into a module's `forward`: every array of the call under one flat name.


_NUMBERS = (bool, int, float, complex, str)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `forward` with a name in the place of every array, and `names`, all of them in order.

    `guess` is not empty where the names are no parameters of `forward`, so that the call may not be what was meant;
    it is the sentence to say should the module not take it.
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
        """The positional and keyword arguments of the call, with `values` in their places."""

        def placed(tree: Any) -> Any:
            return map_leaves(tree, (), lambda _, name: values[name])

        return placed(self.args), {name: placed(tree) for name, tree in self.kwargs.items()}


@dataclass(frozen=True, slots=True)
class Forward:
    """The parameters of a module's `forward`, and which call of it given inputs mean."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Forward:
        """The one of `module`."""
        try:
            signature = inspect.signature(module.forward, eval_str=True)
        except (NameError, TypeError, SyntaxError):  # annotations that only a type checker can read
            signature = inspect.signature(module.forward)
        return cls(tuple(signature.parameters.values()))

    def call_of(self, inputs: object) -> tuple[Call, dict[str, Any]]:
        """The call that hands `inputs` to `forward`, and the values in it by their flat names.

        `inputs` are one array; a tuple or list of arrays, handed over by position; or a mapping by the names of the
        parameters, where one that takes a mapping or a sequence has one. An array is called like its parameter.
        Within a mapping it is called by its key where no other array is ({"batch": {"ids": a, "mask": b}} gives "ids"
        and "mask"), else by the whole path ("batch.ids"); in a sequence by its place, "state_0", as are those of
        `*args`, "args_0". These flat names are taken in place of the nested form too.

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
    def _required(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.name in self._named and p.default is Parameter.empty)

    def _open(self, kind: Any) -> str | None:
        return next((p.name for p in self.parameters if p.kind is kind), None)

    def _by_position(self, values: Any) -> dict[str, Any]:
        positional = [p.name for p in self.parameters if p.name in self._named and p.kind is not Parameter.KEYWORD_ONLY]
        rest = tuple(values[len(positional) :])
        rest_name = self._open(Parameter.VAR_POSITIONAL)
        if rest and rest_name is None:
            raise InputError(
                f"{len(values)} inputs were given by position and forward() takes {len(positional)}: "
                f"{_quoted(positional)}"
            )
        bound = dict(zip(positional, values, strict=False))
        missing = [name for name in self._required if name not in bound]
        if missing:
            raise InputError(
                f"forward() takes {len(self._required)} inputs ({_quoted(self._required)}): give a mapping from their "
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
        for name in self._required:
            if name not in bound:
                raise InputError(f"input {name!r} is missing: forward() takes {_quoted(self._named)}")
        return {**bound, **others}, guess

    def _unflatten(self, others: Mapping[Any, Any], bound: dict[str, Any]) -> dict[Any, Any]:
        """Put the arrays whose names tell a path, "batch.ids" or "state_0", into the parameter that it begins with."""
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
                    raise InputError(f"input {name!r} lies inside another input: give one of the two")
            nest[path[-1]] = value
        bound.update({name: _sequenced(nest) for name, nest in nests.items()})
        return left

    def _absorb(self, others: dict[Any, Any], bound: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Put names that `forward` lacks into the one parameter that is without a value, if it can be a mapping."""
        unknown = unknown_choice("input", next(iter(others)), self._named)
        missing = [p for p in self.parameters if p.name in self._required and p.name not in bound]
        if len(missing) != 1:
            raise InputError(unknown)
        (parameter,) = missing
        certain = _is_mapping(parameter.annotation)
        if not certain and (parameter.annotation is not Parameter.empty or len(self._required) > 1 or bound):
            raise InputError(unknown)
        bound[parameter.name] = others
        return {}, "" if certain else f"{unknown}; as a mapping for {parameter.name!r} the module does not take it"

    def _call(self, bound: Mapping[str, Any], guess: str) -> tuple[Call, dict[str, Any]]:
        """The call with names in the places of arrays; arguments in the order of the parameters."""
        ordered = {name: bound[name] for name in (p.name for p in self.parameters) if name in bound}
        ordered |= {name: value for name, value in bound.items() if name not in ordered}
        for name, value in ordered.items():
            if _is_numbers(value):
                check_array(f"input {name!r}", value)
        found = [leaf for name, value in ordered.items() for leaf in leaves(value, (name,))]
        names = dict(zip([path for path, _ in found], flat_names([path for path, _ in found]), strict=True))
        if len(set(names.values())) < len(names):
            raise InputError(f"two inputs have one name: {_quoted(names.values())}")
        trees = {name: map_leaves(value, (name,), lambda path, _: names[path]) for name, value in ordered.items()}
        rest = self._open(Parameter.VAR_POSITIONAL)
        by_place = {p.name for p in self.parameters if p.kind is Parameter.POSITIONAL_ONLY}
        if rest in trees:  # whatever stands before *args goes by its place
            by_place = {p.name for p in self.parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
            skipped = [p.name for p in self.parameters if p.name in by_place and p.name not in trees]
            if skipped:
                raise InputError(f"input {skipped[0]!r} is missing: forward() takes it by its place, before *{rest}")
        args = (*(trees[name] for name in trees if name in by_place), *trees.get(rest or "", ()))
        kwargs = {name: tree for name, tree in trees.items() if name not in by_place and name != rest}
        return Call(tuple(names.values()), args, kwargs, guess), {names[path]: value for path, value in found}


def _sequenced(nest: Any) -> Any:
    """`nest` with every mapping of 0, 1, 2, ... as a tuple."""
    if not isinstance(nest, dict):
        return nest
    values = {key: _sequenced(value) for key, value in nest.items()}
    if set(values) == set(range(len(values))):
        return tuple(values[place] for place in range(len(values)))
    return values


def _is_numbers(value: Any) -> bool:
    """Whether `value` is a list that should be an array."""
    return isinstance(value, (tuple, list)) and all(isinstance(leaf, _NUMBERS) for _, leaf in leaves(value, ()))


def _is_mapping(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    if isinstance(kind, str):
        return kind.partition("[")[0].rpartition(".")[2].lower() in ("dict", "mapping")
    return isinstance(kind, type) and (issubclass(kind, Mapping) or typing.is_typeddict(kind))


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))


# Names for what a model returns that has none of its own: a torch module's or a callable's result.


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
