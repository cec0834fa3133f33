"""How named arrays go into a module's `forward`: every array of the call under one flat name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError, unknown_choice
from pytest_modelserve.serving.inputs import check_array
from pytest_modelserve.serving.leaves import flat_names, leaves, mapped, split_name

if TYPE_CHECKING:
    from torch import nn

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
            return mapped(tree, (), lambda _, name: values[name])

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
        trees = {name: mapped(value, (name,), lambda path, _: names[path]) for name, value in ordered.items()}
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
