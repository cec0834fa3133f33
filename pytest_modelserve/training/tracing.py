"""What the exporter is shown: which arrays under which names, and which of their axes stay free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.serving.calling import Call, Forward
from pytest_modelserve.training.source import Examples, check_examples

if TYPE_CHECKING:
    from torch import nn

Dynamic = Sequence[str] | Mapping[str, Mapping[int, str]]

# A trace over one row is no trace over a batch: squeeze, broadcasting and `if len(x) == 1` go by the size they meet.
_SMALLEST_FREE_SIZE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Tracing:
    """The arrays to trace, by the names of the model's inputs and in their order, and the names of free axes.

    `axes[input][axis]` is the name of a free axis; each axis of one name has the same size in every input. `call` is
    how `forward` takes them; None for what is no torch module.
    """

    inputs: Mapping[str, NDArray[Any]]
    axes: Mapping[str, Mapping[int, str]]
    call: Call | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The traced size of every free axis, by name."""
        return {name: self.inputs[key].shape[axis] for key, axis, name in _free_axes(self.axes)}


def plan_tracing(module: nn.Module, examples: Examples, dynamic: Dynamic) -> Tracing:
    """How to trace `module` so that the axes in `dynamic` stay free.

    A sequence of names stands for the leading axes of every input: `("batch",)`, or `("batch", "time")`. A mapping
    names them input by input: `{"ids": {0: "batch", 1: "time"}}`. An example of one row is repeated to two. What is
    nested in `examples` is named as `Forward.call_of` says, in `dynamic` too.

    InputError for examples that `forward` does not take, or whose axes of one name differ in size; UsageError for
    axes that the inputs do not have.
    """
    check_examples(examples, "example_inputs")
    call, inputs = Forward.of(module).call_of(examples)
    axes = _axes(dynamic, {name: array.ndim for name, array in inputs.items()})
    _check_sizes(inputs, axes)
    return Tracing({name: _widened(array, axes[name]) for name, array in inputs.items()}, axes, call)


def _axes(dynamic: Dynamic, ranks: Mapping[str, int]) -> dict[str, dict[int, str]]:
    if isinstance(dynamic, str):
        raise UsageError(f"dynamic is a tuple of names, dynamic=({dynamic!r},), or a mapping; got the text {dynamic!r}")
    if isinstance(dynamic, Mapping):
        axes = {name: dict[int, str]() for name in ranks}
        for name, named in dynamic.items():
            if name not in ranks:
                raise UsageError(f"dynamic: {unknown_choice('input', name, ranks)}")
            axes[name] = {_axis(axis, ranks[name], name): label for axis, label in named.items()}
    else:
        axes = {name: dict(enumerate(dynamic[:rank])) for name, rank in ranks.items()}
        unused = [label for axis, label in enumerate(dynamic) if axis >= max(ranks.values())]
        if unused:
            raise UsageError(f"dynamic: no input has an axis {len(dynamic) - 1} to be called {unused[-1]!r}")
    for name, named in axes.items():
        _check_labels(name, list(named.values()))
    return axes


def _axis(axis: int, rank: int, name: str) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise UsageError(f"dynamic: input {name!r} has {rank} axes, so none is {axis!r}")
    return axis % rank


def _check_labels(name: str, labels: list[Any]) -> None:
    for label in labels:
        if not isinstance(label, str) or not label.isidentifier():
            raise UsageError(f"dynamic: an axis is named like a variable, like 'batch'; input {name!r} has {label!r}")
        if labels.count(label) > 1:
            raise UsageError(f"dynamic: input {name!r} has two axes called {label!r}")


def _check_sizes(inputs: Mapping[str, NDArray[Any]], axes: Mapping[str, Mapping[int, str]]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for key, axis, label in _free_axes(axes):
        size = inputs[key].shape[axis]
        other, expected = first.setdefault(label, (key, size))
        if size != expected:
            raise InputError(
                f"example_inputs: axis {label!r} has size {expected} in {other!r} and size {size} in {key!r}; "
                "axes of one name have one size"
            )


def _widened(array: NDArray[Any], named: Mapping[int, str]) -> NDArray[Any]:
    repeats = [_SMALLEST_FREE_SIZE if axis in named and size == 1 else 1 for axis, size in enumerate(array.shape)]
    return np.tile(array, repeats) if repeats else array


def _free_axes(axes: Mapping[str, Mapping[int, str]]) -> Iterator[tuple[str, int, str]]:
    return ((key, axis, label) for key, named in axes.items() for axis, label in named.items())
